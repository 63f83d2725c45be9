"""The PCI scan on trees like the kernel's."""

from __future__ import annotations

from pathlib import Path

import pytest
from nvmlsim.simulator import Simulator

from gpuhealth.model.missing import Missing, MissingReason
from gpuhealth.monitors.nvidia.pci import PciProbe


@pytest.fixture
def node(tmp_path: Path) -> Simulator:
    """A node of eight H100 and its switches."""
    return Simulator(tmp_path)


def scan(probe: PciProbe) -> dict[str, tuple[bool, bool]]:
    """By address, whether a function is a GPU and whether it is an NVSwitch."""
    found = probe.read()
    assert not isinstance(found, Missing)
    return {device.address: (device.is_gpu, device.is_nvswitch) for device in found}


def test_gpus_and_switches_are_told_apart(node: Simulator) -> None:
    """Eight GPUs and four NVSwitches, in the order of their addresses, and none of another vendor."""
    other = node.root / "sys/bus/pci/devices/0000:00:01.0"
    other.mkdir()
    for name, text in (("vendor", "0x8086"), ("device", "0x1234"), ("class", "0x030000")):
        (other / name).write_text(f"{text}\n")
    found = scan(PciProbe(node.root / "sys"))
    assert list(found) == sorted(found)
    assert [list(found.values()).count(kind) for kind in ((True, False), (False, True))] == [8, 4]
    assert "0000:00:01.0" not in found


def test_a_function_that_goes_is_not_listed(node: Simulator) -> None:
    """A GPU that has left the bus is not in the next scan of the same probe."""
    probe = PciProbe(node.root / "sys")
    before = scan(probe)
    node.inject("drop", gpu=3)
    assert len(before) - len(scan(probe)) == 1


def test_error_counters_are_the_kernels_totals(node: Simulator) -> None:
    """AER counters are read again in every scan."""
    probe = PciProbe(node.root / "sys")
    probe.read()
    node.inject("aer", gpu=0, severity="fatal", count=2)
    node.inject("aer", gpu=0, severity="correctable", count=40)
    found = probe.read()
    assert not isinstance(found, Missing)
    counts = [(device.aer_fatal, device.aer_correctable) for device in found if device.aer_fatal]
    assert counts == [(2, 40)]


def test_no_counters_and_bad_counters(node: Simulator) -> None:
    """A function without AER has nothing to check; a file without its total is an error, not a zero."""
    devices = node.root / "sys/bus/pci/devices"
    first, second = sorted(path for path in devices.iterdir() if (path / "class").read_text().startswith("0x0302"))[:2]
    (first / "aer_dev_fatal").unlink()
    (second / "aer_dev_fatal").write_text("Undefined 0\n")
    found = PciProbe(node.root / "sys").read()
    assert not isinstance(found, Missing)
    fatal = {str(device.address): device.aer_fatal for device in found}
    assert [_reason(fatal[path.name]) for path in (first, second)] == [MissingReason.NOT_SUPPORTED, MissingReason.ERROR]


def _reason(reading: int | Missing) -> MissingReason | None:
    return reading.reason if isinstance(reading, Missing) else None


def test_no_tree(tmp_path: Path) -> None:
    """Where sysfs is not shown there is a reason, not an empty bus."""
    found = PciProbe(tmp_path).read()
    assert isinstance(found, Missing)
    assert found.reason is MissingReason.NOT_INSTALLED


def test_numbers_that_no_device_has(node: Simulator) -> None:
    """A function whose type is no 24-bit number is left out; a counter that is no 64-bit number is missing."""
    devices = node.root / "sys/bus/pci/devices"
    first, second = list(scan(PciProbe(node.root / "sys")))[:2]
    (devices / first / "device").write_text("0x" + "f" * 5000)
    for text in (b"TOTAL_ERR_COR " + b"9" * 5000, b"TOTAL_ERR_COR \xff\n"):
        (devices / second / "aer_dev_correctable").write_bytes(text)
        found = PciProbe(node.root / "sys").read()
        assert not isinstance(found, Missing)
        assert first not in {device.address for device in found}
        (counter,) = (device.aer_correctable for device in found if device.address == second)
        assert _reason(counter) is MissingReason.ERROR
