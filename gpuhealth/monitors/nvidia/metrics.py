"""Metrics of NVIDIA GPUs and of the NVML child process.

A value that could not be read has no sample: a frozen number would look like a healthy one. For the same reason a
driver that is overdue has no samples of GPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeAlias

from prometheus_client.core import Metric

from gpuhealth.model.missing import Missing
from gpuhealth.monitors.monitor import MetricsContext
from gpuhealth.monitors.nvidia.probe import NvidiaProbe
from gpuhealth.monitors.nvidia.readings import GpuReadings, NvidiaReadings, NvmlReadings
from gpuhealth.monitors.nvidia.settings import NvidiaSettings
from gpuhealth.runtime.metric_families import counter, gauge

Context: TypeAlias = MetricsContext[NvidiaReadings, NvidiaSettings]
_LINK_IS_UP = (1, 3)  # active; active without traffic

# Metric, what it is, the field of GpuReadings, and the factor to the base unit.
_PLAIN = (
    ("temperature_celsius", "Temperature of the core", "temperature_celsius", 1.0),
    ("temperature_margin_celsius", "Degrees left before the GPU slows down", "temperature_margin_celsius", 1.0),
    ("memory_temperature_celsius", "Temperature of the memory", "memory_celsius", 1.0),
    ("power_watts", "Power drawn", "power_milliwatts", 1e-3),
    ("power_limit_watts", "Power limit that is enforced", "power_limit_milliwatts", 1e-3),
    ("sm_clock_hertz", "Clock of the multiprocessors", "sm_clock_mhz", 1e6),
    ("utilization_ratio", "Share of the time in which a kernel ran", "utilization_percent", 1e-2),
    ("memory_used_bytes", "Memory in use, less what the driver keeps", "memory_used_bytes", 1.0),
    ("memory_total_bytes", "Memory of the GPU", "memory_total_bytes", 1.0),
    ("pcie_width_lanes", "Lanes of the PCIe link in use", "pcie_width", 1.0),
    ("recovery_action", "NVML field 230; 0 is none", "recovery_action", 1.0),
)


def _gpu_info(nvml: NvmlReadings) -> Iterator[Metric]:
    identity = ("pci", "name", "serial", "vbios")
    labels = ["gpu", "index", "pci", "model", "serial", "vbios", "driver"]
    rows = [(g.id, g.index, *(getattr(g, name) for name in identity), nvml.driver_version) for g in nvml.gpus]
    known = [(*("" if isinstance(value, Missing) else value for value in row), 1) for row in rows]
    yield gauge("gpu_info", "What a GPU is", labels, known)


def _gpu_readings(nvml: NvmlReadings) -> Iterator[Metric]:
    for metric, text, field, factor in _PLAIN:
        values = ((g.id, getattr(g, field)) for g in nvml.gpus)
        scaled = [(gpu, value * factor) for gpu, value in values if not isinstance(value, Missing)]
        yield gauge(f"gpu_{metric}", text, ["gpu"], scaled)


def _gpu_counters(nvml: NvmlReadings) -> Iterator[Metric]:
    gpus = nvml.gpus
    replays = [(g.id, g.pcie_replays) for g in gpus]
    yield counter("gpu_pcie_replays", "Packets sent again over PCIe", ["gpu"], replays)
    throttled = [
        (g.id, reason, value / 1e9)
        for g in gpus
        for reason, value in g.throttle_nanoseconds.items()
        if not isinstance(value, Missing)
    ]
    held_back = "Time in which the clocks were held back"
    yield counter("gpu_throttle_seconds", held_back, ["gpu", "reason"], throttled)
    ecc = (
        "ECC errors: type (corrected, uncorrected), counter (volatile since the driver was loaded, aggregate), location"
    )
    yield counter("gpu_ecc_errors", ecc, ["gpu", "type", "counter", "location"], _ecc_errors(gpus))
    yield gauge("gpu_remapped_rows", "Memory rows remapped, by cause", ["gpu", "kind"], _remapped(gpus))
    pending = [(g.id, g.remap_pending) for g in gpus]
    yield gauge("gpu_row_remap_pending", "1 while a row remapping waits for a GPU reset", ["gpu"], pending)
    failed = [(g.id, g.remap_failed) for g in gpus]
    yield gauge("gpu_row_remap_failure", "1 when a row could not be remapped", ["gpu"], failed)


def _links(nvml: NvmlReadings) -> Iterator[Metric]:
    yield gauge("nvlink_up", "1 while an NVLink is active", ["gpu", "link"], _links_up(nvml.gpus))


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
    """The metrics of GPUs, while there is something current to show."""
    readings = context.readings
    if isinstance(readings, Missing):
        return
    nvml = readings.nvml
    if nvml.answered or nvml.waiting_seconds < context.settings.nvml.warn_after:
        yield from collect(nvml)


def _nvml(context: Context) -> Iterator[Metric]:
    probe = context.probe
    assert isinstance(probe, NvidiaProbe), "the probe of this monitor"
    if not isinstance(context.last_readings, Missing):
        waiting = context.last_readings.nvml.waiting_seconds
        yield gauge("agent_nvml_seconds", "NVML's last round, or the wait for the one outstanding", [], [(waiting,)])
    yield gauge("agent_nvml_processes", "NVML processes, hung ones included", [], [(len(probe.pids),)])
    yield counter("agent_nvml_process_starts", "NVML processes started", [], [(probe.nvml.starts,)])
    yield gauge("agent_driver_released", "1 while the driver is released on request", [], [(probe.nvml.released,)])
    reasons = probe.release.current.reasons if probe.release.current else ()
    yield gauge(
        "released",
        "1 while the driver is released and NVML is not read, and until it is back",
        ["reason"],
        [(reason, 1) for reason in reasons],
    )


METRICS: dict[str, Callable[[Context], Iterator[Metric]]] = {
    "nvml": _nvml,
    "gpu_info": partial(_of_gpus, _gpu_info),
    "gpu_readings": partial(_of_gpus, _gpu_readings),
    "gpu_counters": partial(_of_gpus, _gpu_counters),
    "gpu_links": partial(_of_gpus, _links),
}
