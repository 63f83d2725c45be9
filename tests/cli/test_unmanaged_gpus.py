"""`gpuhealth check` on machines with GPUs that the node's NVIDIA driver is not meant to use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from testing.command import Node, Said
from testing.pci_tree import AUDIO, CONTROLLER_3D, USB, VGA, add_function, bind

LAST = "0000:df:00.0"  # the eighth GPU of the simulated machine
GT_710, T4 = 0x128B, 0x1EB8


@pytest.fixture
def sys(gpu_node: Node) -> Path:
    """The /sys of the machine with eight GPUs."""
    return gpu_node.root / "sys"


def codes(said: Said) -> dict[str, str]:
    """The severity of each finding by its code."""
    return {finding["code"]: finding["severity"] for finding in said.json["findings"]}


def message(said: Said, code: str = "gpu.unmanaged") -> str:
    """The message of the finding with a code."""
    (found,) = (finding["message"] for finding in said.json["findings"] if finding["code"] == code)
    return str(found)


def inject(node: Node, fault: str, /, **arguments: Any) -> None:
    """Injects a fault into the simulated machine."""
    assert node.simulator
    node.simulator.inject(fault, **arguments)


@pytest.mark.parametrize("driver", ["vfio-pci", "pci-stub", "xen-pciback", "nvgrace_gpu_vfio_pci", "nvidia_vgpu_vfio"])
@pytest.mark.parametrize("node_stays", [0, 1])
def test_handed_over(gpu_node: Node, sys: Path, driver: str, node_stays: int) -> None:
    """A GPU that is bound to another driver is information; its device node may stay behind."""
    inject(gpu_node, "passthrough", gpu=7, node=node_stays)
    bind(sys, LAST, driver)
    said = gpu_node.run("check", "--json")
    assert (said.code, said.json["verdict"], codes(said)) == (0, "healthy", {"gpu.unmanaged": "info"})
    assert f"{LAST} is bound to {driver}" in message(said)
    assert len(said.json["gpus"]) == 7


@pytest.mark.parametrize(("override", "missing"), [("vfio-pci", False), ("(null)", True), ("nvidia", True)])
def test_reserved_for_another_driver(gpu_node: Node, sys: Path, override: str, missing: bool) -> None:
    """A GPU that waits for the next virtual machine has no driver, and may be bound to vfio-pci alone."""
    inject(gpu_node, "drop", gpu=7, bus=1)
    (sys / "bus/pci/devices" / LAST / "driver_override").write_text(f"{override}\n")
    said = gpu_node.run("check", "--json")
    assert codes(said) == ({"gpu.missing": "critical"} if missing else {"gpu.unmanaged": "info"})
    assert missing or f"{LAST} is reserved for vfio-pci" in message(said)


@pytest.mark.parametrize("driver", ["", "nouveau", "nova_core"])
def test_taken_by_no_driver(gpu_node: Node, sys: Path, driver: str) -> None:
    """A GPU that no driver took, or one that binds by itself, is missing."""
    inject(gpu_node, "drop", gpu=7, bus=1)
    bind(sys, LAST, driver)
    said = gpu_node.run("check", "--json")
    assert (said.code, codes(said)) == (2, {"gpu.missing": "critical"})
    assert f"{LAST} is not in NVML" in message(said, "gpu.missing")


def test_the_configured_number_counts_handed_over_gpus_as_missing(gpu_node: Node) -> None:
    """With 8 expected, a GPU given to a virtual machine is missing, and the message says where it is."""
    inject(gpu_node, "passthrough", gpu=7)
    said = gpu_node.run("check", "--json", "--expected-gpus", "8")
    assert (said.code, codes(said)["gpu.missing"]) == (2, "critical")
    assert f"{LAST} is bound to vfio-pci" in message(said, "gpu.missing")
    assert gpu_node.run("check", "--expected-gpus", "7").code == 0


@pytest.mark.parametrize("arguments", [(), ("--expected-gpus", "0")])
@pytest.mark.parametrize("library", [True, False], ids=["not loaded", "no library"])
def test_all_belong_to_virtual_machines(gpu_node: Node, arguments: tuple[str, ...], library: bool) -> None:
    """A host without NVIDIA's driver, whose GPUs all belong to virtual machines, has nothing to check."""
    inject(gpu_node, "passthrough")
    inject(gpu_node, "init_failure")
    more = {} if library else {"LD_LIBRARY_PATH": "/nonexistent"}
    said = gpu_node.run("check", "--json", *arguments, **more)
    assert (said.code, said.json["verdict"], said.json["gpus"]) == (0, "healthy", [])
    assert codes(said) == {"gpu.unmanaged": "info"}
    assert len(message(said)) < 400
    text = gpu_node.run("check", *arguments, **more)
    assert text.out.splitlines()[-1].endswith("has no GPU to use: nothing to check.")


