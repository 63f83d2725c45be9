"""Whether the driver keeps an unused GPU initialized."""

from __future__ import annotations

from gpuhealth.model.codes import define
from gpuhealth.model.context import RuleResult
from gpuhealth.model.finding import Action, Severity
from gpuhealth.model.missing import Missing
from gpuhealth.monitors.nvidia.context import GpuContext, per_gpu
from gpuhealth.monitors.nvidia.readings import GpuReadings

OFF = define(
    "persistence.off",
    Severity.WARNING,
    Action.UPDATE_SOFTWARE,
    meaning="Persistence mode is off: the driver shuts the GPU down when its last user ends, so that every start takes"
    " seconds longer, clock and power settings are lost, and ECC counters start again.",
    advice="Run nvidia-persistenced (or `nvidia-smi -pm 1`) from boot on.",
)


def _off(gpu: GpuReadings, context: GpuContext) -> RuleResult:
    mode = gpu.persistence_mode
    if isinstance(mode, Missing):
        return mode
    if mode:
        return None
    source = "nvmlDeviceGetPersistenceMode"
    return context.found(OFF, gpu, "persistence mode is off", source=source, reading="off", threshold="on")


CHECK = per_gpu((OFF, _off))
