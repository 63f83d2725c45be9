"""The node's files below its root."""

from pathlib import Path

import pytest
from nvmlsim.simulator import Simulator, SimulatorError


@pytest.fixture
def node(tmp_path: Path) -> Simulator:
    """An H100 node of four GPUs."""
    return Simulator(tmp_path, gpus=4)


def _functions(node: Simulator, pci_class: str) -> list[str]:
    devices = (node.root / "sys/bus/pci/devices").iterdir()
    return sorted(device.name for device in devices if (device / "class").read_text() == f"{pci_class}\n")


def _read(node: Simulator, file: str, gpu: str = "0000:43:00.0") -> str:
    return (node.root / "sys/bus/pci/devices" / gpu / file).read_text()


def test_what_a_node_shows(node: Simulator) -> None:
    """Device nodes, GPUs and switches on the PCI bus, the driver's version and its GPUs."""
    names = {entry.name for entry in (node.root / "dev").iterdir()}
    assert names >= {"nvidia0", "nvidia1", "nvidia2", "nvidia3", "nvidiactl", "nvidia-uvm", "nvidia-nvswitch3"}
    assert _functions(node, "0x030200") == ["0000:1b:00.0", "0000:43:00.0", "0000:52:00.0", "0000:61:00.0"]
    assert len(_functions(node, "0x068000")) == 4
    assert (_read(node, "vendor"), _read(node, "device")) == ("0x10de\n", "0x2330\n")
    assert (_read(node, "current_link_speed"), _read(node, "current_link_width")) == ("32.0 GT/s PCIe\n", "16\n")
    assert (node.root / "sys/bus/pci/devices/0000:43:00.0/driver").resolve().name == "nvidia"
    assert (node.root / "sys/bus/pci/drivers/nvidia/0000:43:00.0/class").exists()
    assert "550.90.07" in (node.root / "proc/driver/nvidia/version").read_text()
    information = (node.root / "proc/driver/nvidia/gpus/0000:43:00.0/information").read_text()
    assert node.text("gpu1.uuid") in information
    assert "Device Minor: \t 1\n" in information


def test_aer_counters(node: Simulator) -> None:
    """AER files have the kernel's lines and follow the state, by value and by fault."""
    node.set({"gpu1.aer.correctable.BadTLP": 40})
    node.inject("aer", gpu=1, severity="correctable", kind="RxErr", count=2)
    lines = dict(line.split() for line in _read(node, "aer_dev_correctable").splitlines())
    assert (lines["BadTLP"], lines["RxErr"], lines["BadDLLP"], lines["TOTAL_ERR_COR"]) == ("40", "2", "0", "42")
    node.inject("aer", gpu=1, severity="fatal", kind="SDES")
    assert "SDES 1\n" in _read(node, "aer_dev_fatal")
    assert _read(node, "aer_dev_fatal").endswith("TOTAL_ERR_FATAL 1\n")
    assert _read(node, "aer_dev_nonfatal").endswith("TOTAL_ERR_NONFATAL 0\n")
    node.clear("aer")
    assert "RxErr 0\n" in _read(node, "aer_dev_correctable")
    assert "BadTLP 40\n" in _read(node, "aer_dev_correctable")


def test_the_link(node: Simulator) -> None:
    """A narrow or slow link shows; the registers of a lost GPU read as all ones."""
    node.inject("pcie_width", gpu=1, width=4)
    node.inject("pcie_generation", gpu=1, generation=1)
    assert (_read(node, "current_link_speed"), _read(node, "current_link_width")) == ("2.5 GT/s PCIe\n", "4\n")
    assert (_read(node, "max_link_speed"), _read(node, "max_link_width")) == ("32.0 GT/s PCIe\n", "16\n")
    node.inject("lost", gpu=1)
    assert (_read(node, "current_link_speed"), _read(node, "current_link_width")) == ("Unknown\n", "63\n")


def test_a_dropped_gpu_is_gone_everywhere(node: Simulator) -> None:
    """A GPU that is dropped leaves /dev, /sys and /proc, and comes back when it is cleared."""
    places = [
        node.root / "dev/nvidia1",
        node.root / "sys/bus/pci/devices/0000:43:00.0",
        node.root / "sys/bus/pci/drivers/nvidia/0000:43:00.0",
        node.root / "proc/driver/nvidia/gpus/0000:43:00.0",
    ]
    node.inject("drop", gpu=1)
    assert not any(place.exists() or place.is_symlink() for place in places)
    node.clear("drop")
    assert all(place.exists() for place in places)


def test_a_gpu_that_only_the_driver_misses(node: Simulator) -> None:
    """The bus can still show a GPU that the driver does not enumerate."""
    node.inject("drop", gpu=1, bus=1)
    assert len(_functions(node, "0x030200")) == 4
    assert not (node.root / "sys/bus/pci/devices/0000:43:00.0/driver").is_symlink()
    assert not (node.root / "dev/nvidia1").exists()


def test_models_without_switches(tmp_path: Path) -> None:
    """A PCIe node shows no switches."""
    node = Simulator(tmp_path, "l40s", 2)
    assert _functions(node, "0x068000") == []
    assert _read(node, "current_link_speed", "0000:17:00.0") == "2.5 GT/s PCIe\n"
    node.inject("busy", gpu=0)
    assert _read(node, "current_link_speed", "0000:17:00.0") == "16.0 GT/s PCIe\n"


def test_a_folder_of_others_is_refused(node: Simulator, tmp_path: Path) -> None:
    """The files never go into the real /dev, nor where someone else's files are."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    for folder in ("/", str(tmp_path / "mine")):
        with pytest.raises(SimulatorError, match="not empty"):
            node.run("tree", folder)


def test_another_node_in_the_same_folder(node: Simulator, tmp_path: Path) -> None:
    """Nothing is left of the node that was there before."""
    smaller = Simulator(tmp_path, "t4", 1)
    assert smaller.root == node.root
    assert _functions(smaller, "0x030200") == ["0000:17:00.0"]
    assert not (smaller.root / "dev/nvidia1").exists()
