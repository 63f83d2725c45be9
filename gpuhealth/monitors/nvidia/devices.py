"""Device nodes, kernel module, its options, processes and management ports, from /dev, /sys and /proc."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable
from pathlib import Path

from gpuhealth.model.missing import Missing, MissingReason, Reading
from gpuhealth.model.pci import PciAddress, parse_address
from gpuhealth.monitors.nvidia.readings import KernelModule
from gpuhealth.runtime.files import file_missing
from gpuhealth.runtime.text import printable

_DEVICE_NODE = re.compile(r"nvidia(\d{1,9})", re.ASCII)
_COMM_LENGTH = 15  # the kernel truncates a process name to so many characters
_LONGEST_VPD = 1 << 15  # PCI: bytes of vital product data
_ASSIGNED = re.compile(r'^AssignGpus: "([^"\n]*)"', re.MULTILINE)
_EXCLUDED = re.compile(r"^(?:GPU Excluded|Blacklisted):\s*Yes\b", re.MULTILINE)  # the name before R470
_MEMORY = re.compile(rb"^MemTotal:\s+(\d{1,15}) kB", re.MULTILINE)
_NAMELESS = "of unknown version"
_RESCAN_SECONDS = 60.0  # a scan of /proc costs 10 ms with 1,000 processes


def device_nodes(dev: Path) -> Reading[tuple[int, ...]]:
    """The N of every /dev/nvidiaN, ascending. Those of a container say nothing: they are copies from its start."""
    if _is_of_container(dev):
        return Missing(MissingReason.NOT_SUPPORTED, f"{dev} is that of the container")
    try:
        names = [entry.name for entry in dev.iterdir()]
    except OSError as error:
        return file_missing(error)
    return tuple(sorted(int(match[1]) for name in names if (match := _DEVICE_NODE.fullmatch(name))))


def _is_of_container(dev: Path) -> bool:
    """Whether a container runtime has made this /dev: it is a tmpfs, and that of a node a devtmpfs."""
    try:
        table = Path("/proc/self/mountinfo").read_bytes().decode(errors="surrogateescape")
    except OSError:
        return False
    point = str(dev)
    mounts = [line.split(" ") for line in table.splitlines() if f" {point} " in line]
    kinds = [fields[fields.index("-") + 1] for fields in mounts if "-" in fields[:-1] and fields[4] == point]
    return kinds[-1:] == ["tmpfs"]


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


class ProcessProbe:
    """Whether a program runs; its pid is cached, so that /proc is scanned only when it is not there."""

    def __init__(self, proc: Path, program: str) -> None:
        self._proc = proc
        self._name = program[:_COMM_LENGTH]
        self._pid: str | None = None
        self._scanned_at = -_RESCAN_SECONDS

    def read(self) -> Reading[bool]:
        """True, False, or why /proc cannot be read."""
        if self._pid and self._is_running(self._pid):
            return True
        if self._pid is None and time.monotonic() - self._scanned_at < _RESCAN_SECONDS:
            return False
        self._scanned_at = time.monotonic()
        try:
            pids = [name for name in os.listdir(self._proc) if name.isdecimal()]  # noqa: PTH208 - names only
        except OSError as error:
            return file_missing(error)
        self._pid = next((pid for pid in pids if self._is_running(pid)), None)
        return self._pid is not None

    def _is_running(self, pid: str) -> bool:
        try:
            return (self._proc / pid / "comm").read_bytes().startswith(self._name.encode())
        except OSError:
            return False  # it has ended


class SwitchManagement:
    """The InfiniBand devices through which a baseboard's NVLink switches are managed, where they are not PCI functions.

    On HGX B200 and later these are ConnectX-7 functions whose vital product data contains SW_MNG. A device reads its
    vital product data slowly, so each is read once.
    """

    def __init__(self, sys: Path) -> None:
        self._devices = sys / "class" / "infiniband"
        self._known: dict[str, bool] = {}

    def read(self) -> Reading[tuple[str, ...]]:
        """Their names, such as mlx5_8; may block as long as a device does not answer."""
        try:
            names = sorted(os.listdir(self._devices))  # noqa: PTH208 - names only
        except FileNotFoundError:
            return ()
        except OSError as error:
            return file_missing(error)
        self._known = {name: known for name, known in self._known.items() if name in names}
        unread: Missing | None = None
        for name in names:
            if name not in self._known:
                try:
                    self._known[name] = _is_switch_management(self._devices / name / "device" / "vpd")
                except OSError as error:
                    unread = file_missing(error)
        found = tuple(printable(name) for name in names if self._known.get(name))
        return found or unread or ()


def _is_switch_management(vital_product_data: Path) -> bool:
    try:
        with vital_product_data.open("rb") as file:
            return b"SW_MNG" in file.read(_LONGEST_VPD)
    except FileNotFoundError:
        return False  # the device has none


def excluded_gpus(proc: Path, suspects: Iterable[PciAddress]) -> tuple[PciAddress, ...]:
    """Those of the suspects that the driver's options exclude; may block while the driver hangs.

    NVreg_ExcludedGpus has uuids, which only the driver can match with addresses; NVreg_AssignGpus lists the addresses
    of all others.
    """
    driver = proc / "driver" / "nvidia"
    assigned = _assigned(driver / "params")
    return tuple(
        address
        for address in suspects
        if (assigned and address not in assigned) or _says_excluded(driver / "gpus" / address / "information")
    )


def _assigned(params: Path) -> set[PciAddress]:
    """The GPUs in NVreg_AssignGpus; empty if the option is not set."""
    match = _ASSIGNED.search(_text(params))
    addresses = (parse_address(part) for part in match[1].split(",")) if match else ()
    return {address for address in addresses if address}


def _says_excluded(information: Path) -> bool:
    return _EXCLUDED.search(_text(information)) is not None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""  # not shown to us: nothing says that a GPU is left alone


def system_memory(proc: Path) -> Reading[int]:
    """The memory of the machine, in bytes."""
    path = proc / "meminfo"
    try:
        match = _MEMORY.search(path.read_bytes())
    except OSError as error:
        return file_missing(error)
    return int(match[1]) * 1024 if match else Missing(MissingReason.ERROR, f"{path} has no line MemTotal")
