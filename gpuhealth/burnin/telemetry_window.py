"""Telemetry of a GPU from NVML, sysfs and the kernel log during one test: input of the pass rules."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import msgspec

from gpuhealth.model.burnin_run import Span
from gpuhealth.model.kernel_event import KernelEvent
from gpuhealth.monitors.nvidia.readings import GpuReadings, PciDevice


class TelemetryWindow(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One GPU from just before a test to just after it. Counters are compared between the first and last reading."""

    before: GpuReadings
    after: GpuReadings
    pci_before: PciDevice | None = None  # the GPU's PCI function in sysfs; None where sysfs does not show it
    pci_after: PciDevice | None = None
    clocks_event_reasons: dict[int, int] = {}  # mask of reasons as NVML returned it -> samples with exactly this mask
    spans: dict[str, Span] = {}  # temperature_celsius, power_watts, sm_clock_megahertz … over all samples
    events: tuple[KernelEvent, ...] = ()  # of the kernel log, for this GPU or for no GPU in particular
    temperature_rise_celsius: float = 0.0  # how fast it was still warming up at the end, see temperature_rise


def temperature_rise(celsius: Sequence[float]) -> float:
    """Mean of the last fifth of the samples minus that of the fifth before, in °C; 0 with fewer than five samples."""
    part = len(celsius) // 5
    return statistics.fmean(celsius[-part:]) - statistics.fmean(celsius[-2 * part : -part]) if part else 0.0
