"""Readings of the host's disks."""

from __future__ import annotations

import msgspec

from gpuhealth.model.missing import Reading


class Space(msgspec.Struct, frozen=True, tag=True):
    """What a filesystem has left, by statvfs(3)."""

    total_bytes: int
    free_bytes: int  # for programs without privileges
    total_inodes: int  # 0 for filesystems that have no fixed number, such as btrfs
    free_inodes: int

    @property
    def free_percent(self) -> float:
        """Free space in percent of the total."""
        return 100.0 * self.free_bytes / self.total_bytes if self.total_bytes else 100.0

    @property
    def free_inodes_percent(self) -> float:
        """Free inodes in percent of the total; 100 where their number is not fixed."""
        return 100.0 * self.free_inodes / self.total_inodes if self.total_inodes else 100.0


class HostReadings(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """Local filesystems that are mounted for writing, by mount point."""

    disks: dict[str, Reading[Space]] = {}
