"""What telemetry saw of a GPU while a test ran: what the pass rules look at beside the test's own figures."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import msgspec

from gpuhealth.model.burnin_run import Span
from gpuhealth.model.kernel_event import KernelEvent
from gpuhealth.monitors.nvidia.readings import GpuReadings, PciDevice


class Watched(msgspec.Struct, frozen=True, omit_defaults=True):
    """One GPU from just before a test to just after it. Counters are judged by the two readings at the ends."""

    before: GpuReadings
    after: GpuReadings
    pci_before: PciDevice | None = None  # its function as sysfs shows it; None where it is not shown
    pci_after: PciDevice | None = None
    clocks_event_reasons: dict[int, int] = {}  # mask of reasons as NVML gave it -> samples that had just this mask
    spans: dict[str, Span] = {}  # temperature_celsius, power_watts, sm_clock_megahertz … over all samples
    events: tuple[KernelEvent, ...] = ()  # of the kernel log, of this GPU or of no GPU in particular
    warming_celsius: float = 0.0  # how much it was still getting warmer when the test ended


def warming(celsius: Sequence[float]) -> float:
    """How much warmer the last fifth of the samples is than the fifth before it; 0 where there are too few to tell."""
    part = len(celsius) // 5
    return statistics.fmean(celsius[-part:]) - statistics.fmean(celsius[-2 * part : -part]) if part else 0.0
