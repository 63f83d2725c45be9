"""Settings of the monitor of NVIDIA GPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from gpuhealth.runtime.settings import LARGEST, Count, Duration, Section

ReleaseLabel = Annotated[str, Field(pattern=r"^[^=]+=[^=]*$", max_length=500)]
"""A pattern of a label and its value, as KEY=VALUE."""


class Nvml(Section):
    """The NVML child process and its deadlines, in seconds."""

    warn_after: Duration = 20.0
    critical_after: Duration = 60.0
    reinit_interval: Duration = 60.0  # between nvmlInit attempts while a GPU is lost or the driver is away
    max_extra_processes: Count = 1  # NVML processes started while one hangs
    errors_critical: int = Field(default=3, ge=1, le=LARGEST)  # rounds with unexpected errors within error_window
    error_window: Duration = 600.0
    library_paths: tuple[Path, ...] = ()  # files or folders of the node with libnvidia-ml.so.1, besides the usual ones


class Ecc(Section):
    """GPU memory errors that ECC counts."""

    recent_window: Duration = 86400.0  # an uncorrectable error is critical for this long after the count grew
    corrected_per_hour: Count = 10_000


class Xid(Section):
    """How XIDs are grouped and counted, and when they expire. Durations in seconds."""

    coalesce: Duration = 5.0  # the same code on the same GPU within this time is one event
    secondary_window: Duration = 60.0  # 43 and 45 this soon after another XID on the GPU are its consequence
    repeat_window: Duration = 86400.0
    repeats_critical: int = Field(default=3, ge=2, le=LARGEST)  # of a code that says "contact support"
    app_fault_threshold: int = Field(
        default=3, ge=2, le=LARGEST
    )  # faults of different processes on one GPU within repeat_window
    crash_loop_window: Duration = 3600.0  # two faults of programs of one name within this time are one program
    remaps_warning: int = Field(default=4, ge=2, le=LARGEST)  # XIDs 63 of one GPU within remap_window
    remap_window: Duration = 604800.0
    expire_after: Duration = 600.0  # how long an XID without a reading lasts if it does not recur


class Thermal(Section):
    """Distance to the GPU's own slowdown or maximum operating temperature, in degrees Celsius."""

    margin_warning_celsius: Count = 5
    critical_after: Duration = 30.0  # at the limit


class Clocks(Section):
    """Clock throttling, and GPUs slower than their neighbours. Shares in percent."""

    window: Duration = 60.0
    throttled_percent: float = Field(default=50.0, gt=0, le=100)
    straggler_percent: float = Field(default=85.0, gt=0, le=100)  # of the median clock of the node's busy GPUs
    busy_percent: int = Field(default=50, ge=1, le=100)  # utilization from which a GPU counts as under load


class Pcie(Section):
    """PCIe link errors: limits per minute, windows in seconds."""

    window: Duration = 60.0
    replays_per_minute: Count = 30
    correctable_per_minute: Count = 32
    uncorrectable_window: Duration = 3600.0  # after which a link without further uncorrectable errors is clean


class Nvlink(Section):
    """NVLink errors: a count within the window (seconds), and a bit error rate that is a finding at once."""

    window: Duration = 600.0
    errors: Count = 100
    effective_ber: float = Field(default=1e-12, gt=0)


class GpuMemory(Section):
    """Limits for GPU memory: bytes in use without a process, and retired pages."""

    leaked_bytes: Count = 1 << 30  # in use on a GPU that no process uses
    retired_pages: Count = 60  # the table holds 63; then the GPU must be replaced


class DriverRelease(Section):
    """Closing the driver on request, for a GPU reset or a driver upgrade. Durations in seconds."""

    max_duration: Duration = 7200.0  # a node whose driver is released longer than this is unknown
    reacquire_grace: Duration = 120.0  # for the driver to be back after the last request ended
    labels: tuple[ReleaseLabel, ...] = ()  # further labels of the Node that request it: patterns such as "a.com/b=busy"


class NvidiaSettings(Section):
    """Thresholds and deadlines for NVIDIA GPUs and their driver."""

    nvml: Nvml = Nvml()
    ecc: Ecc = Ecc()
    xid: Xid = Xid()
    thermal: Thermal = Thermal()
    clocks: Clocks = Clocks()
    pcie: Pcie = Pcie()
    nvlink: Nvlink = Nvlink()
    gpu_memory: GpuMemory = GpuMemory()
    driver_release: DriverRelease = DriverRelease()
    expected_gpus: Count | None = None  # wins over the number of GPUs seen before
