"""Settings of the monitor of the host."""

from __future__ import annotations

from pydantic import Field

from gpuhealth.runtime.settings import HostRoot, Section


class Host(HostRoot):
    """Disks of the host. The limits are those at which the kubelet begins to evict pods."""

    disk_free_percent: float = Field(default=10.0, ge=0, le=100)  # of the space, for programs without privileges
    inodes_free_percent: float = Field(default=5.0, ge=0, le=100)


class HostSettings(Section):
    """Thresholds for the host."""

    host: Host = Host()
