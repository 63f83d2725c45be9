"""Metrics of NVIDIA GPUs and of the NVML child process: name, type, help and labels of each."""

from __future__ import annotations

from gpuhealth.api.metrics import counter, gauge

GPU_INFO = gauge("gpu_info", "Identity of a GPU", "gpu", "index", "pci", "model", "serial", "vbios", "driver")
TEMPERATURE = gauge("gpu_temperature_celsius", "Temperature of the core", "gpu")
TEMPERATURE_MARGIN = gauge("gpu_temperature_margin_celsius", "Degrees left before the GPU slows down", "gpu")
MEMORY_TEMPERATURE = gauge("gpu_memory_temperature_celsius", "Temperature of the memory", "gpu")
POWER = gauge("gpu_power_watts", "Power drawn", "gpu")
POWER_LIMIT = gauge("gpu_power_limit_watts", "Power limit that is enforced", "gpu")
SM_CLOCK = gauge("gpu_sm_clock_hertz", "Clock of the multiprocessors", "gpu")
UTILIZATION = gauge("gpu_utilization_ratio", "Share of the time in which a kernel ran", "gpu")
MEMORY_USED = gauge("gpu_memory_used_bytes", "Memory in use, without what the driver reserves", "gpu")
MEMORY_TOTAL = gauge("gpu_memory_total_bytes", "Memory of the GPU", "gpu")
PCIE_WIDTH = gauge("gpu_pcie_width_lanes", "Lanes of the PCIe link in use", "gpu")
PCIE_REPLAYS = counter("gpu_pcie_replays", "PCIe packets sent again", "gpu")
RECOVERY_ACTION = gauge("gpu_recovery_action", "Recovery action of NVML (field 230); 0 is none", "gpu")
THROTTLE_SECONDS = counter("gpu_throttle_seconds", "Time in which the clocks were reduced", "gpu", "reason")
ECC_ERRORS = counter(
    "gpu_ecc_errors",
    "ECC errors: type (corrected, uncorrected), counter (volatile since the driver was loaded, aggregate), location",
    "gpu",
    "type",
    "counter",
    "location",
)
REMAPPED_ROWS = gauge("gpu_remapped_rows", "Memory rows remapped, by cause", "gpu", "kind")
ROW_REMAP_PENDING = gauge("gpu_row_remap_pending", "1 while a row remapping waits for a GPU reset", "gpu")
ROW_REMAP_FAILURE = gauge("gpu_row_remap_failure", "1 when a row could not be remapped", "gpu")
NVLINK_UP = gauge("nvlink_up", "1 while an NVLink is active", "gpu", "link")

NVML_SECONDS = gauge("agent_nvml_seconds", "Duration of NVML's last round, or the wait for the one outstanding")
NVML_PROCESSES = gauge("agent_nvml_processes", "NVML processes, including hung ones")
NVML_PROCESS_STARTS = counter("agent_nvml_process_starts", "NVML processes started")
DRIVER_RELEASED = gauge("agent_driver_released", "1 while the driver is released on request")
RELEASED = gauge(
    "released",
    "1 while the driver is released and NVML is not read",
    "reason",
)