def test_driver_loaded_for_no_gpu(gpu_node: Node) -> None:
    """A driver that is loaded and lists no GPU is healthy, if all GPUs belong to virtual machines."""
    inject(gpu_node, "passthrough")
    said = gpu_node.run("check", "--json")
    assert (said.code, codes(said)) == (0, {"gpu.unmanaged": "info"})


def test_expected_where_all_belong_to_virtual_machines(gpu_node: Node) -> None:
    """The configured number decides: eight GPUs that should be the driver's are not."""
    inject(gpu_node, "passthrough")
    inject(gpu_node, "init_failure")
    assert codes(gpu_node.run("check", "--json", "--expected-gpus", "8"))["driver.not_loaded"] == "critical"


def test_driver_gone_under_its_gpus(gpu_node: Node) -> None:
    """GPUs that no driver holds are no virtual machine's: the node lacks its driver."""
    inject(gpu_node, "drop", bus=1)
    inject(gpu_node, "init_failure")
    assert codes(gpu_node.run("check", "--json"))["driver.not_loaded"] == "critical"


def test_virtual_functions(tmp_path: Path) -> None:
    """A DGX A100 that hosts vGPUs, with twenty virtual functions for each of eight GPUs, has eight GPUs."""
    node = Node(tmp_path).with_gpus("a100-sxm4-80gb")
    assert node.simulator
    for gpu in range(8):
        bus = node.simulator.get(f"gpu{gpu}.pci.bus")
        for number in range(20):
            place = f"0000:{bus:02x}:{number // 8:02x}.{number % 8}" if number >= 8 else f"0000:{bus:02x}:1e.{number}"
            above = f"0000:{bus - 1:02x}:01.0"
            add_function(node.root / "sys", f"{above}/{place}", CONTROLLER_3D, 0x20B2, physical=f"0000:{bus:02x}:00.0")
    inject(node, "leaked_memory", mib=60_000)  # of the virtual machines
    for arguments in ((), ("--expected-gpus", "8")):
        said = node.run("check", "--json", *arguments)
        assert (said.code, codes(said), len(said.json["gpus"])) == (0, {}, 8)


@pytest.mark.parametrize("arguments", [(), ("--expected-gpus", "8")])
@pytest.mark.parametrize("driver", ["", "nouveau"])
def test_display_card(gpu_node: Node, sys: Path, arguments: tuple[str, ...], driver: str) -> None:
    """An old display card that the driver does not take is no GPU of the node."""
    add_function(sys, "0000:00:1c.0/0000:02:00.0", VGA, GT_710, driver=driver)
    add_function(sys, "0000:00:1c.0/0000:02:00.1", AUDIO, 0x0E0F, driver="snd_hda_intel")
    add_function(sys, "0000:00:1c.0/0000:02:00.2", USB, 0x1AD8, driver="xhci_hcd")
    said = gpu_node.run("check", "--json", *arguments)
    assert (said.code, codes(said)) == (0, {"gpu.unmanaged": "info"})
    assert "0000:02:00.0 is a display card" in message(said)


def test_ninth_gpu_of_the_same_kind_is_missing(gpu_node: Node, sys: Path) -> None:
    """A GPU without a display that the driver does not list is missing, unless the configured number is reached."""
    add_function(sys, "0000:03:01.0/0000:04:00.0", CONTROLLER_3D, 0x2330)
    assert codes(gpu_node.run("check", "--json")) == {"gpu.missing": "critical"}
    assert gpu_node.run("check", "--expected-gpus", "8").code == 0


