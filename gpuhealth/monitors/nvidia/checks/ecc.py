"""Memory errors counted by ECC, and whether ECC is on at all. Volatile counts start at 0 with every reset."""

from __future__ import annotations

from gpuhealth.model.codes import define
from gpuhealth.model.context import RuleResult
from gpuhealth.model.finding import Action, Severity
from gpuhealth.model.history import key as history_key
from gpuhealth.model.missing import Missing, MissingReason, Reading
from gpuhealth.monitors.nvidia.context import GpuContext, flag, per_gpu, split
from gpuhealth.monitors.nvidia.readings import GpuReadings

UNCORRECTABLE = define(
    "ecc.uncorrectable",
    Severity.CRITICAL,
    Action.RESET_GPU,
    meaning="GPU memory or cache returned data that ECC could not repair: a program was killed or got bad data.",
    advice="Drain the node and reset the GPU, so that bad rows are replaced; then run a burn-in. If it comes back on"
    " the same GPU, have the GPU replaced.",
    quarantine=True,
    drain=True,
    essential=True,
)
CORRECTED_RATE = define(
    "ecc.corrected_rate",
    Severity.WARNING,
    Action.INSPECT_HARDWARE,
    meaning="ECC repairs unusually many errors: no data is lost, but decaying memory starts like this.",
    advice="Watch for uncorrectable errors and row remappings; run a memory burn-in when the node is free.",
    clear_after=300.0,
)
SRAM_THRESHOLD = define(
    "ecc.sram_threshold",
    Severity.CRITICAL,
    Action.INSPECT_HARDWARE,
    meaning="The GPU reports that its on-chip memory has exceeded its threshold of uncorrectable errors.",
    advice="Take the GPU out of service, run NVIDIA's field diagnostic and have it replaced if that confirms it.",
    quarantine=True,
    drain=True,
)
DISABLED = define(
    "ecc.disabled",
    Severity.WARNING,
    Action.RESET_GPU,
    meaning="ECC is off on a GPU that should have it on: bad memory corrupts results without a trace.",
    advice="Turn it on with `nvidia-smi -i INDEX -e 1` and reset the GPU (or reboot) for it to take effect.",
)

_HOUR = 3600.0
# HBM has buses of 2048 bits and more, 1024 a stack; the widest of GDDR has 512.
_HBM_BUS_BITS = 1024


def _counts(gpu: GpuReadings, kind: str) -> dict[str, Reading[int]]:
    """The counters of a kind by place; NVML's total only if there is no more detail."""
    counts = {name.removeprefix(f"{kind}_"): each for name, each in gpu.ecc_errors.items() if name.startswith(kind)}
    places = {place: each for place, each in counts.items() if place != "total"}
    return places if split(places)[0] else counts


def uncorrected_counts(gpu: GpuReadings) -> dict[str, Reading[int]]:
    """The uncorrectable errors since the last reset, by place."""
    return _counts(gpu, "volatile_uncorrected")


def _uncorrectable(gpu: GpuReadings, context: GpuContext) -> RuleResult:
    counts, unread = split(uncorrected_counts(gpu))
    window = context.settings.ecc.recent_window
    grown = 0
    for place, count in counts.items():
        key = history_key(UNCORRECTABLE.name, gpu.component, place)
        grown += context.history.counter_increase(key, count, context.now, window, first=0).amount
    if not any(counts.values()):
        return unread
    listing = ", ".join(f"{place} {count}" for place, count in sorted(counts.items()) if count)
    news = "" if grown else f", none new within {window / _HOUR:g} h"
    return context.found(
        UNCORRECTABLE,
        gpu,
        f"uncorrectable ECC errors since the last reset: {listing}{news}",
        source="nvmlDeviceGetMemoryErrorCounter (volatile, uncorrected)",
        reading=listing,
        threshold=0,
        severity=Severity.CRITICAL if grown else Severity.WARNING,
    )


def _corrected_rate(gpu: GpuReadings, context: GpuContext) -> RuleResult:
    counts, unread = split(_counts(gpu, "volatile_corrected"))
    if unread:
        return unread
    limit = context.settings.ecc.corrected_per_hour
    keys = {place: history_key(CORRECTED_RATE.name, gpu.component, place) for place in counts}
    grown = [
        context.history.counter_increase(keys[place], count, context.now, _HOUR) for place, count in counts.items()
    ]
    amount = sum(each.amount for each in grown)
    if amount > limit:
        message = f"{amount} ECC errors corrected within an hour"
        source = "nvmlDeviceGetMemoryErrorCounter (volatile, corrected)"
        return context.found(CORRECTED_RATE, gpu, message, source=source, reading=amount, threshold=f"{limit} an hour")
    return None if all(each.seconds for each in grown) else Missing(MissingReason.NO_HISTORY)


def _disabled(gpu: GpuReadings, context: GpuContext) -> RuleResult:
    if isinstance(gpu.ecc_enabled, Missing):
        return gpu.ecc_enabled
    if gpu.ecc_enabled:
        return None
    baseline = context.baseline.ecc
    if baseline.get(gpu.id):
        why = "it was on before"
    elif any(peer.ecc_enabled is True for peer in context.peers(gpu)):
        why = "GPUs of the same model on this node have it on"
    elif not isinstance(gpu.memory_bus_bits, Missing) and gpu.memory_bus_bits >= _HBM_BUS_BITS:
        why = "the GPU has HBM"
    else:
        return None
    after = "; it comes on with the next reset" if gpu.ecc_pending is True else ""
    return context.found(
        DISABLED, gpu, f"ECC is off although {why}{after}", source="nvmlDeviceGetEccMode", reading="off", threshold="on"
    )


CHECK = per_gpu(
    (UNCORRECTABLE, _uncorrectable),
    (CORRECTED_RATE, _corrected_rate),
    flag(
        SRAM_THRESHOLD,
        lambda gpu: gpu.sram_threshold_exceeded,
        "on-chip memory has exceeded its threshold of uncorrectable errors",
        "nvmlDeviceGetSramEccErrorStatus bThresholdExceeded",
    ),
    (DISABLED, _disabled),
)
