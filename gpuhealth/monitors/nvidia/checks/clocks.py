"""Whether clocks are reduced for a reason that should not exist: heat, hardware protection, the power brake.

Counters of throttled time include throttling between two rounds. If the GPU has none, the reasons of each round are
counted; they are bits, and several may be set at once.
"""

from __future__ import annotations

from gpuhealth.model.codes import Code, define
from gpuhealth.model.context import RuleResult
from gpuhealth.model.finding import Action, Severity
from gpuhealth.model.history import key as history_key
from gpuhealth.model.missing import Missing, MissingReason
from gpuhealth.monitors.nvidia.context import GpuContext, per_gpu, split
from gpuhealth.monitors.nvidia.readings import GpuReadings

HW_SLOWDOWN = define(
    "clocks.hw_slowdown",
    Severity.WARNING,
    Action.INSPECT_HARDWARE,
    meaning="The GPU's hardware has cut its clocks by half or more to protect itself: heat, a power brake signal, or"
    " too much current.",
    advice="See which of thermal.gpu, clocks.thermal and power.brake is with it, and check cooling and power supply.",
    clear_after=120.0,
)
THERMAL = define(
    "clocks.thermal",
    Severity.WARNING,
    Action.INSPECT_HARDWARE,
    meaning="The GPU keeps its clocks down because it or its memory is too hot.",
    advice="Check fans, air flow, coolant and inlet temperature.",
    clear_after=120.0,
)
POWER_BRAKE = define(
    "power.brake",
    Severity.CRITICAL,
    Action.INSPECT_HARDWARE,
    meaning="The server's power supply signals a power brake: the GPU runs at half its clocks or less.",
    advice="Check power supplies, their redundancy and the rack's feed; several nodes at once point to the rack.",
    quarantine=True,
    clear_after=120.0,
)

# nvmlClocksEventReasons of nvml.h.
_SW_THERMAL_BIT = 0x20
_HW_SLOWDOWN_BIT = 0x08
_HW_THERMAL_BIT = 0x40
_POWER_BRAKE_BIT = 0x80


def _throttled(code: Code, gpu: GpuReadings, context: GpuContext, bits: int, counters: tuple[str, ...]) -> RuleResult:
    settings = context.settings.clocks
    share, source = _share_of_time(code, gpu, context, counters), "NVML throttle-time counters"
    how_long = "" if isinstance(share, Missing) else f"for {share * 100:.1f} % of the last {settings.window:g} s"
    reasons = gpu.clocks_event_reasons
    if isinstance(share, Missing):
        if isinstance(reasons, Missing):
            return reasons if share.reason is MissingReason.NOT_SUPPORTED else share
        key = history_key(code.name, gpu.component, "bit")
        marks = context.history.record_event(key, context.now, settings.window, "set" if reasons & bits else "")
        times = sum(bool(mark) for _, mark in marks)
        share, source = times / len(marks), "nvmlDeviceGetCurrentClocksEventReasons"
        how_long = f"at {times} of {len(marks)} looks within {settings.window:g} s"
    if share * 100 <= settings.throttled_percent:
        return None
    now = "" if isinstance(reasons, Missing) else f", reasons 0x{reasons:x} now"
    return context.found(
        code,
        gpu,
        f"clocks held down {how_long}{now}",
        source=source,
        reading=f"{share * 100:.1f} %",
        threshold=f"{settings.throttled_percent:g} %",
    )


def _share_of_time(code: Code, gpu: GpuReadings, context: GpuContext, counters: tuple[str, ...]) -> float | Missing:
    """The throttled share of the window by the highest counter; counters overlap, so their sum would be too high."""
    wanted = {name: gpu.throttle_nanoseconds[name] for name in counters if name in gpu.throttle_nanoseconds}
    if not wanted:
        return Missing(MissingReason.NOT_SUPPORTED)
    values, unread = split(wanted)
    if unread:
        return unread
    keys = {name: history_key(code.name, gpu.component, name) for name in values}
    window = context.settings.clocks.window
    grown = [context.history.counter_increase(keys[name], value, context.now, window) for name, value in values.items()]
    if not all(each.seconds for each in grown):
        return Missing(MissingReason.NO_HISTORY)
    return max(min(1.0, each.amount / 1e9 / each.seconds) for each in grown)


def _hw_slowdown(gpu: GpuReadings, context: GpuContext) -> RuleResult:
    return _throttled(HW_SLOWDOWN, gpu, context, _HW_SLOWDOWN_BIT, ())  # NVML has no counter for it


def _thermal(gpu: GpuReadings, context: GpuContext) -> RuleResult:
    return _throttled(THERMAL, gpu, context, _SW_THERMAL_BIT | _HW_THERMAL_BIT, ("sw_thermal", "hw_thermal"))


def _power_brake(gpu: GpuReadings, context: GpuContext) -> RuleResult:
    return _throttled(POWER_BRAKE, gpu, context, _POWER_BRAKE_BIT, ("power_brake",))


CHECK = per_gpu((HW_SLOWDOWN, _hw_slowdown), (THERMAL, _thermal), (POWER_BRAKE, _power_brake))
