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
from gpuhealth.runtime.text import printable

_LOCAL = frozenset({"btrfs", "ext2", "ext3", "ext4", "f2fs", "jfs", "vfat", "xfs", "zfs"})
"""Filesystems on disks of the host. A network filesystem whose server is away would hang; others never fill."""
_ESCAPE = re.compile(r"\\([0-7]{3})")
"""A blank, tab, newline or backslash in a name is written in octal: proc_pid_mounts(5)."""
_OF_PODS = re.compile(r"/kubelet/(?:pods|plugins)/")
"""Volumes that the kubelet mounts for pods: that one is full is their user's concern, and no fault of the node."""


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
    return HostReadings({printable(mount.point): _space(root, mount.point) for mount in _written_disks(mounts(text))})


def mounts(table: bytes) -> Iterator[Mount]:
    """The lines of a mount table; one that has too few fields is left out."""
    for line in table.decode(errors="surrogateescape").split("\n"):
        fields = line.split(" ")
        if len(fields) >= 4:
            device, point, kind, options = (
                _ESCAPE.sub(lambda octal: chr(int(octal[1], 8)), field) for field in fields[:4]
            )
            yield Mount(device, point, kind, tuple(options.split(",")))


def _written_disks(table: Iterator[Mount]) -> list[Mount]:
    """One mount for each device, that with the shortest path: the others are bind mounts of parts of it.

    The datasets of a ZFS pool share its space, so that the pool is the device. Volumes of pods are left out.
    """
    by_device: dict[str, Mount] = {}
    for mount in table:
        if mount.kind not in _LOCAL or "rw" not in mount.options or mount.device.startswith("/dev/loop"):
            continue
        if _OF_PODS.search(mount.point):
            continue
        device = mount.device.partition("/")[0] if mount.kind == "zfs" else mount.device
        known = by_device.get(device)
        if known is None or len(mount.point) < len(known.point):
            by_device[device] = mount
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
