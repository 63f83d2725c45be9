"""Reads how full the host's local disks are: the mount table of its first process, and statvfs(3) of each mount."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from gpuhealth.model.missing import Missing, MissingReason, Reading
from gpuhealth.monitors.host.readings import HostReadings, Space
from gpuhealth.runtime.files import file_missing

_LOCAL = frozenset({"btrfs", "ext2", "ext3", "ext4", "f2fs", "jfs", "vfat", "xfs", "zfs"})
"""Filesystems on disks of the host. A network filesystem whose server is away would hang; others never fill."""
_ESCAPE = re.compile(r"\\([0-7]{3})")
"""A blank, tab, newline or backslash in a name is written in octal: proc_pid_mounts(5)."""


class Mount(NamedTuple):
    """One line of a mount table."""

    device: str
    point: str
    kind: str
    options: tuple[str, ...]


def read_disks(proc: Path, root: Path) -> HostReadings | Missing:
    """The space of every local filesystem that is mounted for writing. It may block as long as a disk hangs."""
    table = proc / "1" / "mounts"
    try:
        text = table.read_bytes()
    except OSError as error:
        return file_missing(error)
    return HostReadings({mount.point: _space(root, mount.point) for mount in _written_disks(mounts(text))})


def mounts(table: bytes) -> Iterator[Mount]:
    """The lines of a mount table; one that has too few fields is left out."""
    for line in table.decode(errors="surrogateescape").splitlines():
        fields = line.split(" ")
        if len(fields) >= 4:
            device, point, kind, options = (
                _ESCAPE.sub(lambda octal: chr(int(octal[1], 8)), field) for field in fields[:4]
            )
            yield Mount(device, point, kind, tuple(options.split(",")))


def _written_disks(table: Iterator[Mount]) -> list[Mount]:
    """One mount for each device, that with the shortest path: the others are bind mounts of parts of it."""
    by_device: dict[str, Mount] = {}
    for mount in table:
        if mount.kind in _LOCAL and "rw" in mount.options and not mount.device.startswith("/dev/loop"):
            known = by_device.get(mount.device)
            if known is None or len(mount.point) < len(known.point):
                by_device[mount.device] = mount
    return sorted(by_device.values(), key=lambda mount: mount.point)


def _space(root: Path, point: str) -> Reading[Space]:
    try:
        status = os.statvfs(root / point.lstrip("/"))
    except OSError as error:
        return file_missing(error)
    except ValueError as error:
        return Missing(MissingReason.ERROR, f"{point!a}: {error}")
    unit = status.f_frsize
    return Space(status.f_blocks * unit, status.f_bavail * unit, status.f_files, status.f_favail)
