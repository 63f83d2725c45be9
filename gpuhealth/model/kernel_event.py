"""Records of the kernel log, and the events that they mean."""

from __future__ import annotations

from datetime import datetime

import msgspec

from gpuhealth.model.finding import Action, Severity


class KernelRecord(msgspec.Struct, frozen=True):
    """One record of the kernel log, as read from /dev/kmsg or a text of it."""

    text: str
    time: datetime | None = None
    sequence: int = -1  # of /dev/kmsg; -1 where the source has none
    priority: int = 6  # syslog level, 0 emergency to 7 debug


class KernelEvent(msgspec.Struct, frozen=True):
    """A kernel-log record (or an NVML event) that means something."""

    kind: (
        str  # xid, sxid, nvrm, aer, edac, mce, hung_task, soft_lockup, fs_readonly, io_error, oom, mlx5, segfault, ...
    )
    line: str
    finding: str  # the finding's code, such as xid.79
    severity: Severity
    action: Action
    time: datetime | None = None
    code: int | None = None  # the number, for xid and sxid
    pci: str | None = None  # dddd:bb:dd, lower case
    gpu_instance: int | None = None  # MIG GPU instance id, from "GPU-I:05"
    compute_instance: int | None = None  # MIG compute instance id, from "GPU-CI:01"
    pid: int | None = None
    process: str | None = None
    link: int | None = None  # NVLink number
    interface: str = ""  # name of the network interface, of a line that names its PCI device too
    meaning: str = ""
    sequence: int = -1
