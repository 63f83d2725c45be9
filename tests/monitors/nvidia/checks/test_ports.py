"""Lines about PCI Express ports: they count for the GPU below the port."""

from __future__ import annotations

import pytest
from testing.readings import START, gpu, uuid

from gpuhealth.model import component
from gpuhealth.model.component import NODE
from gpuhealth.model.finding import Finding, Severity
from gpuhealth.model.kernel_event import KernelRecord
from gpuhealth.model.missing import UNREAD, Reading
from gpuhealth.model.pci import PciAddress
from gpuhealth.monitors.judge import Judge
from gpuhealth.monitors.nvidia.monitor import MONITOR
from gpuhealth.monitors.nvidia.readings import NvidiaReadings, NvmlReadings, PciDevice, PciPort
from gpuhealth.monitors.registry import kernel_log_parser
from gpuhealth.monitors.settings import Settings


def device(address: str, *ports: str) -> PciDevice:
    """A GPU on the bus, and the ports above it, the nearest first."""
    return PciDevice(PciAddress(address), 0x030200, 0x2330, ports=tuple(PciPort(PciAddress(port)) for port in ports))


ROOT, UPSTREAM, SLOT_A, SLOT_B = "0000:00:01.1", "0000:10:00.0", "0000:11:00.0", "0000:11:00.1"
BUS = (device("0000:01:00.0", SLOT_A, UPSTREAM, ROOT), device("0000:02:00.0", SLOT_B, UPSTREAM, ROOT))
DPC = "pcieport {}: DPC: containment event, status:0x1f01 source:0x0000"
LINK_DOWN = "pcieport {}: pciehp: Slot(3): Link Down"
AER = "pcieport {}: AER: Uncorrectable (Fatal) error message received from {}"


def found(line: str, bus: Reading[tuple[PciDevice, ...]] = BUS) -> list[Finding]:
    """The findings of a line on a node with two GPUs below one switch."""
    judge = Judge(Settings(), boot_id="boot-1", time=START)
    readings = NvidiaReadings(nvml=NvmlReadings(answered=True, gpus=(gpu(0), gpu(1))), pci=bus)
    judge.set_readings(MONITOR, readings, START)
    event = kernel_log_parser().feed(KernelRecord(line, START))
    assert event is not None
    return [each for each in judge.judge_events([event], START) if isinstance(each, Finding)]


@pytest.mark.parametrize(
    ("line", "severity"),
    [
        (DPC.format(SLOT_B), Severity.CRITICAL),
        (LINK_DOWN.format(SLOT_B), Severity.WARNING),
        (AER.format(SLOT_B, SLOT_B), Severity.WARNING),
        (f"pcieport {SLOT_B}: AER: device recovery failed", Severity.WARNING),
    ],
)
def test_the_port_above_a_gpu(line: str, severity: Severity) -> None:
    """What happens at the port above one GPU is a finding of that GPU, and names the port."""
    (finding,) = found(line)
    assert (finding.code, finding.severity) == ("pcie.port_error", severity)
    assert finding.component == component.gpu(uuid(1))
    assert "port 0000:11:00" in finding.message


def test_a_port_above_several_gpus() -> None:
    """What happens at a port that GPUs share is a warning of the node, and names them."""
    (finding,) = found(DPC.format(UPSTREAM))
    assert (finding.code, finding.severity, finding.component) == ("pcie.port_error", Severity.WARNING, NODE)
    assert "0000:01:00, 0000:02:00" in finding.message


@pytest.mark.parametrize("port", ["0000:00:01.2", "0000:80:03.0", "0000:11:00.2"])
@pytest.mark.parametrize("line", [DPC, LINK_DOWN])
def test_a_port_above_something_else(port: str, line: str) -> None:
    """Ports of disks and network adapters, also in the same slot, have no finding."""
    assert found(line.format(port)) == []


def test_errors_of_the_gpu_itself() -> None:
    """What a GPU has detected itself is counted in /sys, and is no finding of the line."""
    assert found(AER.format(ROOT, "0000:01:00.0")) == []


def test_the_bus_is_not_known() -> None:
    """Where the bus was not read the port may be above a GPU: the node gets the finding."""
    (finding,) = found(LINK_DOWN.format(SLOT_A), UNREAD)
    assert (finding.code, finding.severity, finding.component) == ("pcie.port_error", Severity.WARNING, NODE)
