"""Which reading is compared with which value of nvidia-smi, and how far they may be apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from gpuhealth.model.missing import NOT_SUPPORTED
from gpuhealth.monitors.nvidia.readings import GpuReadings
from gpuproof.smi import Convert, bus_id, flag, number, one_of, text

_MIB = float(1 << 20)
_RECOVERY = one_of("none", "gpu reset|reset", "node reboot|reboot", "drain p2p", "drain and reset")
_VIRTUALIZATION = one_of("none", "pass-through|passthrough", "vgpu", "host vgpu", "host vsga|vsga")
_COMPUTE = one_of("default", "exclusive_thread", "prohibited", "exclusive_process")


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One comparison. The tolerance is in the unit of the reading, and for what changes all the time."""

    name: str
    read: Callable[[GpuReadings], Any]  # a value or Missing
    paths: tuple[str, ...]  # of the XML, below the GPU: newer names first
    convert: Convert = number
    column: str = ""  # of --query-gpu
    tolerance: float = 0.0
    share: float = 0.0  # of the value, in addition


def _field(name: str, *paths: str, **options: Any) -> Row:
    return Row(name=name, read=lambda gpu: getattr(gpu, name), paths=paths, **options)


def _item(field: str, key: str, *paths: str, **options: Any) -> Row:
    return Row(
        name=f"{field}.{key}", read=lambda gpu: getattr(gpu, field).get(key, NOT_SUPPORTED), paths=paths, **options
    )


_ECC = {
    "corrected_dram": ("dram_correctable",),
    "uncorrected_dram": ("dram_uncorrectable",),
    "corrected_sram": ("sram_correctable",),
    "uncorrected_sram": ("sram_uncorrectable", "sram_uncorrectable_parity + sram_uncorrectable_secded"),
}
_LINK, _ROWS, _PAGES = "pci/pci_gpu_link_info", "remapped_rows", "retired_pages"
_POWER = ("gpu_power_readings", "power_readings")
_COUNTERS = "clocks_event_reasons_counters/clocks_event_reasons_counters"


def _below(part: str, path: str) -> str:
    return " + ".join(f"{part}/{each}" for each in path.split(" + "))


ROWS = (
    _field("name", "product_name", convert=text, column="name"),
    _field("serial", "serial", convert=text, column="serial"),
    _field("vbios", "vbios_version", convert=text, column="vbios_version"),
    _field("minor", "minor_number"),
    _field("pci", "pci/pci_bus_id", convert=bus_id, column="pci.bus_id"),
    _field("temperature_celsius", "temperature/gpu_temp", column="temperature.gpu", tolerance=4),
    _field("temperature_margin_celsius", "temperature/gpu_temp_tlimit", tolerance=4),
    _field("memory_celsius", "temperature/memory_temp", column="temperature.memory", tolerance=4),
    _field("slowdown_celsius", "temperature/gpu_temp_slow_threshold"),
    _field("gpu_max_celsius", "temperature/gpu_temp_max_gpu_threshold"),
    _field("memory_max_celsius", "temperature/gpu_temp_max_mem_threshold"),
    _field(
        "power_milliwatts",
        *(f"{part}/{name}" for part in _POWER for name in ("power_draw", "average_power_draw", "instant_power_draw")),
        column="power.draw",
        tolerance=25_000,
        share=0.25,
    ),
    _field(
        "power_limit_milliwatts",
        *(f"{part}/{name}" for part in _POWER for name in ("current_power_limit", "enforced_power_limit")),
        column="enforced.power.limit",
        tolerance=10,
    ),
    _field("sm_clock_mhz", "clocks/sm_clock", column="clocks.current.sm", tolerance=300, share=0.3),
    _field("memory_clock_mhz", "clocks/mem_clock", column="clocks.current.memory", tolerance=100, share=0.1),
    _field("max_sm_clock_mhz", "max_clocks/sm_clock", column="clocks.max.sm"),
    _field("application_sm_clock_mhz", "applications_clocks/graphics_clock", column="clocks.applications.graphics"),
    _field("utilization_percent", "utilization/gpu_util", column="utilization.gpu", tolerance=40),
    _field("memory_total_bytes", "fb_memory_usage/total", column="memory.total", tolerance=_MIB),
    _field("memory_used_bytes", "fb_memory_usage/used", column="memory.used", tolerance=64 * _MIB),
    _field("ecc_enabled", "ecc_mode/current_ecc", convert=flag, column="ecc.mode.current"),
    _field("ecc_pending", "ecc_mode/pending_ecc", convert=flag, column="ecc.mode.pending"),
    *(
        _item("ecc_errors", f"{kind}_{key}", *(_below(f"ecc_errors/{kind}", path) for path in paths))
        for kind in ("volatile", "aggregate")
        for key, paths in _ECC.items()
    ),
    _field("sram_threshold_exceeded", "ecc_errors/aggregate/sram_threshold_exceeded", convert=flag),
    _field("unrepairable_memory", "ecc_errors/unrepairable_memory", convert=flag),
    *(_item("repair_pending", key, f"ecc_errors/{key}_repair_pending", convert=flag) for key in ("channel", "tpc")),
    _field("remap_correctable_rows", f"{_ROWS}/remapped_row_corr", column="remapped_rows.correctable"),
    _field("remap_uncorrectable_rows", f"{_ROWS}/remapped_row_unc", column="remapped_rows.uncorrectable"),
    _field("remap_pending", f"{_ROWS}/remapped_row_pending", convert=flag),
    _field("remap_failed", f"{_ROWS}/remapped_row_failure", convert=flag),
    *(
        _item("remap_histogram", key, f"{_ROWS}/row_remapper_histogram/row_remapper_histogram_{key}")
        for key in ("max", "high", "partial", "low", "none")
    ),
    _item("retired_pages", "single_bit", f"{_PAGES}/multiple_single_bit_retirement/retired_count"),
    _item("retired_pages", "double_bit", f"{_PAGES}/double_bit_retirement/retired_count"),
    _field("retirement_pending", f"{_PAGES}/pending_retirement", convert=flag),
    _field("recovery_action", "gpu_recovery_action", convert=_RECOVERY),
    *(
        _item("throttle_nanoseconds", key, f"{_COUNTERS}_{name}", tolerance=5e9)
        for key, name in {
            "sw_power_cap": "sw_power_cap",
            "sw_thermal": "sw_therm_slowdown",
            "hw_thermal": "hw_therm_slowdown",
            "power_brake": "hw_power_brake",
        }.items()
    ),
    _field("pcie_generation", f"{_LINK}/pcie_gen/current_link_gen", column="pcie.link.gen.current", tolerance=4),
    _field("pcie_generation_max", f"{_LINK}/pcie_gen/max_link_gen", column="pcie.link.gen.max"),
    _field("pcie_width", f"{_LINK}/link_widths/current_link_width", column="pcie.link.width.current"),
    _field("pcie_width_max", f"{_LINK}/link_widths/max_link_width", column="pcie.link.width.max"),
    _field("pcie_replays", "pci/replay_counter"),
    _field("persistence_mode", "persistence_mode", convert=flag, column="persistence_mode"),
    _field("compute_mode", "compute_mode", convert=_COMPUTE, column="compute_mode"),
    _field("virtualization_mode", "gpu_virtualization_mode/virtualization_mode", convert=_VIRTUALIZATION),
    _field("mig_enabled", "mig_mode/current_mig", convert=flag, column="mig.mode.current"),
)
"""Every reading of a GPU that nvidia-smi also shows."""
COLUMNS = ("uuid", *(row.column for row in ROWS if row.column))
