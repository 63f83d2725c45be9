"""Rules on the controller's comparison of this node's GPUs with all others of their model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

from gpuhealth.model.codes import Code, define
from gpuhealth.model.component import ComponentInfo
from gpuhealth.model.context import Check, CheckContext, outcome_of
from gpuhealth.model.finding import Action, Outcome, Severity
from gpuhealth.model.missing import Missing, Reading
from gpuhealth.monitors.fleet_findings.readings import FleetReadings
from gpuhealth.monitors.monitor import NoBaseline, NoSettings

Context: TypeAlias = CheckContext[Reading[FleetReadings], NoSettings, NoBaseline]

MISMATCH = define(
    "fleet.digest_mismatch",
    Severity.CRITICAL,
    Action.INSPECT_HARDWARE,
    meaning="In its last burn-in the GPU computed another result than the majority of the fleet's GPUs of its model"
    " with the same software: it computes wrong results silently, or it is not the model that it reports.",
    advice="Run gpuhealth burnin --tests repeat,exact on the node; if the digest differs again, have the GPU replaced.",
    quarantine=True,
    drain=True,
    clear_after=0.0,  # the controller compares complete burn-ins: there is nothing to wait for
)
SLOW = define(
    "fleet.slow_gpu",
    Severity.WARNING,
    Action.INSPECT_HARDWARE,
    meaning="In its last burn-in the GPU was far slower than the fleet's median for its model, although it passed.",
    advice="Compare clocks, power limit, temperature and PCIe link with those of a neighbour, and test again.",
    clear_after=0.0,
)


CODES = (MISMATCH, SLOW)


def _run(context: Context) -> Iterator[Outcome]:
    readings = context.readings
    for gpu in context.gpus:
        for code in CODES:
            if isinstance(readings, Missing):
                yield from outcome_of(code, gpu.component, readings)
            else:
                yield _outcome(code, gpu, readings, context)


def _outcome(code: Code, gpu: ComponentInfo, readings: FleetReadings, context: Context) -> Outcome:
    own = [finding for finding in readings.findings if (finding.code, finding.gpu) == (code.name, gpu.component.id)]
    if not own:
        return code.clean(gpu.component)
    message = f"{gpu.label}: {own[0].message}"
    return code.found(gpu.component, message, now=context.time, source="the controller's comparison of burn-ins")


CHECK = Check(CODES, _run)