@pytest.mark.parametrize("option", ["excluded", "Blacklisted", "assigned"])
def test_excluded_by_the_drivers_options(gpu_node: Node, sys: Path, option: str) -> None:
    """A GPU that the options of the driver exclude is information."""
    inject(gpu_node, "drop", gpu=7, bus=1)
    driver = gpu_node.root / "proc/driver/nvidia"
    if option == "assigned":
        (driver / "params").write_text('ResmanDebugLevel: 4294967295\nAssignGpus: "0:1b:00.0,0000:43:00,52:00"\n')
    else:
        bind(sys, LAST, "nvidia")
        (driver / "gpus" / LAST).mkdir()
        label = "GPU Excluded" if option == "excluded" else option
        (driver / "gpus" / LAST / "information").write_text(f"Model: \t\t NVIDIA H100\n{label}:\t Yes\n")
    said = gpu_node.run("check", "--json")
    assert (said.code, codes(said)) == (0, {"gpu.unmanaged": "info"})
    assert f"{LAST} is excluded by the driver's options" in message(said)


def test_excluded_gpu_of_a_driver_that_names_it_otherwise(gpu_node: Node, sys: Path) -> None:
    """A GPU that the driver holds, does not exclude and does not list is missing."""
    inject(gpu_node, "drop", gpu=7, bus=1)
    bind(sys, LAST, "nvidia")
    (gpu_node.root / "proc/driver/nvidia/gpus" / LAST).mkdir()
    (gpu_node.root / "proc/driver/nvidia/gpus" / LAST / "information").write_bytes(b"GPU Excluded:\t No\n\xff\xfe")
    assert codes(gpu_node.run("check", "--json")) == {"gpu.missing": "critical"}


@pytest.mark.parametrize("total", ["system memory", "own memory"])
def test_memory_of_the_system(tmp_path: Path, total: str) -> None:
    """What NVML shows as used on a GPU that shares the memory of the machine is no leak; on another GPU it is."""
    node = Node(tmp_path).with_gpus("t4", 1)
    assert node.simulator
    system = 128 << 30
    (node.root / "proc/meminfo").write_text(f"MemTotal:       {system // 1024} kB\nMemFree:  1024 kB\n")
    if total == "system memory":
        node.simulator.set({"gpu0.memory.total": system})
    inject(node, "leaked_memory", mib=9_000)
    assert codes(node.run("check", "--json")) == ({} if total == "system memory" else {"gpu.leaked_memory": "warning"})


@pytest.mark.parametrize(
    ("name", "value", "leaks"),
    [("virtualization_mode", 3, False), ("virtualization_mode", 4, False), ("virtualization_mode", 1, True)],
)
def test_memory_of_virtual_machines(tmp_path: Path, name: str, value: int, leaks: bool) -> None:
    """Memory used on a vGPU host belongs to virtual machines; inside one that has the whole GPU it is a leak."""
    node = Node(tmp_path).with_gpus("l40s", 2)
    assert node.simulator
    node.simulator.set({f"gpu*.{name}": value})
    inject(node, "leaked_memory")
    assert ("gpu.leaked_memory" in codes(node.run("check", "--json"))) is leaks


@pytest.mark.parametrize(
    ("arguments", "expected"), [((), 3), (("--expected-gpus", "0"), 0), (("--expected-gpus", "1"), 2)]
)
def test_machine_without_gpus(node: Node, arguments: tuple[str, ...], expected: int) -> None:
    """A machine without GPU and driver is unknown, unless the configured number says that it should have none."""
    assert node.run("check", "--json", *arguments).code == expected


def test_vgpu_manager(tmp_path: Path) -> None:
    """Where the vGPU manager runs, memory that no process holds belongs to virtual machines."""
    node = Node(tmp_path).with_gpus("l40s", 2)
    inject(node, "leaked_memory")
    assert codes(node.run("check", "--json")) == {"gpu.leaked_memory": "warning"}
    (node.root / "proc/900").mkdir()
    (node.root / "proc/900/comm").write_text("nvidia-vgpu-mgr\n")
    assert codes(node.run("check", "--json")) == {}
