"""Faults that telemetry shows during a test: each one fails the test, regardless of its own measurements."""

from __future__ import annotations

from collections.abc import Iterator

from gpuhealth.burnin.telemetry_window import TelemetryWindow
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
"""nvmlClocksEventReasons of nvml.h that no healthy GPU shows. The software power cap (0x04) is normal at full load."""

_THROTTLE_TIMES = {"sw_thermal": "SW thermal", "hw_thermal": "HW thermal", "power_brake": "power brake"}
_MINUTE = 60.0


def find_faults(window: TelemetryWindow, seconds: float, limits: BurninLimits) -> Iterator[str]:
    """Each fault as a part of a sentence. A value that should be readable and could not be read is a fault too."""
    before, after = window.before, window.after
    if after.error is not None:
        yield f"NVML returns {after.error} after the test"
        return  # all other values are missing for the same reason
    yield from _throttling(window)
    yield from map(_describe_event, filter(_is_fault, window.events))
    for name, earlier, later, allowed in (*_counters(before, after, seconds, limits), *_bus_errors(window)):
        grown = _grown(earlier, later)
        if isinstance(grown, Missing):
            yield f"{name} could not be read ({grown})"
        elif grown > allowed:
            yield f"{grown} {name} (limit {allowed})"
    for sentence, was, now in _flags(before, after):
        if now is True and was is not True:
            yield sentence
    yield from _links(before, after, limits)


def _throttling(window: TelemetryWindow) -> Iterator[str]:
    samples = sum(window.clocks_event_reasons.values())
    reasons = window.after.clocks_event_reasons
    if not samples and isinstance(reasons, Missing) and reasons.reason is not MissingReason.NOT_SUPPORTED:
        yield f"the clocks-event reasons could not be read ({reasons})"
    for bit, name in _THROTTLED.items():
        # Several reasons are set at once: a comparison of the whole mask would miss them.
        count = sum(number for mask, number in window.clocks_event_reasons.items() if mask & bit)
        if count:
            yield f"{name} in {count} of {samples} samples"
    for counter, name in _THROTTLE_TIMES.items():
        if counter not in window.after.throttle_nanoseconds:
            continue
        grown = _grown(window.before.throttle_nanoseconds.get(counter, 0), window.after.throttle_nanoseconds[counter])
        if isinstance(grown, Missing):
            yield f"the time of {name} throttling could not be read ({grown})"
        elif grown > 0:
            yield f"{grown / 1e9:.3g} s of {name} throttling"


def _is_fault(event: KernelEvent) -> bool:
    """During a test only our own programs use the GPU: even an XID that applications can cause is a fault."""
    return event.severity is not Severity.INFO and event.kind in ("xid", "sxid", "nvrm", "aer", "dpc", "hotplug")


def _describe_event(event: KernelEvent) -> str:
    name = event.kind.upper() if event.code is None else f"{event.kind.upper()} {event.code}"
    return f"{name.replace('SXID', 'SXid')} ({event.line[:160]})"


def _counters(
    before: GpuReadings, after: GpuReadings, seconds: float, limits: BurninLimits
) -> Iterator[tuple[str, Reading[int], Reading[int], int]]:
    """(name, count before, count after, allowed increase) of each counter that NVML reports."""
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


def _bus_errors(window: TelemetryWindow) -> Iterator[tuple[str, Reading[int], Reading[int], int]]:
    """(name, count before, count after, allowed increase) of the kernel's AER counters.

    A transfer continues after a non-fatal error, so that the counters alone show it.
    """
    before, after = window.pci_before, window.pci_after
    if before is None:
        return
    gone = Missing(MissingReason.NOT_INSTALLED, f"sysfs no longer shows {before.address}")
    for kind in ("nonfatal", "fatal"):
        name = f"aer_{kind}"
        later = gone if after is None else getattr(after, name)
        yield f"uncorrectable PCIe errors (aer_dev_{kind})", getattr(before, name), later, 0


def _flags(before: GpuReadings, after: GpuReadings) -> Iterator[tuple[str, Reading[bool], Reading[bool]]]:
    yield "a row remapping became pending", before.remap_pending, after.remap_pending
    yield "a row remapping failed", before.remap_failed, after.remap_failed
    yield "a page retirement became pending", before.retirement_pending, after.retirement_pending
    yield "memory became unrepairable", before.unrepairable_memory, after.unrepairable_memory
    yield "the SRAM error threshold was exceeded", before.sram_threshold_exceeded, after.sram_threshold_exceeded
    for part, value in after.repair_pending.items():
        yield f"a {part} repair became pending", before.repair_pending.get(part, False), value


def _links(before: GpuReadings, after: GpuReadings, limits: BurninLimits) -> Iterator[str]:
    if isinstance(before.nvlinks, Missing) or isinstance(after.nvlinks, Missing):
        return
    earlier = {link.link: link for link in before.nvlinks}
    for link in after.nvlinks:
        was = earlier.get(link.link)
        if was is None:
            continue
        if was.state and link.state == 0:
            yield f"NVLink {link.link} went down"
        grown = sum(max(0, count - was.errors.get(name, 0)) for name, count in link.errors.items())
        if grown > limits.nvlink_errors:
            yield f"{grown} errors on NVLink {link.link} (limit {limits.nvlink_errors})"


def _grown(before: Reading[int], after: Reading[int]) -> Reading[int]:
    """Increase of a counter; the whole value where it was reset meanwhile, 0 where the GPU has no such counter."""
    if isinstance(after, Missing):
        return 0 if after.reason is MissingReason.NOT_SUPPORTED else after
    if isinstance(before, Missing):
        return 0 if before.reason is MissingReason.NOT_SUPPORTED else before
    return after - before if after >= before else after
