"""What the tests of findings share: outcomes as checks return them, and trackers that have applied them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec

from gpuhealth.model.burnin_run import BurninRun, TestStatus
from gpuhealth.model.component import Component, ComponentInfo, Kind, gpu
from gpuhealth.model.finding import Clean, Evidence, Finding, NotChecked, Severity
from gpuhealth.model.missing import Missing, MissingReason
from gpuhealth.model.tracker import Change, ChangeKind, FindingTracker, NodeFacts
from gpuhealth.model.tracker_state import TrackerState
from gpuhealth.monitors.judge import tracker_rules
from gpuhealth.monitors.registry import code_of
from gpuhealth.monitors.settings import Settings
from testing.burnin_results import PASSED, result, run
from testing.burnin_results import START as BURNIN_START

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
GPU, OTHER = gpu("GPU-1"), gpu("GPU-2")
BOOT = "boot-1"
TIMEOUT = Missing(MissingReason.TIMEOUT)


def at(seconds: float) -> datetime:
    """So many seconds after the start."""
    return START + timedelta(seconds=seconds)


def mig(uuid: str, parent: Component = GPU) -> Component:
    """A MIG device of a GPU."""
    return Component(Kind.MIG, uuid, parent.id)


def found(
    code: str, severity: Severity = Severity.CRITICAL, component: Component = GPU, time: datetime = START
) -> Finding:
    """A finding as a check returns it."""
    return Finding(
        code=code,
        severity=severity,
        component=component,
        message="text",
        action=code_of(code).action,
        evidence=Evidence("test"),
        first_seen=time,
        last_seen=time,
        clears_when="",
    )


def clean(code: str, component: Component = GPU) -> Clean:
    """A clean outcome of a check."""
    return Clean(code, component)


def not_checked(code: str, component: Component = GPU, reason: Missing = TIMEOUT) -> NotChecked:
    """The outcome of a check that could not be made."""
    return NotChecked(code, component, reason)


def tracker(
    settings: Settings | None = None,
    state: TrackerState | None = None,
    one_look: bool = False,
    node_labels: dict[str, str] | None = None,
) -> FindingTracker:
    """The tracker of a node with these settings and labels."""
    return FindingTracker(tracker_rules(settings or Settings(), node_labels), state, one_look=one_look)


def facts(
    *gpus: Component | ComponentInfo, time: datetime = START, runs: tuple[BurninRun, ...] = (), **changes: object
) -> NodeFacts:
    """A round in which NVML has listed exactly these GPUs and their MIG devices."""
    infos = tuple(info if isinstance(info, ComponentInfo) else ComponentInfo(component=info) for info in gpus)
    known = NodeFacts(
        node="node-1",
        time=time,
        boot_id=BOOT,
        components=infos,
        complete=frozenset({Kind.GPU}),
        burnins=runs,
    )
    return msgspec.structs.replace(known, **changes)


def kinds(changes: list[Change]) -> list[tuple[ChangeKind, str]]:
    """What happened to which code."""
    return [(change.kind, change.finding.code) for change in changes]


def resolved(
    tracked: FindingTracker, *runs: BurninRun, gpus: tuple[Component, ...] = (GPU,), time: float = 1000
) -> list[Change]:
    """What changes by a complete round with these GPUs and burn-in results."""
    return tracked.resolve(facts(*gpus, time=at(time), runs=runs))


def burnin_at(seconds: float, *gpus: Component, status: TestStatus = PASSED) -> BurninRun:
    """A burn-in of these GPUs that began so many seconds after the start."""
    results = (result(gpu=gpu.id, status=status) for gpu in gpus)
    return run(*results, at=(at(seconds) - BURNIN_START).total_seconds())
