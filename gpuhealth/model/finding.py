"""Findings and the other outcomes of checks."""

from __future__ import annotations

import enum
from datetime import datetime
from typing import TypeAlias

import msgspec

from gpuhealth.model.component import Component
from gpuhealth.model.missing import Missing


class Severity(enum.StrEnum):
    """Severity of a finding: info is only recorded, a warning degrades, a critical makes unhealthy."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        """0 for info, 1 for warning, 2 for critical: for comparing and sorting."""
        return _SEVERITY_RANK[self]


_SEVERITY_RANK = {Severity.INFO: 0, Severity.WARNING: 1, Severity.CRITICAL: 2}


class Action(enum.StrEnum):
    """Recommended action of an operator for a finding."""

    NONE = "none"
    RESTART_WORKLOAD = "restart_workload"
    RESET_GPU = "reset_gpu"
    REBOOT_NODE = "reboot_node"
    INSPECT_HARDWARE = "inspect_hardware"
    UPDATE_SOFTWARE = "update_software"
    CONTACT_SUPPORT = "contact_support"


class Evidence(msgspec.Struct, frozen=True, omit_defaults=True):
    """Evidence for a finding, complete enough to judge it without access to the node."""

    source: str  # the NVML call, file or log that was read
    reading: str = ""
    threshold: str = ""
    time: datetime | None = None
    line: str = ""  # the raw kernel-log line


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One fault of one component."""

    code: str  # stable, subject.what
    severity: Severity
    component: Component
    message: str
    action: Action
    evidence: Evidence
    first_seen: datetime
    last_seen: datetime
    clears_when: str
    stands_for: tuple[str, ...] = ()  # codes of ended or forgotten faults for which this one was raised


class Clean(msgspec.Struct, frozen=True):
    """A check read what it needed and found nothing."""

    code: str
    component: Component


class NotChecked(msgspec.Struct, frozen=True):
    """A check could not read what it needed: neither clean nor a finding."""

    code: str
    component: Component
    reason: Missing


Outcome: TypeAlias = Finding | Clean | NotChecked
