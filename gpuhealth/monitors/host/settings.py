"""Settings of the monitor of the host."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from gpuhealth.runtime.settings import Section


class Host(Section):
    """Disks of the host. The limits are those at which the kubelet begins to evict pods."""

    root: Path = Path("/")  # where the host's root filesystem is mounted, with all mounts below it
    disk_free_percent: float = Field(default=10.0, ge=0, le=100)  # of the space, for programs without privileges
    inodes_free_percent: float = Field(default=5.0, ge=0, le=100)


class HostSettings(Section):
    """Thresholds for the host."""

    host: Host = Host()
