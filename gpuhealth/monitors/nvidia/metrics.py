"""Metrics of NVIDIA GPUs and of the NVML child process.

A value that could not be read has no sample: a frozen number would look like a healthy one. For the same reason there
are no samples of GPUs while the driver is overdue.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeAlias

from prometheus_client.core import Metric

from gpuhealth.model.missing import Missing
from gpuhealth.monitors.monitor import MetricsContext
from gpuhealth.monitors.nvidia import metric_names as own
from gpuhealth.monitors.nvidia.probe import NvidiaProbe
from gpuhealth.monitors.nvidia.readings import GpuReadings, NvidiaReadings, NvmlReadings, with_own_names
from gpuhealth.monitors.nvidia.settings import NvidiaSettings
from gpuhealth.runtime.metric_families import family

Context: TypeAlias = MetricsContext[NvidiaReadings, NvidiaSettings]
_LINK_IS_UP = (1, 3)  # active; active without traffic

# Metric, the field of GpuReadings, and the factor to the base unit.
_PLAIN = (
    (own.TEMPERATURE, "temperature_celsius", 1.0),
    (own.TEMPERATURE_MARGIN, "temperature_margin_celsius", 1.0),
    (own.MEMORY_TEMPERATURE, "memory_celsius", 1.0),
    (own.POWER, "power_milliwatts", 1e-3),
    (own.POWER_LIMIT, "power_limit_milliwatts", 1e-3),
    (own.SM_CLOCK, "sm_clock_mhz", 1e6),
    (own.UTILIZATION, "utilization_percent", 1e-2),
    (own.MEMORY_USED, "memory_used_bytes", 1.0),
    (own.MEMORY_TOTAL, "memory_total_bytes", 1.0),
    (own.PCIE_WIDTH, "pcie_width", 1.0),
    (own.RECOVERY_ACTION, "recovery_action", 1.0),
)


def _gpu_info(nvml: NvmlReadings) -> Iterator[Metric]:
    identity = ("pci", "name", "serial", "vbios")
    rows = [(g.id, g.index, *(getattr(g, name) for name in identity), nvml.driver_version) for g in nvml.gpus]
    known = [(*("" if isinstance(value, Missing) else value for value in row), 1) for row in rows]
    yield family(own.GPU_INFO, known)


def _gpu_readings(nvml: NvmlReadings) -> Iterator[Metric]:
    for metric, field, factor in _PLAIN:
        values = ((g.id, getattr(g, field)) for g in nvml.gpus)
        scaled = [(gpu, value * factor) for gpu, value in values if not isinstance(value, Missing)]
        yield family(metric, scaled)


def _gpu_counters(nvml: NvmlReadings) -> Iterator[Metric]:
    gpus = nvml.gpus
    replays = [(g.id, g.pcie_replays) for g in gpus]
    yield family(own.PCIE_REPLAYS, replays)
    throttled = [
        (g.id, reason, value / 1e9)
        for g in gpus
        for reason, value in g.throttle_nanoseconds.items()
        if not isinstance(value, Missing)
    ]
    yield family(own.THROTTLE_SECONDS, throttled)
    yield family(own.ECC_ERRORS, _ecc_errors(gpus))
    yield family(own.REMAPPED_ROWS, _remapped(gpus))
    pending = [(g.id, g.remap_pending) for g in gpus]
    yield family(own.ROW_REMAP_PENDING, pending)
    failed = [(g.id, g.remap_failed) for g in gpus]
    yield family(own.ROW_REMAP_FAILURE, failed)


def _links(nvml: NvmlReadings) -> Iterator[Metric]:
    yield family(own.NVLINK_UP, _links_up(nvml.gpus))


def _links_up(gpus: tuple[GpuReadings, ...]) -> Iterator[tuple[Any, ...]]:
    for gpu in gpus:
        for link in () if isinstance(gpu.nvlinks, Missing) else gpu.nvlinks:
            if not isinstance(link.state, Missing):
                yield gpu.id, link.link, link.state in _LINK_IS_UP


def _ecc_errors(gpus: tuple[GpuReadings, ...]) -> Iterator[tuple[Any, ...]]:
    for gpu in gpus:
        for name, value in gpu.ecc_errors.items():
            counted, error_type, location = name.split("_", 2)  # volatile_uncorrected_dram
            yield gpu.id, error_type, counted, location, value


def _remapped(gpus: tuple[GpuReadings, ...]) -> Iterator[tuple[Any, ...]]:
    for gpu in gpus:
        yield gpu.id, "correctable", gpu.remap_correctable_rows
        yield gpu.id, "uncorrectable", gpu.remap_uncorrectable_rows


def _of_gpus(collect: Callable[[NvmlReadings], Iterator[Metric]], context: Context) -> Iterator[Metric]:
    """The metrics of GPUs, while there are current readings."""
    readings = context.readings
    if isinstance(readings, Missing):
        return
    nvml = readings.nvml
    if nvml.answered or nvml.waiting_seconds < context.settings.nvml.warn_after:
        yield from collect(with_own_names(nvml))


def _nvml(context: Context) -> Iterator[Metric]:
    probe = context.probe
    assert isinstance(probe, NvidiaProbe), "the probe of this monitor"
    if not isinstance(context.last_readings, Missing):
        waiting = context.last_readings.nvml.waiting_seconds
        yield family(own.NVML_SECONDS, [(waiting,)])
    yield family(own.NVML_PROCESSES, [(len(probe.pids),)])
    yield family(own.NVML_PROCESS_STARTS, [(probe.nvml.starts,)])
    yield family(own.DRIVER_RELEASED, [(probe.nvml.released,)])
    reasons = probe.release.current.reasons if probe.release.current else ()
    yield family(own.RELEASED, [(reason, 1) for reason in reasons])


METRICS: dict[str, Callable[[Context], Iterator[Metric]]] = {
    "nvml": _nvml,
    "gpu_info": partial(_of_gpus, _gpu_info),
    "gpu_readings": partial(_of_gpus, _gpu_readings),
    "gpu_counters": partial(_of_gpus, _gpu_counters),
    "gpu_links": partial(_of_gpus, _links),
}
