"""GPUHealthReport: one per node, owned by its Node. Written by the agent; `drain`, `silentSince` by the controller."""

from __future__ import annotations

import enum
from typing import Annotated

import msgspec

from gpuhealth.api.resource import Column, Count, Definition, Int64, NonEmpty, Time, one_of
from gpuhealth.model import finding as model
from gpuhealth.model.component import Kind
from gpuhealth.model.time import ZonedTime, format_time
from gpuhealth.model.verdict import State

_TEXT_LIMIT = 2048
"""Characters of a message or a reading: a report holds up to 500 findings, and an object at most 1.5 MB."""


class QuarantineState(enum.StrEnum):
    """Quarantine state of the node: taken out of service by the agent, or the reason why not."""

    NONE = "none"
    QUARANTINED = "quarantined"
    BLOCKED = "blocked"  # a budget has no free slot, or slots cannot be requested: the node stays in service
    AWAITING_TEST = "awaiting_test"  # the fault has cleared; the node stays out until a burn-in has passed
    DISMISSED = "dismissed"  # a person ended the quarantine
    WOULD_QUARANTINE = "would_quarantine"  # mode observe


class QuarantineMark(enum.StrEnum):
    """How the node is kept out of service."""

    TAINT = "taint"
    CORDON = "cordon"


class DrainPhase(enum.StrEnum):
    """Progress of a drain."""

    DRAINING = "draining"
    DRAINED = "drained"  # no pod is left to evict
    CANCELLED = "cancelled"  # the node went back into service before that
    ENDED = "ended"  # the node went back into service after that


class BurninLevel(enum.StrEnum):
    """Duration class of a burn-in."""

    QUICK = "quick"
    STANDARD = "standard"
    LONG = "long"


class BurninReason(enum.StrEnum):
    """Reason of a burn-in."""

    MANUAL = "manual"
    PREFLIGHT = "preflight"
    PERIODIC = "periodic"
    RETURN = "return"  # before the node goes back into service


_COMPLETED = one_of(("passed", "failed"))
_ENDED = one_of(("passed", "failed", "stopped", "skipped"))


