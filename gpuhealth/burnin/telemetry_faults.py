"""Signs of trouble in what telemetry saw of a GPU during a test: each one fails it, whatever the test's own figures."""

from __future__ import annotations

from collections.abc import Iterator

from gpuhealth.burnin.telemetry_window import Watched
from gpuhealth.model.finding import Severity
from gpuhealth.model.kernel_event import KernelEvent
from gpuhealth.model.missing import Missing, MissingReason, Reading
from gpuhealth.monitors.nvidia.readings import GpuReadings
from gpuhealth.runtime.settings import BurninLimits

_THROTTLED = {
    0x08: "HW slowdown",
    0x20: "SW thermal slowdown",
    0x40: "HW thermal slowdown",
    0x80: "HW power brake",
}
"""nvmlClocksEventReasons of nvml.h that no sound GPU shows. The software power cap (0x04) is how full load looks."""

_THROTTLE_TIMES = {"sw_thermal": "SW thermal", "hw_thermal": "HW thermal", "power_brake": "power brake"}
_MINUTE = 60.0


def signs(watched: Watched, seconds: float, limits: BurninLimits) -> Iterator[str]:
    """Every sign, as a part of a sentence. What should be readable and was not is a sign too."""
    before, after = watched.before, watched.after
    if after.error is not None:
        yield f"after the test NVML answers {after.error}"
        return  # everything else is missing for the same reason
    yield from _throttling(watched)
    yield from map(_event, filter(_serious, watched.events))
    for what, earlier, later, allowed in (*_counters(before, after, seconds, limits), *_bus_errors(watched)):
        grown = _grown(earlier, later)
        if isinstance(grown, Missing):
            yield f"{what} could not be read ({grown})"
        elif grown > allowed:
            yield f"{grown} {what}" + (f" where {allowed} may be" if allowed else "")
    for what, was, now in _flags(before, after):
        if now is True and was is not True:
            yield what
    yield from _links(before, after, limits)


def _throttling(watched: Watched) -> Iterator[str]:
    samples = sum(watched.clocks_event_reasons.values())
    reasons = watched.after.clocks_event_reasons
    if not samples and isinstance(reasons, Missing) and reasons.reason is not MissingReason.NOT_SUPPORTED:
        yield f"the clocks-event reasons could not be read ({reasons})"
    for bit, name in _THROTTLED.items():
        # Several reasons are set at once: a comparison of the whole mask would miss them.
        count = sum(number for mask, number in watched.clocks_event_reasons.items() if mask & bit)
        if count:
            yield f"{name} in {count} of {samples} samples"
    for counter, name in _THROTTLE_TIMES.items():
        if counter not in watched.after.throttle_nanoseconds:
            continue
        grown = _grown(watched.before.throttle_nanoseconds.get(counter, 0), watched.after.throttle_nanoseconds[counter])
        if isinstance(grown, Missing):
            yield f"the time of {name} throttling could not be read ({grown})"
        elif grown > 0:
            yield f"{grown / 1e9:.3g} s of {name} throttling"


def _serious(event: KernelEvent) -> bool:
    """During a test only our own programs use the GPU: an XID that elsewhere may be an application's fault is not."""
    return event.severity is not Severity.INFO and event.kind in ("xid", "sxid", "nvrm", "aer")


def _event(event: KernelEvent) -> str:
    name = event.kind.upper() if event.code is None else f"{event.kind.upper()} {event.code}"
    return f"{name.replace('SXID', 'SXid')} ({event.line[:160]})"


def _counters(
    before: GpuReadings, after: GpuReadings, seconds: float, limits: BurninLimits
) -> Iterator[tuple[str, Reading[int], Reading[int], int]]:
    """(what, count before, count after, how much it may grow)."""
    for name, value in after.ecc_errors.items():
        kind, severity, place = name.split("_")
        if kind == "volatile" and place == "total":
            allowed = 0 if severity == "uncorrected" else limits.corrected_ecc_errors
            yield f"{severity} ECC errors", before.ecc_errors.get(name, 0), value, allowed
    yield "rows remapped for correctable errors", before.remap_correctable_rows, after.remap_correctable_rows, 0
    yield "rows remapped for uncorrectable errors", before.remap_uncorrectable_rows, after.remap_uncorrectable_rows, 0
    for cause, value in after.retired_pages.items():
        yield f"pages retired for {cause.replace('_', '-')} errors", before.retired_pages.get(cause, 0), value, 0
    replays = round(limits.pcie_replays_per_minute * max(seconds, _MINUTE) / _MINUTE)
    yield "PCIe replays", before.pcie_replays, after.pcie_replays, replays


def _bus_errors(watched: Watched) -> Iterator[tuple[str, Reading[int], Reading[int], int]]:
    """The same of the kernel's own counts; a transfer goes on after an error that is not fatal."""
    before, after = watched.pci_before, watched.pci_after
    if before is None:
        return
    gone = Missing(MissingReason.NOT_INSTALLED, f"sysfs shows no {before.address} any more")
    for kind in ("nonfatal", "fatal"):
        name = f"aer_{kind}"
        later = gone if after is None else getattr(after, name)
        yield f"uncorrectable PCIe errors (aer_dev_{kind})", getattr(before, name), later, 0


def _flags(before: GpuReadings, after: GpuReadings) -> Iterator[tuple[str, Reading[bool], Reading[bool]]]:
    yield "a row remapping has become pending", before.remap_pending, after.remap_pending
    yield "a row remapping has failed", before.remap_failed, after.remap_failed
    yield "a page retirement has become pending", before.retirement_pending, after.retirement_pending
    yield "memory has become unrepairable", before.unrepairable_memory, after.unrepairable_memory
    yield "the SRAM error threshold has been exceeded", before.sram_threshold_exceeded, after.sram_threshold_exceeded
    for part, value in after.repair_pending.items():
        yield f"a {part} repair has become pending", before.repair_pending.get(part, False), value


def _links(before: GpuReadings, after: GpuReadings, limits: BurninLimits) -> Iterator[str]:
    if isinstance(before.nvlinks, Missing) or isinstance(after.nvlinks, Missing):
        return
    earlier = {link.link: link for link in before.nvlinks}
    for link in after.nvlinks:
        was = earlier.get(link.link)
        if was is None:
            continue
        if was.state and link.state == 0:
            yield f"NVLink {link.link} has gone down"
        grown = sum(max(0, count - was.errors.get(name, 0)) for name, count in link.errors.items())
        if grown > limits.nvlink_errors:
            yield f"{grown} errors of NVLink {link.link} where {limits.nvlink_errors} may be"


def _grown(before: Reading[int], after: Reading[int]) -> Reading[int]:
    """How much a counter grew; all of it where it started again from zero. Of what the GPU does not count: 0."""
    if isinstance(after, Missing):
        return 0 if after.reason is MissingReason.NOT_SUPPORTED else after
    if isinstance(before, Missing):
        return 0 if before.reason is MissingReason.NOT_SUPPORTED else before
    return after - before if after >= before else after
