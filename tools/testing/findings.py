"""What the tests of findings share: outcomes as checks give them, and findings that have taken them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec

from gpuhealth import monitors as checks
from gpuhealth.model.finding import Clean, Evidence, Finding, Severity
from gpuhealth.model.history import History
from gpuhealth.model.missing import Missing, MissingReason
from gpuhealth.model.tracker import Change, ChangeKind, Findings, Ledger
from gpuhealth.monitors.burnin_results.readings import BurninReadings, BurninRun, TestStatus
from gpuhealth.monitors.nvidia.readings import GpuReadings, NvmlReadings
from gpuhealth.monitors.readings import NodeReadings
from gpuhealth.runtime.settings import Settings
from testing.burnin_results import PASSED, result, run
from testing.burnin_results import START as BURNIN_START

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
GPU = "GPU-1"
BOOT = "boot-1"
TIMEOUT = Missing(MissingReason.TIMEOUT)


def at(seconds: float) -> datetime:
    """So many seconds after the start."""
    return START + timedelta(seconds=seconds)


def found(
    code: str, severity: Severity = Severity.CRITICAL, component: str = GPU, mig: str = "", time: datetime = START
) -> Finding:
    """A finding as a check would give it."""
    gpu = component if component.startswith("GPU") else ""
    action = checks.code(code).action
    return Finding(code, severity, component, "text", action, Evidence("test"), time, time, "", gpu, mig)


def clean(code: str, component: str = GPU) -> Clean:
    """A clean outcome of a check."""
    return Clean(code, component)


def findings(settings: Settings | None = None, ledger: Ledger | None = None, one_look: bool = False) -> Findings:
    """Findings of a node."""
    return Findings(settings or Settings(), ledger, one_look=one_look)


def readings(*gpus: GpuReadings, time: datetime = START) -> NodeReadings:
    """A round in which NVML has answered for these GPUs."""
    return NodeReadings("node-1", time, BOOT, NvmlReadings(answered=True, gpus=gpus))


def kinds(changes: list[Change]) -> list[tuple[ChangeKind, str]]:
    """What happened to which code."""
    return [(change.kind, change.finding.code) for change in changes]


def settled(kept: Findings, *runs: BurninRun, gpus: tuple[str, ...] = (GPU,), time: float = 1000) -> list[Change]:
    """What changes by a complete round with these GPUs and burn-in results."""
    listed = tuple(GpuReadings(index=index, uuid=gpu) for index, gpu in enumerate(gpus))
    seen = msgspec.structs.replace(readings(*listed, time=at(time)), burnin=BurninReadings(runs))
    return kept.settle(seen, History())


def burnin_at(seconds: float, *gpus: str, status: TestStatus = PASSED) -> BurninRun:
    """A burn-in of these GPUs that began so many seconds after the start."""
    return run(*(result(gpu=gpu, status=status) for gpu in gpus), at=(at(seconds) - BURNIN_START).total_seconds())
