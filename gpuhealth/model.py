"""The nouns: what is read, what is found, and what follows from it.

Every noun is a frozen msgspec structure: typed, cheap (a round makes thousands of them) and JSON without further code.
Times are aware datetimes in UTC; durations are seconds.
"""

from __future__ import annotations

import enum
from datetime import datetime
from typing import TypeAlias, TypeVar

import msgspec

T = TypeVar("T")

NODE = "node"
"""The component of a finding that concerns no single GPU."""


class Severity(enum.StrEnum):
    """How bad a finding is: info is only recorded, a warning degrades, a critical makes unhealthy."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        """0 for info, 1 for warning, 2 for critical: for comparing and sorting."""
        return _SEVERITY_RANK[self]


_SEVERITY_RANK = {Severity.INFO: 0, Severity.WARNING: 1, Severity.CRITICAL: 2}


class Action(enum.StrEnum):
    """What an operator should do about a finding."""

    NONE = "none"
    RESTART_WORKLOAD = "restart_workload"
    RESET_GPU = "reset_gpu"
    REBOOT_NODE = "reboot_node"
    INSPECT_HARDWARE = "inspect_hardware"
    UPDATE_SOFTWARE = "update_software"
    CONTACT_SUPPORT = "contact_support"


class State(enum.StrEnum):
    """What a verdict says of a node or a GPU. Unknown is no kind of healthy."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"
    UNKNOWN = "unknown"

    @staticmethod
    def combined(states: list[State]) -> State:
        """The state of a whole from those of its parts; of no parts nothing is known."""
        for worst in (State.UNHEALTHY, State.UNKNOWN, State.DEGRADED):
            if worst in states:
                return worst
        return State.HEALTHY if states else State.UNKNOWN


class MissingReason(enum.StrEnum):
    """Why a reading has no value."""

    NOT_SUPPORTED = "not_supported"  # this hardware or driver has no such thing: nothing to check
    GPU_LOST = "gpu_lost"  # NVML 15
    RESET_REQUIRED = "reset_required"  # NVML 16
    CORRUPTED_INFOROM = "corrupted_inforom"  # NVML 14
    TIMEOUT = "timeout"  # the driver has not answered before the deadline
    RELEASED = "released"  # the driver was let go on request
    NOT_INSTALLED = "not_installed"  # no library, or no such file
    NOT_LOADED = "not_loaded"  # NVML 9: the kernel module is not there
    MISMATCH = "mismatch"  # NVML 18: library and kernel module are of different versions
    NO_PERMISSION = "no_permission"
    NO_HISTORY = "no_history"  # a rate needs an earlier reading
    DRIVER_ERROR = "driver_error"  # NVML 8, 10, 11, 17, 20, 28, 999: the driver or the GPU failed and does not say how
    AGENT_FAULT = "agent_fault"  # our own process failed: says nothing about the node
    ERROR = "error"  # anything else, such as an answer of an unexpected type; the detail says what was seen


class Missing(msgspec.Struct, frozen=True, tag="missing"):
    """In the place of a value that could not be read."""

    reason: MissingReason
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else str(self.reason)


Reading: TypeAlias = T | Missing
"""A value, or the reason why there is none. Not measured is not healthy: no default stands in for a value."""


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


class Evidence(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why a finding was raised: enough to judge it without the node."""

    source: str  # the NVML call, file or log that was read
    reading: str = ""
    threshold: str = ""
    time: datetime | None = None
    line: str = ""  # the raw kernel-log line


class Finding(msgspec.Struct, frozen=True):
    """One thing that is wrong with one component."""

    code: str  # stable, subject.what
    severity: Severity
    component: str  # "node", or the GPU's uuid (its PCI address while the uuid cannot be read), or a device
    message: str
    action: Action
    evidence: Evidence
    first_seen: datetime
    last_seen: datetime
    clears_when: str
    gpu: str = ""  # uuid (or PCI address) of the GPU concerned; empty for the node
    mig_instance: str = ""  # uuid of the MIG device concerned, where the fault names one


class Clean(msgspec.Struct, frozen=True):
    """A check read what it needed and found nothing."""

    code: str
    component: str


class NotChecked(msgspec.Struct, frozen=True):
    """A check could not read what it needed: neither clean nor a finding."""

    code: str
    component: str
    reason: Missing


Outcome: TypeAlias = Finding | Clean | NotChecked


class MigVerdict(msgspec.Struct, frozen=True):
    """One MIG device of a GPU."""

    uuid: str
    gpu_instance: int
    verdict: State


class GpuVerdict(msgspec.Struct, frozen=True):
    """One GPU of a verdict."""

    index: int
    uuid: str
    pci: str
    model: str
    verdict: State
    mig: tuple[MigVerdict, ...] = ()


class NotCovered(msgspec.Struct, frozen=True):
    """A check that did not happen, and why."""

    check: str
    reason: str


class Coverage(msgspec.Struct, frozen=True):
    """Which finding codes were looked for, and which could not be."""

    checked: tuple[str, ...]
    not_checked: tuple[NotCovered, ...]


class Verdict(msgspec.Struct, frozen=True):
    """What is to be thought of a node at one time."""

    node: str
    time: datetime
    verdict: State
    gpus: tuple[GpuVerdict, ...]
    findings: tuple[Finding, ...]
    coverage: Coverage

    @property
    def is_known(self) -> bool:
        """Whether nothing of it is unknown."""
        return State.UNKNOWN not in {self.verdict, *(gpu.verdict for gpu in self.gpus)}
