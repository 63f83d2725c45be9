"""nvidia-smi for the simulated driver: the values of its state in the real XML and CSV; `install` writes the program.

It reads the state itself and not through NVML, so that a reading that is wrong differs from it. SMI_LIES names a file
of JSON with texts that it gives in place of the true ones of the first GPU, by path of the XML.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from nvmlsim.simulator import COMMAND

_UNSUPPORTED = "N/A"
_MODES = ("Default", "Exclusive_Thread", "Prohibited", "Exclusive_Process")
_RECOVERY = ("None", "GPU Reset", "Node Reboot", "Drain P2P", "Drain and Reset")
_COLUMNS = {
    "uuid": "uuid", "name": "product_name", "serial": "serial", "vbios_version": "vbios_version",
    "pci.bus_id": "pci/pci_bus_id", "temperature.gpu": "temperature/gpu_temp",
    "temperature.memory": "temperature/memory_temp", "power.draw": "gpu_power_readings/average_power_draw",
    "enforced.power.limit": "gpu_power_readings/current_power_limit", "clocks.current.sm": "clocks/sm_clock",
    "clocks.current.memory": "clocks/mem_clock", "clocks.max.sm": "max_clocks/sm_clock",
    "clocks.applications.graphics": "applications_clocks/graphics_clock", "utilization.gpu": "utilization/gpu_util",
    "memory.total": "fb_memory_usage/total", "memory.used": "fb_memory_usage/used",
    "ecc.mode.current": "ecc_mode/current_ecc", "ecc.mode.pending": "ecc_mode/pending_ecc",
    "remapped_rows.correctable": "remapped_rows/remapped_row_corr",
    "remapped_rows.uncorrectable": "remapped_rows/remapped_row_unc",
    "pcie.link.gen.current": "pci/pci_gpu_link_info/pcie_gen/current_link_gen",
    "pcie.link.gen.max": "pci/pci_gpu_link_info/pcie_gen/max_link_gen",
    "pcie.link.width.current": "pci/pci_gpu_link_info/link_widths/current_link_width",
    "pcie.link.width.max": "pci/pci_gpu_link_info/link_widths/max_link_width",
    "persistence_mode": "persistence_mode", "mig.mode.current": "mig_mode/current_mig",
}  # fmt: skip
"""Columns of --query-gpu; compute_mode is left out, as a version does that does not know one."""


def install(folder: Path) -> None:
    """Write the program nvidia-smi into a folder, which belongs on PATH."""
    folder.mkdir(exist_ok=True)
    program = folder / "nvidia-smi"
    paths = os.pathsep.join(str(Path(__file__).parents[place]) for place in (1, 2))
    program.write_text(f'#!/bin/sh\nPYTHONPATH={paths} exec {sys.executable} -m testing.nvidia_smi "$@"\n')
    program.chmod(0o755)


class _State:
    """The values of one GPU of the simulated node."""

    def __init__(self, slot: int) -> None:
        self._slot = slot

    def text(self, name: str) -> str:
        return _get(f"gpu{self._slot}.{name}")

    def number(self, name: str) -> int:
        return int(self.text(name))

    def has(self, what: str) -> bool:
        return bool(self.number(f"supports.{what}"))


def _get(name: str) -> str:
    done = subprocess.run(
        [COMMAND, "get", os.environ["NVMLSIM_STATE"], name], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def _element(parent: ElementTree.Element, tree: dict[str, Any]) -> None:
    for name, value in tree.items():
        if isinstance(value, list):
            for each in value:
                _element(ElementTree.SubElement(parent, name), each)
            continue
        child = ElementTree.SubElement(parent, name)
        if isinstance(value, dict):
            _element(child, value)
        else:
            child.text = str(value)


def _on(value: int) -> str:
    return "Enabled" if value else "Disabled"


def _yes(value: int) -> str:
    return "Yes" if value else "No"


def _bus(gpu: _State) -> str:
    return f"{gpu.number('pci.domain'):08X}:{gpu.number('pci.bus'):02X}:{gpu.number('pci.device'):02X}.0"


def _ecc(gpu: _State, kind: str) -> dict[str, Any]:
    counts = {
        "sram_correctable": gpu.number(f"ecc.{kind}.corrected.sram"),
        "sram_uncorrectable_parity": gpu.number(f"ecc.{kind}.uncorrected.sram"),
        "sram_uncorrectable_secded": 0,
        "dram_correctable": gpu.number(f"ecc.{kind}.corrected.dram"),
        "dram_uncorrectable": gpu.number(f"ecc.{kind}.uncorrected.dram"),
    }
    threshold = {"sram_threshold_exceeded": _yes(gpu.number("sram.threshold_exceeded"))} if kind == "aggregate" else {}
    return counts | threshold if gpu.has("ecc") else dict.fromkeys(counts, _UNSUPPORTED)


def _memory(gpu: _State) -> dict[str, Any]:
    total, reserved, used = (gpu.number(f"memory.{name}") >> 20 for name in ("total", "reserved", "used"))
    parts = {"total": total, "reserved": reserved, "used": used, "free": total - reserved - used}
    return {name: f"{value} MiB" for name, value in parts.items()}


def _gpu(gpu: _State, minor: int) -> dict[str, Any]:
    histogram = ("max", "high", "partial", "low", "none")
    memory_celsius = f"{gpu.number('memory_temperature')} C" if gpu.has("memory_temperature") else _UNSUPPORTED
    pages = {"retired_count": _UNSUPPORTED, "retired_pagelist": _UNSUPPORTED}
    return {
        "product_name": gpu.text("name"),
        "display_mode": "Requested functionality has been deprecated",
        "persistence_mode": _on(gpu.number("persistence_mode")),
        "mig_mode": {
            f"{when}_mig": _on(gpu.number(f"mig.{name}")) if gpu.has("mig") else _UNSUPPORTED
            for when, name in (("current", "mode"), ("pending", "pending"))
        },
        "mig_devices": {"mig_device": [{"index": index} for index in range(8) if gpu.number(f"mig{index}.present")]},
        "serial": gpu.text("serial"),
        "uuid": gpu.text("uuid"),
        "minor_number": minor,
        "vbios_version": gpu.text("vbios"),
        "gpu_virtualization_mode": {"virtualization_mode": "None"},
        "gpu_reset_status": {"reset_required": "Requested functionality has been deprecated"},
        "gpu_recovery_action": _RECOVERY[gpu.number("recovery_action")] if gpu.has("recovery_action") else _UNSUPPORTED,
        "pci": {
            "pci_bus_id": _bus(gpu),
            "pci_gpu_link_info": {
                "pcie_gen": {
                    "max_link_gen": gpu.number("pcie.max_generation"),
                    "current_link_gen": gpu.number("pcie.generation"),
                },
                "link_widths": {
                    "max_link_width": f"{gpu.number('pcie.max_width')}x",
                    "current_link_width": f"{gpu.number('pcie.width')}x",
                },
            },
            "replay_counter": gpu.number("pcie.replays"),
        },
        "clocks_event_reasons_counters": {
            f"clocks_event_reasons_counters_{name}": f"{gpu.number(f'throttle_ns.{ours}') // 1000} us"
            for name, ours in (
                ("sw_power_cap", "power_cap"),
                ("sw_therm_slowdown", "sw_thermal"),
                ("hw_therm_slowdown", "hw_thermal"),
                ("hw_power_brake", "power_brake"),
            )
        },
        "fb_memory_usage": _memory(gpu),
        "compute_mode": _MODES[gpu.number("compute_mode")],
        "utilization": {"gpu_util": f"{gpu.number('utilization.gpu')} %"},
        "ecc_mode": {
            f"{when}_ecc": _on(gpu.number(f"ecc.{name}")) if gpu.has("ecc") else _UNSUPPORTED
            for when, name in (("current", "mode"), ("pending", "pending"))
        },
        "ecc_errors": {kind: _ecc(gpu, kind) for kind in ("volatile", "aggregate")},
        "retired_pages": {
            "multiple_single_bit_retirement": pages,
            "double_bit_retirement": pages,
            "pending_retirement": _UNSUPPORTED,
        },
        "remapped_rows": {
            "remapped_row_corr": gpu.number("remap.corrected"),
            "remapped_row_unc": gpu.number("remap.uncorrected"),
            "remapped_row_pending": _yes(gpu.number("remap.pending")),
            "remapped_row_failure": _yes(gpu.number("remap.failure")),
            "row_remapper_histogram": {
                f"row_remapper_histogram_{name}": f"{gpu.number(f'remap.histogram.{name}')} bank(s)"
                for name in histogram
            },
        },
        "temperature": {"gpu_temp": f"{gpu.number('temperature')} C", "memory_temp": memory_celsius},
        "gpu_power_readings": {
            "power_state": "P0",
            "average_power_draw": f"{gpu.number('power.usage') / 1000:.2f} W",
            "instant_power_draw": f"{gpu.number('power.usage') / 1000:.2f} W",
            "current_power_limit": f"{gpu.number('power.enforced_limit') / 1000:.2f} W",
        },
        "clocks": {"sm_clock": f"{gpu.number('clocks.sm')} MHz", "mem_clock": f"{gpu.number('clocks.mem')} MHz"},
        "applications_clocks": {"graphics_clock": f"{gpu.number('application_clocks.sm')} MHz"},
        "max_clocks": {"sm_clock": f"{gpu.number('max_clocks.sm')} MHz"},
        "voltage": {"graphics_volt": "Requested functionality has been deprecated"},
    }


def _log() -> ElementTree.Element:
    root = ElementTree.Element("nvidia_smi_log")
    present = [slot for slot in range(int(_get("node.gpus"))) if _State(slot).number("present")]
    _element(root, {"driver_version": _get("node.driver_version"), "attached_gpus": len(present)})
    for minor, slot in enumerate(present):
        gpu = ElementTree.SubElement(root, "gpu", id=_bus(_State(slot)))
        _element(gpu, _gpu(_State(slot), minor))
    lies = json.loads(Path(os.environ["SMI_LIES"]).read_text()) if "SMI_LIES" in os.environ else {}
    for path, text in lies.items():
        for element in root.findall(f"gpu/{path}")[:1] or root.findall(path):
            element.text = text
    return root


def main(words: list[str]) -> int:
    """Answer `-q -x` and `--query-gpu=… --format=csv,noheader`."""
    if words == ["-q", "-x"]:
        print('<?xml version="1.0" ?>\n<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">')
        print(ElementTree.tostring(_log(), encoding="unicode"))
        return 0
    names = words[0].removeprefix("--query-gpu=").split(",")
    if unknown := [name for name in names if name not in _COLUMNS]:
        print(f'Field "{unknown[0]}" is not a valid field to query.\n')
        return 2
    for gpu in _log().findall("gpu"):
        cells = [gpu.findtext(_COLUMNS[name], "") for name in names]
        print(", ".join(f"[{cell}]" if cell == _UNSUPPORTED else cell for cell in cells))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