class Gpu(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One GPU of the inventory."""

    index: Count | None = None
    """NVML's index. Absent for a GPU that NVML no longer enumerates."""
    uuid: str
    """UUID of the GPU, or its PCI address while the UUID cannot be read."""
    pci: str = ""
    """PCI address."""
    model: str = ""
    """Product name as the driver reports it."""
    serial: str = ""
    """Serial number of the board."""
    verdict: Annotated[str, one_of(State)] = State.UNKNOWN.value  # a plain text: readers intern it
    """Verdict on this GPU."""


class Inventory(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The node's GPUs and their driver."""

    driver: str = ""
    """Version of the NVIDIA driver."""
    gpu_count: Count = 0
    """Number of GPUs, missing ones included."""
    gpus: tuple[Gpu, ...] = ()
    """The GPUs of the node."""


class Evidence(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Evidence for the finding, complete enough to judge it without access to the node."""

    source: str = ""
    """The NVML call, file or log that was read."""
    reading: str = ""
    """The value that was read."""
    threshold: str = ""
    """The limit that the reading is compared with."""
    time: Time = ""
    """When it was read."""
    line: str = ""
    """The kernel-log line."""


class Component(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """The node, or a part of it."""

    kind: Annotated[str, one_of(Kind)]
    """Kind of the component."""
    id: NonEmpty
    """"node", the uuid of a GPU (its PCI address while the uuid cannot be read), a mount point, and so on."""
    parent: str = ""
    """Id of the component that contains this one. Absent if that is the node."""


class Finding(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """One fault on one component."""

    code: NonEmpty
    """Code of the fault, subject.what: `gpuhealth explain CODE` explains it."""
    severity: Annotated[str, one_of(model.Severity)]
    """info, warning or critical."""
    component: Component
    """The faulty component."""
    message: str
    """What was found, in one sentence."""
    action: Annotated[str, one_of(model.Action)]
    """Recommended action for an operator."""
    evidence: Evidence = Evidence()
    first_seen: Time = ""
    """When the fault was first seen."""
    last_seen: Time = ""
    """Written along with the next change, so it may be older than the last reading."""
    clears_when: str = ""
    """Evidence that ends the finding."""


class NotChecked(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A check that could not be made."""

    check: str = ""
    """The finding code that was not checked."""
    reason: str = ""
    """Why it was not checked."""


class DriverReleased(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Why NVML is not measured: the agent has closed the driver on request, and the verdict is the one before that.

    Empty while NVML is measured.
    """

    reasons: tuple[str, ...] = ()
    """Who requested it: annotations, labels or signals."""
    since: Time = ""
    """When the driver was closed."""


class Quarantine(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Quarantine of the node by the agent: state and reason."""

    state: Annotated[str, one_of(QuarantineState)] = QuarantineState.NONE
    """
    blocked: a budget has no free slot, or another program removes the taint, and the node stays in service.
    awaiting_test: the fault has cleared, and the node stays out until a burn-in has passed. dismissed: a person ended
    the quarantine. would_quarantine: mode observe marks nothing.
    """
    mark: Annotated[str, one_of(("", *QuarantineMark))] = ""
    """What keeps work away from a node that is out of service: the taint, or a cordon. Empty for any other."""
    code: str = ""
    """Code of the finding, or `manual` for a manual request."""
    since: ZonedTime | None = None
    """When the node was taken out of service."""
    drain: bool = False
    """Whether the node's pods should be evicted."""
    budget: str = ""
    """The QuarantineBudget that has no free slot."""
    limit: str = ""
    """The limit of that budget that has been reached. maxPerFault means a suspect driver. marks_removed: no limit, but
    another program that removes the taint."""
    reason: str = ""
    """Why the node stays in service, in one sentence."""
    slots: tuple[str, ...] = ()
    """The budget slots (Leases) that the node holds."""

    @property
    def asks_for_drain(self) -> bool:
        """Whether the agent requests that the node's pods be evicted now."""
        return self.state == QuarantineState.QUARANTINED and self.drain


class Drain(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Eviction of the node's pods. Written by the controller, which continues from here after a restart.

    The deadline may be edited manually during the drain.
    """

    phase: Annotated[str, one_of(DrainPhase)] = ""
    """
    draining; drained: no pod is left to evict; cancelled: the node went back into service before that; ended: it went
    back after that.
    """
    quarantine_since: ZonedTime | None = None
    """The quarantine that this drain belongs to, by its time."""
    started_at: ZonedTime | None = None
    """When the drain began."""
    deadline: ZonedTime | None = None
    """After this time pods are deleted, regardless of their disruption budgets."""
    ended_at: ZonedTime | None = None
    """When the drain was over."""
    remaining: Count = 0
    """Pods still to be evicted."""
    evicted: Count = 0
    """Pods evicted so far."""
    deleted: Count = 0
    """Pods deleted at the deadline."""
    message: str = ""
    """Progress in one sentence, with the reason of the last refused eviction."""


class BurninTest(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """The last result of one test on one GPU."""

    status: Annotated[str, _COMPLETED] = ""
    """passed or failed."""
    message: str = ""
    """Why the test failed."""
    started_at: Time = ""
    """When the test began."""
    figures: dict[str, float] = {}
    """Measurements with four digits; units are in the names."""
    digests: dict[str, str] = {}
    """
    For repeated products: product -> the first 16 hex digits of the result's SHA-256. Comparable between GPUs
    of a model with the same software.
    """
    software: dict[str, str] = {}
    """Versions that the digests depend on."""


class BurninRun(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """How one run ended for one GPU."""

    started_at: Time = ""
    """When the run began."""
    ended_at: Time = ""
    """When the run was over."""
    level: Annotated[str, one_of(BurninLevel)] = ""
    """How long the run was meant to take."""
    reason: Annotated[str, one_of(BurninReason)] = ""
    """Why the run was started."""
    status: Annotated[str, _ENDED] = ""
    """passed, failed, stopped or skipped."""


class GpuBurnin(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """
    The last completed run on this GPU (passed or failed), the last result of each test, and the last runs, stopped
    ones included.
    """

    model: str = ""
    """Product name of the GPU."""
    level: Annotated[str, one_of(BurninLevel)] = ""
    """How long the run was meant to take."""
    reason: Annotated[str, one_of(BurninReason)] = ""
    """Why the run was started."""
    status: Annotated[str, _COMPLETED] = ""
    """passed or failed."""
    started_at: Time = ""
    """When the run began."""
    ended_at: Time = ""
    """When the run was over."""
    boot_id: str = msgspec.field(name="bootID", default="")
    """Boot in which the run took place."""
    tests: dict[str, BurninTest] = {}
    """By name: the last conclusive result (passed or failed) of each test."""
    history: Annotated[tuple[BurninRun, ...], msgspec.Meta(extra_json_schema={"maxItems": 10})] = ()
    """The newest first."""


class Burnin(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Active tests of the node's GPUs. Written by the agent, from the results on the node."""

    tested_at: ZonedTime | None = None
    """
    When the GPU that has waited longest was last tested to the end. Absent while there is one that never was.
    """
    gpus: dict[str, GpuBurnin] = {}
    """By uuid. A GPU that was never tested is absent."""


class ReportStatus(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The node's full health status. The agent writes all but `drain` and `silentSince`, and only changed ones."""

    verdict: Annotated[str, one_of(State)] = State.UNKNOWN
    """Verdict on the node: the worst of its components."""
    worst: str = ""
    """Code of the worst finding."""
    boot_id: str = msgspec.field(name="bootID", default="")
    """Boot that the report is about."""
    agent_version: str = ""
    """Version of the agent that wrote the report."""
    settings_digest: str = ""
    """The first twelve hexadecimal digits of the SHA-256 of the settings file that the agent uses."""
    inventory: Inventory = Inventory()
    findings: tuple[Finding, ...] = ()
    """The worst first."""
    findings_omitted: Count = 0
    """Number of findings omitted for lack of space."""
    not_checked: tuple[NotChecked, ...] = ()
    """Checks that could not be made, which never count as healthy."""
    driver_released: DriverReleased = DriverReleased()
    quarantine: Quarantine = Quarantine()
    counters: dict[str, Int64] = {}
    """Findings raised since the node's journal began, by code, for the fleet's statistics."""
    would_do: tuple[str, ...] = ()
    """In mode observe, actions that would have been taken."""
    drain: Drain | None = None
    burnin: Burnin | None = None
    silent_since: Time | None = None
    """Since when no agent has been ready on the node: the other fields are those of before. Written by the controller,
    and absent while there is one."""


class GPUHealthReport(msgspec.Struct, frozen=True, kw_only=True):
    """Details of the health of one node's GPUs that do not fit in the marks on the Node. Written only on changes."""

    status: ReportStatus | None = None


DEFINITION = Definition(
    kind="GPUHealthReport",
    plural="gpuhealthreports",
    short_name="ghr",
    struct=GPUHealthReport,
    columns=(
        Column("Verdict", ".status.verdict"),
        Column("Silent", ".status.silentSince", "date"),
        Column("Worst", ".status.worst"),
        Column("Quarantine", ".status.quarantine.state"),
        Column("Since", ".status.quarantine.since", "date"),
        Column("Drain", ".status.drain.phase"),
        Column("GPUs", ".status.inventory.gpuCount", "integer"),
        Column("Driver", ".status.inventory.driver"),
        Column("Tested", ".status.burnin.testedAt", "date"),
        Column("Age", ".metadata.creationTimestamp", "date"),
        Column("Mark", ".status.quarantine.mark", wide=True),
        Column("Blocked by", ".status.quarantine.budget", wide=True),
        Column("Reason", ".status.quarantine.reason", wide=True),
    ),
)


def finding_of(found: model.Finding) -> Finding:
    """Convert a finding to its form in the report. The only place that uses the fields of both."""
    evidence = found.evidence
    return Finding(
        code=found.code,
        severity=found.severity,
        component=Component(
            kind=found.component.kind, id=found.component.id[:_TEXT_LIMIT], parent=found.component.parent[:_TEXT_LIMIT]
        ),
        message=found.message[:_TEXT_LIMIT],
        action=found.action,
        evidence=Evidence(
            source=evidence.source[:_TEXT_LIMIT],
            reading=evidence.reading[:_TEXT_LIMIT],
            threshold=evidence.threshold[:_TEXT_LIMIT],
            time=format_time(evidence.time) if evidence.time else "",
            line=evidence.line[:_TEXT_LIMIT],
        ),
        first_seen=format_time(found.first_seen),
        last_seen=format_time(found.last_seen),
        clears_when=found.clears_when,
    )


def not_checked(check: str, reason: str) -> NotChecked:
    """Convert a check that could not be made to its form in the report."""
    return NotChecked(check=check, reason=reason[:_TEXT_LIMIT])
