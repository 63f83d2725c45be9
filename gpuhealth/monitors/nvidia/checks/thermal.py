"""Distance of the GPU and its memory to the temperature at which they protect themselves.

Each card reports its own limits, and recent ones only the distance to them: no fixed temperature is right for all.
"""

from __future__ import annotations

from gpuhealth.model.codes import Code, define
from gpuhealth.model.context import RuleResult
from gpuhealth.model.finding import Action, Severity
from gpuhealth.model.history import key as history_key
from gpuhealth.model.missing import Missing, MissingReason, Reading
from gpuhealth.monitors.nvidia.context import GpuContext, per_gpu
from gpuhealth.monitors.nvidia.readings import GpuReadings

GPU = define(
    "thermal.gpu",
    Severity.WARNING,
    Action.INSPECT_HARDWARE,
    meaning="The GPU is at or within a few degrees of the temperature at which it slows itself down.",
    advice="Check fans, air flow, coolant and inlet temperature, and whether its neighbours are hot as well.",
    quarantine=True,  # only once it is critical
    clear_after=60.0,
)
MEMORY = define(
    "thermal.memory",
    Severity.WARNING,
    Action.INSPECT_HARDWARE,
    meaning="The GPU's memory is at or within a few degrees of its highest permitted temperature.",
    advice="Check fans, air flow and coolant; on a single GPU of a node, the contact of its heat sink.",
    quarantine=True,
    clear_after=60.0,
)


def _gpu(gpu: GpuReadings, context: GpuContext) -> RuleResult:
    margin, source = gpu.temperature_margin_celsius, "nvmlDeviceGetMarginTemperature"
    if _unsupported(margin):
        limit, source = gpu.slowdown_celsius, "nvmlDeviceGetTemperature, its slowdown threshold"
        if _unsupported(limit):
            limit, source = gpu.gpu_max_celsius, "nvmlDeviceGetTemperature, its maximum operating threshold"
        margin = _distance(limit, gpu.temperature_celsius)
    return _judge(GPU, gpu, context, margin, source)


def _memory(gpu: GpuReadings, context: GpuContext) -> RuleResult:
    margin = _distance(gpu.memory_max_celsius, gpu.memory_celsius)
    return _judge(MEMORY, gpu, context, margin, "NVML field 82 (memory temperature), its maximum threshold")


def _judge(code: Code, gpu: GpuReadings, context: GpuContext, margin: Reading[int], source: str) -> RuleResult:
    if isinstance(margin, Missing):
        return margin
    settings = context.settings.thermal
    key = history_key(code.name, gpu.component)
    critical = context.history.held_for(key, margin <= 0, context.now, settings.critical_after)
    if margin > settings.margin_warning_celsius:
        return None
    return context.found(
        code,
        gpu,
        f"{margin} °C below its limit" if margin > 0 else f"at its temperature limit (margin {margin} °C)",
        source=source,
        reading=f"{margin} °C",
        threshold=f"{settings.margin_warning_celsius} °C; 0 °C for {settings.critical_after:g} s is critical",
        severity=Severity.CRITICAL if critical else Severity.WARNING,
    )


def _unsupported(reading: Reading[int]) -> bool:
    return isinstance(reading, Missing) and reading.reason is MissingReason.NOT_SUPPORTED


def _distance(limit: Reading[int], temperature: Reading[int]) -> Reading[int]:
    if isinstance(limit, Missing):
        return limit
    return temperature if isinstance(temperature, Missing) else limit - temperature


CHECK = per_gpu((GPU, _gpu), (MEMORY, _memory))
