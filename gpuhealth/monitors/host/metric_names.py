"""Metrics of the host's disks: name, type, help and labels of each, written once."""

from __future__ import annotations

from gpuhealth.api.metrics import gauge

DISK_FREE = gauge("host_disk_free_ratio", "Free space of a local disk of the host", "mount")
DISK_FREE_INODES = gauge("host_disk_free_inodes_ratio", "Free inodes of a local disk of the host", "mount")
