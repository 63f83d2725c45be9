"""GPUHealthReport: one per node, owned by its Node. Written by the agent, and `drain` by the controller."""

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
    """Whether the node is out of service by the agent's hand, and if not, why not."""

    NONE = "none"
    QUARANTINED = "quarantined"
    BLOCKED = "blocked"  # a budget has no free slot, or none could be sought: the node stays in service
    AWAITING_TEST = "awaiting_test"  # the fault has cleared; the node stays out until a burn-in has passed
    DISMISSED = "dismissed"  # a person ended the quarantine
    WOULD_QUARANTINE = "would_quarantine"  # mode observe


class DrainPhase(enum.StrEnum):
    """How far a drain is."""

    DRAINING = "draining"
    DRAINED = "drained"  # no pod is left to evict
    CANCELLED = "cancelled"  # the node went back into service before that
    ENDED = "ended"  # the node went back into service after that


class BurninLevel(enum.StrEnum):
    """How long a burn-in takes."""

    QUICK = "quick"
    STANDARD = "standard"
    LONG = "long"


class BurninReason(enum.StrEnum):
    """Why a burn-in ran."""

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
    pci: str = ""
    """PCI address."""
    model: str = ""
    serial: str = ""
    verdict: Annotated[str, one_of(State)] = State.UNKNOWN.value  # a plain text: readers intern it


