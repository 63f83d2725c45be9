"""What only a comparison with the whole fleet shows; the controller makes it and tells the node."""

from __future__ import annotations

from collections.abc import Callable

from gpuhealth.model.code import Code
from gpuhealth.model.finding import Action, Severity
from gpuhealth.model.missing import Missing
from gpuhealth.monitors.nvidia.checks.rule import Judgement, Look, per_gpu
from gpuhealth.monitors.nvidia.readings import GpuReadings

MISMATCH = Code(
    "fleet.digest_mismatch",
    Severity.CRITICAL,
    Action.INSPECT_HARDWARE,
    meaning="In its last burn-in the GPU computed another result than the majority of the fleet's GPUs of its model"
    " with the same software: it computes wrong without a word, or it is not what it says it is.",
    advice="Run gpuhealth burnin --tests repeat,exact on the node; if the digest differs again, have the GPU replaced.",
    quarantine=True,
    drain=True,
    clear_after=0.0,  # the controller's word is about a whole burn-in: there is nothing to wait for
)
SLOW = Code(
    "fleet.slow_gpu",
    Severity.WARNING,
    Action.INSPECT_HARDWARE,
    meaning="In its last burn-in the GPU was far slower than the fleet's median for its model, although it passed.",
    advice="Compare clocks, power limit, temperature and PCIe link with those of a neighbour, and test again.",
    clear_after=0.0,
)


def _said(code: Code) -> tuple[Code, Callable[[GpuReadings, Look], Judgement]]:
    def judge(gpu: GpuReadings, look: Look) -> Judgement:
        said = look.readings.fleet
        if isinstance(said, Missing):
            return said
        messages = [each.message for each in said if (each.code, each.gpu) == (code.name, gpu.component)]
        return (
            look.found(code, gpu, messages[0], source="the controller's comparison of burn-ins") if messages else None
        )

    return code, judge


CHECK = per_gpu(_said(MISMATCH), _said(SLOW), broken_too=True)
