"""`gpuhealth check` on models of newer generations: healthy, with their main faults, and without their services."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from testing.command import Node, Said
from testing.pci_tree import INFINIBAND, MELLANOX, add_function


def codes(said: Said) -> dict[str, str]:
    """The severity of each finding by its code."""
    return {finding["code"]: finding["severity"] for finding in said.json["findings"]}


def message(said: Said, code: str) -> str:
    """The message of the finding with a code."""
    (found,) = (finding["message"] for finding in said.json["findings"] if finding["code"] == code)
    return str(found)


def inject(node: Node, fault: str, /, **arguments: Any) -> None:
    """Injects a fault into the simulated machine."""
    assert node.simulator
    node.simulator.inject(fault, **arguments)


MAIN_FAULTS = {
    "lost": "gpu.lost",
    "drop": "gpu.missing",
    "reset_required": "gpu.reset_required",
    "ecc_uncorrectable": "ecc.uncorrectable",
    "remap_failed": "gpu_memory.remap_failed",
    "overheat": "thermal.gpu",
    "pcie_width": "pcie.width",
}
NVLINK_FAULTS = {"fabric_incomplete": "fabric.incomplete", "fabric_unhealthy": "fabric.unhealthy"}


@pytest.mark.parametrize(("model", "gpus"), [("b300", 8), ("gb200", 4), ("gb300", 4), ("h20", 8), ("rtx-pro-6000", 8)])
def test_main_faults(tmp_path: Path, model: str, gpus: int) -> None:
    """A healthy machine has no finding, and each fault has its own."""
    node = Node(tmp_path).with_gpus(model, gpus)
    assert node.simulator
    assert codes(node.run("check", "--json")) == {}
    for fault, code in (MAIN_FAULTS | ({} if model == "rtx-pro-6000" else NVLINK_FAULTS)).items():
        inject(node, fault, gpu=1, **({"bus": 1} if fault == "drop" else {}))
        said = node.run("check", "--json")
        assert code in codes(said), fault
        assert said.code == (1 if fault == "pcie_width" else 2), fault
        node.simulator.clear()


@pytest.mark.parametrize("model", ["gb200", "gb300"])
def test_fabric_across_nodes(tmp_path: Path, model: str) -> None:
    """A compute tray of an NVL72 has no fabric manager: its fabric is managed on the switch trays."""
    node = Node(tmp_path).with_gpus(model, 4)
    (node.root / "proc/4711/comm").write_text("bash\n")
    inject(node, "leaked_memory", mib=60_000)  # page cache: the kernel uses the GPU's memory, too
    said = node.run("check", "--json")
    assert (said.code, codes(said), len(said.json["gpus"])) == (0, {}, 4)


@pytest.mark.parametrize(
    ("running", "expected"), [("nv-fabricmanage", "nvlsm"), ("nvlsm", "nv-fabricmanager"), ("", "")]
)
def test_switches_behind_infiniband(tmp_path: Path, running: str, expected: str) -> None:
    """On HGX B200 the NVSwitches are reached through ConnectX-7 functions, by fabric manager and nvlsm."""
    node = Node(tmp_path).with_gpus("b200")
    for number, product in enumerate((b"MCX75310AAS-NEAT", b"V0-SMDL=SW_MNG", b"V0-SMDL=SW_MNG")):
        address = add_function(
            node.root / "sys", f"0000:05:00.0/0000:06:00.{number}", INFINIBAND, 0x1021, vendor=MELLANOX
        )
        device = node.root / "sys/class/infiniband" / f"mlx5_{number}"
        device.mkdir(parents=True)
        (device / "device").symlink_to(node.root / "sys/bus/pci/devices" / address)
        (device / "device/vpd").write_bytes(b"\x82\x2a\x00NVIDIA ConnectX-7\x90" + product + b"\x78")
    (node.root / "proc/4711/comm").write_text(f"{running}\n")
    said = node.run("check", "--json")
    assert codes(said) == {"fabric.manager_down": "critical"}
    assert expected in message(said, "fabric.manager_down")
    assert "mlx5_1, mlx5_2" in message(said, "fabric.manager_down")
    for pid, name in (("4711", "nv-fabricmanage"), ("4712", "nvlsm")):
        (node.root / "proc" / pid).mkdir(exist_ok=True)
        (node.root / "proc" / pid / "comm").write_text(f"{name}\n")
    assert codes(node.run("check", "--json")) == {}


def test_part_of_a_baseboard_in_a_virtual_machine(tmp_path: Path) -> None:
    """A virtual machine with some GPUs of a HGX B200, and without its switches, needs no fabric manager."""
    node = Node(tmp_path).with_gpus("b200", 2)
    assert node.simulator
    (node.root / "proc/4711/comm").write_text("bash\n")
    assert codes(node.run("check", "--json")) == {"fabric.manager_down": "critical"}
    node.simulator.set({"gpu*.virtualization_mode": 1})
    assert codes(node.run("check", "--json")) == {}


@pytest.mark.parametrize(("model", "gpus"), [("rtx-pro-6000", 8), ("a100-pcie-80gb", 2), ("h20", 8), ("b300", 8)])
def test_models_with_their_services(tmp_path: Path, model: str, gpus: int) -> None:
    """Only a node with a fabric of its own needs the fabric manager."""
    node = Node(tmp_path).with_gpus(model, gpus)
    assert codes(node.run("check", "--json")) == {}
    (node.root / "proc/4711/comm").write_text("bash\n")
    needed = model in ("h20", "b300")
    assert codes(node.run("check", "--json")) == ({"fabric.manager_down": "critical"} if needed else {})
