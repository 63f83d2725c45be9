"""Device nodes, kernel module and processes, from /dev, /sys and /proc."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable
from pathlib import Path

from gpuhealth.model.missing import Missing, MissingReason, Reading
from gpuhealth.monitors.nvidia.readings import KernelModule
from gpuhealth.runtime.files import file_missing

_DEVICE_NODE = re.compile(r"nvidia(\d+)")
_FABRIC_MANAGER = "nv-fabricmanage"  # the kernel truncates a process name to 15 characters
_NAMELESS = "of unknown version"
_RESCAN_SECONDS = 60.0  # a scan of /proc costs 10 ms with 1,000 processes


def device_nodes(dev: Path) -> Reading[tuple[int, ...]]:
    """The N of every /dev/nvidiaN, ascending."""
    try:
        names = [entry.name for entry in dev.iterdir()]
    except OSError as error:
        return file_missing(error)
    return tuple(sorted(int(match[1]) for name in names if (match := _DEVICE_NODE.fullmatch(name))))


class KernelModuleProbe:
    """The loaded NVIDIA kernel module, from /sys/module, which shows the node's modules in every container."""

    def __init__(self, sys: Path) -> None:
        self._modules = sys / "module"
        before = self._version()
        self._at_start = "" if isinstance(before, Missing) else before

    def read(self) -> Reading[KernelModule]:
        """The module, or why it cannot be determined."""
        version = self._version()
        return version if isinstance(version, Missing) else KernelModule(version, self._at_start)

    def _version(self) -> Reading[str]:
        if not self._modules.is_dir():
            return Missing(MissingReason.NOT_INSTALLED, f"{self._modules} does not exist")
        try:
            return (self._modules / "nvidia" / "version").read_text().strip() or _NAMELESS
        except (FileNotFoundError, NotADirectoryError):
            return _NAMELESS if (self._modules / "nvidia" / "refcnt").exists() else ""
        except (OSError, UnicodeDecodeError) as error:
            return Missing(MissingReason.ERROR, f"{self._modules}/nvidia/version: {error}")


def live_pids(proc: Path, pids: Iterable[int]) -> Reading[tuple[int, ...]]:
    """The existing ones of the processes. Reads none of their files, which can hang for a process in D state."""
    wanted = sorted(set(pids))
    try:
        next(proc.iterdir(), None)
    except OSError as error:
        return file_missing(error)
    if not _sees_all_processes(proc):
        return Missing(MissingReason.NO_PERMISSION, "NVML hides other processes from a pid namespace of our own")
    return tuple(pid for pid in wanted if (proc / str(pid)).exists())


def _sees_all_processes(proc: Path) -> bool:
    """Whether we are in the pid namespace of the node's first process; assumed if it cannot be determined."""
    try:
        return os.readlink("/proc/self/ns/pid") == os.readlink(proc / "1" / "ns" / "pid")  # noqa: PTH115 - not a path
    except OSError:
        return True


class FabricManagerProbe:
    """Whether nv-fabricmanager runs; its pid is cached, so that /proc is scanned only when it is not there."""

    def __init__(self, proc: Path) -> None:
        self._proc = proc
        self._pid: str | None = None
        self._scanned_at = -_RESCAN_SECONDS

    def read(self) -> Reading[bool]:
        """True, False, or why /proc cannot be read."""
        if self._pid and self._is_fabric_manager(self._pid):
            return True
        if self._pid is None and time.monotonic() - self._scanned_at < _RESCAN_SECONDS:
            return False
        self._scanned_at = time.monotonic()
        try:
            pids = [name for name in os.listdir(self._proc) if name.isdecimal()]  # noqa: PTH208 - names only
        except OSError as error:
            return file_missing(error)
        self._pid = next((pid for pid in pids if self._is_fabric_manager(pid)), None)
        return self._pid is not None

    def _is_fabric_manager(self, pid: str) -> bool:
        try:
            return (self._proc / pid / "comm").read_text().startswith(_FABRIC_MANAGER)
        except OSError:
            return False  # it has ended
