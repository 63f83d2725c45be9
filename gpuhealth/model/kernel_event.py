"""Records of the kernel log, events parsed from them, and how completely the log is read."""

from __future__ import annotations

from datetime import datetime

import msgspec

from gpuhealth.model.finding import Action, Severity
from gpuhealth.model.missing import UNREAD, Reading
from gpuhealth.model.pci import PciSlot


class KernelRecord(msgspec.Struct, frozen=True):
    """One record of the kernel log, as read from /dev/kmsg or from a text copy."""

    text: str
    time: datetime | None = None
    sequence: int = -1  # of /dev/kmsg; -1 if the source has none
    priority: int = 6  # syslog level, 0 emergency to 7 debug


class KernelEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A kernel-log record (or an NVML event) with a known meaning."""

    kind: str  # xid, sxid, nvrm, aer, dpc, hotplug, edac, mce, oops, hung_task, fs_readonly, io_error, oom, mlx5, …
    line: str
    finding: str  # the finding's code, such as xid.79
    severity: Severity
    action: Action
    time: datetime | None = None
    code: int | None = None  # the number, for xid and sxid
    pci: PciSlot | None = None
    gpu_instance: int | None = None  # MIG GPU instance id, from "GPU-I:05"
    compute_instance: int | None = None  # MIG compute instance id, from "GPU-CI:01"
    pid: int | None = None
    process: str | None = None
    link: int | None = None  # NVLink number
    interface: str = ""  # name of the network interface, if the line names its PCI device, too
    disk: str = ""  # kernel's name of the block device, such as sda1 or dm-0
    meaning: str = ""
    sequence: int = -1


class Disks(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """Block devices with mounted filesystems, by the kernel's names, and the disks that they are part of."""

    of_node: tuple[str, ...] = ()  # a filesystem of the node itself is on them
    of_pods: tuple[str, ...] = ()  # only volumes of pods are on them


class KernelLogStatus(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """How completely the kernel log is being read."""

    source: str  # "kmsg", or "nvml" where only XID events reach us
    records: int = 0  # read since the reader started
    lost_records: int = 0  # overwritten before they were read, since the last round
    lag_seconds: float = 0.0
    not_read: str = ""  # which records of this boot were not looked at, where some were not
    disks: Reading[Disks] = UNREAD  # lines about block devices are judged by them