class Inventory(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The node's GPUs and their driver."""

    driver: str = ""
    """Version of the NVIDIA driver."""
    gpu_count: Count = 0
    gpus: tuple[Gpu, ...] = ()


class Evidence(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Why the finding was raised: enough to judge it without the node."""

    source: str = ""
    """The NVML call, file or log that was read."""
    reading: str = ""
    threshold: str = ""
    time: Time = ""
    line: str = ""
    """The kernel-log line."""


class Component(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """The node, or a part of it."""

    kind: Annotated[str, one_of(Kind)]
    id: NonEmpty
    """"node", the uuid of a GPU (its PCI address while the uuid cannot be read), a mount point, and so on."""
    parent: str = ""
    """Id of the component that this one is a part of. Absent for a direct part of the node."""


class Finding(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """One fault on one component."""

    code: NonEmpty
    """What is wrong, as subject.what: `gpuhealth explain CODE` explains it."""
    severity: Annotated[str, one_of(model.Severity)]
    component: Component
    """What the finding is about."""
    message: str
    action: Annotated[str, one_of(model.Action)]
    """What an operator should do."""
    evidence: Evidence = Evidence()
    first_seen: Time = ""
    last_seen: Time = ""
    """Written along with the next change, so it may be older than the last reading."""
    clears_when: str = ""
    """What ends the finding."""


class NotChecked(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A check that could not be made."""

    check: str = ""
    """The finding code that was not looked for."""
    reason: str = ""


class DriverReleased(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Why NVML is not measured: the agent has closed the driver on request, and the verdict is the one before that.

    Empty while NVML is measured.
    """

    reasons: tuple[str, ...] = ()
    since: Time = ""


class Quarantine(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Whether the node is out of service by the agent's hand, and why."""

    state: Annotated[str, one_of(QuarantineState)] = QuarantineState.NONE
    """
    blocked: a budget has no free slot, and the node stays in service. awaiting_test: the fault has cleared, and the
    node stays out until a burn-in has passed. dismissed: a person ended the quarantine. would_quarantine: mode observe
    marks nothing.
    """
    code: str = ""
    """Code of the finding, or `manual` for a person's request."""
    since: ZonedTime | None = None
    drain: bool = False
    """Whether the node's pods should be evicted."""
    budget: str = ""
    """The QuarantineBudget that has no free slot."""
    limit: str = ""
    """The limit of that budget that is reached. maxPerFault means a suspect driver."""
    reason: str = ""
    slots: tuple[str, ...] = ()
    """The budget slots (Leases) that the node holds."""

    @property
    def asks_for_drain(self) -> bool:
        """Whether the agent wants the node's pods to be evicted now."""
        return self.state == QuarantineState.QUARANTINED and self.drain


class Drain(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Eviction of the node's pods. Written by the controller, which continues from here after a restart.

    The deadline may be changed by hand while the drain lasts.
    """

    phase: Annotated[str, one_of(DrainPhase)] = ""
    """
    draining; drained: no pod is left to evict; cancelled: the node went back into service before that; ended: it went
    back after that.
    """
    quarantine_since: ZonedTime | None = None
    """The quarantine that this drain belongs to, by its time."""
    started_at: ZonedTime | None = None
    deadline: ZonedTime | None = None
    """From then on pods are deleted, whatever their disruption budgets allow."""
    ended_at: ZonedTime | None = None
    remaining: Count = 0
    """Pods that should go and are still there."""
    evicted: Count = 0
    deleted: Count = 0
    """Pods deleted at the deadline."""
    message: str = ""


class BurninTest(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """The last result of one test on one GPU."""

    status: Annotated[str, _COMPLETED] = ""
    message: str = ""
    started_at: Time = ""
    figures: dict[str, float] = {}
    """What was measured, with four digits; units are in the names."""
    digests: dict[str, str] = {}
    """
    Of repeated products, what was computed: the first 16 hex digits of the result's SHA-256. Comparable between GPUs
    of a model with the same software.
    """
    software: dict[str, str] = {}
    """Versions that the digests depend on."""


class BurninRun(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """How one run ended for one GPU."""

    started_at: Time = ""
    ended_at: Time = ""
    level: Annotated[str, one_of(BurninLevel)] = ""
    reason: Annotated[str, one_of(BurninReason)] = ""
    status: Annotated[str, _ENDED] = ""


class GpuBurnin(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """
    The last completed run on this GPU (passed or failed), the last result of each test, and the last runs, stopped
    ones included.
    """

    model: str = ""
    level: Annotated[str, one_of(BurninLevel)] = ""
    reason: Annotated[str, one_of(BurninReason)] = ""
    status: Annotated[str, _COMPLETED] = ""
    started_at: Time = ""
    ended_at: Time = ""
    boot_id: str = msgspec.field(name="bootID", default="")
    tests: dict[str, BurninTest] = {}
    """By name: of each test the last result that is passed or failed."""
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
    """The node's health in full. The agent writes all fields but `drain`, and writes only what has changed."""

    verdict: Annotated[str, one_of(State)] = State.UNKNOWN
    worst: str = ""
    """Code of the worst finding."""
    boot_id: str = msgspec.field(name="bootID", default="")
    agent_version: str = ""
    inventory: Inventory = Inventory()
    findings: tuple[Finding, ...] = ()
    """The worst first."""
    findings_omitted: Count = 0
    """Findings that the report has no room for."""
    not_checked: tuple[NotChecked, ...] = ()
    driver_released: DriverReleased = DriverReleased()
    quarantine: Quarantine = Quarantine()
    counters: dict[str, Int64] = {}
    """Findings raised since the node's journal began, by code, for the fleet's statistics."""
    would_do: tuple[str, ...] = ()
    """In mode observe, what would have been done."""
    drain: Drain | None = None
    burnin: Burnin | None = None


class GPUHealthReport(msgspec.Struct, frozen=True, kw_only=True):
    """The health of one node's GPUs: what the marks on the Node have no room for. Written only when it changes."""

    status: ReportStatus | None = None


DEFINITION = Definition(
    kind="GPUHealthReport",
    plural="gpuhealthreports",
    short_name="ghr",
    struct=GPUHealthReport,
    columns=(
        Column("Verdict", ".status.verdict"),
        Column("Worst", ".status.worst"),
        Column("Quarantine", ".status.quarantine.state"),
        Column("Since", ".status.quarantine.since", "date"),
        Column("Drain", ".status.drain.phase"),
        Column("GPUs", ".status.inventory.gpuCount", "integer"),
        Column("Driver", ".status.inventory.driver"),
        Column("Tested", ".status.burnin.testedAt", "date"),
        Column("Age", ".metadata.creationTimestamp", "date"),
        Column("Blocked by", ".status.quarantine.budget", wide=True),
        Column("Reason", ".status.quarantine.reason", wide=True),
    ),
)


def finding_of(found: model.Finding) -> Finding:
    """A finding as the report has it. The only place that knows the fields of both."""
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
    """A check that could not be made, as the report has it."""
    return NotChecked(check=check, reason=reason[:_TEXT_LIMIT])
