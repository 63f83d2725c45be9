"""XIDs together with earlier ones: programs that fail, rows that are remapped, and codes and devices without end."""

from __future__ import annotations

import msgspec
import pytest
from testing.readings import uuid
from testing.xid_node import SETTINGS, Node, line

from gpuhealth.model import component
from gpuhealth.model.component import NODE
from gpuhealth.model.finding import Action, Severity
from gpuhealth.model.pci import PciAddress
from gpuhealth.monitors import log_events
from gpuhealth.monitors.nvidia.catalog import sxid, xid
from gpuhealth.monitors.nvidia.checks.xid import CHECK
from gpuhealth.monitors.nvidia.readings import PciDevice
from gpuhealth.monitors.registry import code_of


def test_faults_of_different_programs_cast_doubt_on_the_gpu() -> None:
    """Three processes that fail on one GPU within a day are a warning that asks for a burn-in, and no more."""
    node = Node()
    assert len(node.finds(line(13, pid=1, name="train"))) == 1
    assert len(node.finds(line(31, pid=2, name="vllm"), after=600)) == 1
    found = node.finds(line(13, pid=3, name="nccl-tests"), after=1200)
    assert [each.code for each in found] == ["xid.13", "gpu.repeated_app_faults"]
    repeated = next(each for each in CHECK.codes if each.name == "gpu.repeated_app_faults")
    assert (found[1].severity, found[1].component) == (Severity.WARNING, component.gpu(uuid(0)))
    assert not repeated.quarantine
    assert "burnin" in repeated.advice


@pytest.mark.parametrize(
    "lines",
    [
        [line(13, pid=1)] * 5,
        [line(13, pid=1), line(13, pid=2, bus=2), line(13, pid=3, bus=2)],
        [line(45, pid=1), line(45, pid=2), line(45, pid=3), line(43, pid=4), line(43, pid=5)],
        ["NVRM: Xid (PCI:0000:01:00): 13, text"] * 5,
    ],
    ids=["one process", "two GPUs", "teardowns", "no process"],
)
def test_no_doubt_without_different_programs_on_one_gpu(lines: list[str]) -> None:
    """One program that fails again and again, or programs on different GPUs, say nothing of a GPU."""
    node = Node()
    codes = {found.code for number, each in enumerate(lines) for found in node.finds(each, after=600 * number)}
    assert "gpu.repeated_app_faults" not in codes


def test_old_faults_are_forgotten() -> None:
    """Faults of different programs more than a day apart are not counted together."""
    node = Node()
    found = [node.finds(line(13, pid=number, name=f"p{number}"), after=number * 50_000) for number in range(4)]
    assert all(len(each) == 1 for each in found)


def test_a_crash_loop_of_one_program_is_one_program() -> None:
    """A program that is started again and fails again, each time as another process, says nothing of the GPU."""
    node = Node()
    codes = {each.code for pid in range(50) for each in node.finds(line(31, pid=pid), after=pid * 300)}
    assert codes == {"xid.31"}


def test_one_program_that_fails_on_many_gpus_is_one_program() -> None:
    """A job that fails on several GPUs at once, time and again, says nothing of any of them."""
    node = Node()
    codes = set()
    for run in range(6):
        lines = [line(31, bus=bus, pid=100 * run + bus, name="pt_main_thread") for bus in (1, 2)]
        codes |= {each.code for each in node.finds(*lines, after=run * 900)}
    assert codes == {"xid.31"}


def test_programs_of_one_name_hours_apart_are_different() -> None:
    """Many programs are called python: after an hour without a fault another one of that name counts."""
    node = Node()
    found = [node.finds(line(13, pid=run), after=run * 7200) for run in range(3)]
    assert [each.code for each in found[-1]] == ["xid.13", "gpu.repeated_app_faults"]


def test_rows_that_fail_one_after_another() -> None:
    """A few remapped rows within a week are a warning that asks for a replacement, and takes no node out."""
    node, day = Node(), 86400.0
    remapped = line(63, text="Row Remapper: New row marked for remapping, reset gpu to activate.")
    limit = SETTINGS.xid.remaps_warning
    assert {each.code for run in range(limit - 1) for each in node.finds(remapped, after=run * day)} == {"xid.63"}
    assert [each.code for each in node.finds(remapped, after=limit * day)] == ["xid.63", "gpu_memory.repeated_remaps"]
    assert [each.code for each in node.finds(remapped.replace(":01:", ":02:"), after=limit * day)] == ["xid.63"]
    code = code_of("gpu_memory.repeated_remaps")
    assert (code.severity, code.action, code.quarantine) == (Severity.WARNING, Action.INSPECT_HARDWARE, False)
    slow = Node()
    assert {each.code for run in range(9) for each in slow.finds(remapped, after=run * 3 * day)} == {"xid.63"}


def test_random_lines_stay_few_findings() -> None:
    """20,000 XIDs with random codes and addresses are few findings on few components, and leave little memory."""
    node = Node()
    lines = [line(number, bus=number % 251, domain=number % 499) for number in range(20_000)]
    found = node.finds(*lines)
    found += node.finds(*(each.replace("NVRM: Xid (", "nvidia-nvswitch0: SXid (") for each in lines))
    known = {f"xid.{code}" for code in xid.table()} | {f"sxid.{code}" for code in sxid.table()}
    assert len({each.code for each in found} - known) == 2 * log_events.MAX_UNKNOWN
    assert len({each.component for each in found}) <= 2 * log_events.MAX_UNKNOWN + 1
    node.finds(*(f"NVRM: GPU {number:04x}:01:00.0: RmInitAdapter failed! (0x62:0x55:1)" for number in range(20_000)))
    assert len(msgspec.json.encode(node.memory)) < 100_000


def test_a_device_that_the_node_does_not_have() -> None:
    """Where the bus has been read, an XID of an unknown address is a fault of the node, and names the address."""
    node = Node()
    node.bus = (PciDevice(PciAddress("0000:05:00.0"), 0x030200, 0x2330),)
    (elsewhere,) = node.finds(line(79, bus=0x77))
    assert (elsewhere.code, elsewhere.component) == ("xid.79", NODE)
    assert "0000:77:00" in elsewhere.message
    (on_bus,) = node.finds(line(79, bus=0x05))
    assert on_bus.component == component.gpu("0000:05:00.0"), "NVML has lost it, or never had it"
    (known,) = node.finds(line(79, bus=1))
    assert known.component == component.gpu(uuid(0))
