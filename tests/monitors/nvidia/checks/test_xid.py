"""XIDs and SXids over time: attribution, consequences, repetition, recovery."""

from __future__ import annotations

from datetime import datetime, timedelta

import msgspec
import pytest
from testing.readings import START, gpu, uuid
from testing.xid_node import READ, Node, line

from gpuhealth.model import component
from gpuhealth.model.codes import CODES, Clears, Code
from gpuhealth.model.component import NODE, Component, Kind
from gpuhealth.model.finding import Action, Clean, Finding, NotChecked, Severity
from gpuhealth.model.kernel_event import KernelEvent, KernelLogStatus, KernelRecord
from gpuhealth.model.missing import NOT_SUPPORTED, UNREAD, Missing, MissingReason
from gpuhealth.model.pci import PciAddress
from gpuhealth.monitors.judge import Judge, Memory
from gpuhealth.monitors.nvidia.baseline import Baseline
from gpuhealth.monitors.nvidia.catalog import sxid, xid
from gpuhealth.monitors.nvidia.checks.xid import CHECK, COVERAGE, with_expiry
from gpuhealth.monitors.nvidia.monitor import MONITOR
from gpuhealth.monitors.nvidia.nvml.child import XidSeen
from gpuhealth.monitors.nvidia.probe import event_of
from gpuhealth.monitors.nvidia.readings import MigDevice, Release
from gpuhealth.monitors.nvidia.settings import Xid
from gpuhealth.monitors.registry import code_of, kernel_log_parser
from gpuhealth.monitors.settings import Settings


def nvml_event(code: int) -> KernelEvent:
    """An XID of the first GPU that NVML reports."""
    return event_of(XidSeen(xid=code, pci="0000:01:00", uuid=uuid(0), time=0.0))


def test_a_fault_is_attributed_by_the_whole_address() -> None:
    """GPUs whose addresses differ only in the PCI domain are distinguished."""
    node = Node()
    places = ("0000:3b:00.0", "0001:3b:00.0", "10000:3b:00.0")
    node.gpus = [gpu(index, pci=PciAddress(place)) for index, place in enumerate(places)]
    for index, domain in enumerate((0, 1, 0x10000)):
        (found,) = node.finds(line(79, 0x3B, domain=domain))
        assert (found.code, found.component) == ("xid.79", component.gpu(uuid(index)))
    (elsewhere,) = node.finds(line(79, 0x3C))
    assert elsewhere.component == component.gpu("0000:3c:00.0")


def test_a_gpu_that_nvml_has_lost_is_known_by_the_baseline() -> None:
    """A GPU that fell off the bus keeps its uuid."""
    node = Node()
    node.gpus = [gpu(1)]
    remembered = {uuid(0): PciAddress("0000:01:00.0"), uuid(1): PciAddress("0000:02:00.0")}
    node.memory = Memory(baselines={"nvidia": Baseline(gpus=remembered)})
    (found,) = node.finds(line(79))
    assert (found.component, found.severity) == (component.gpu(uuid(0)), Severity.CRITICAL)
    node.away = Missing(MissingReason.NOT_LOADED)
    (again,) = node.finds(line(48))
    assert again.component == component.gpu(uuid(0))


def test_evidence() -> None:
    """A finding says what was logged, when, and what it means."""
    (found,) = Node().finds(line(79, pid=1234, text="GPU has fallen off the bus."), after=7)
    assert found.first_seen == START + timedelta(seconds=7)
    assert found.evidence.line.endswith("GPU has fallen off the bus.")
    assert found.evidence.source == "kernel log"
    assert found.action is Action.REBOOT_NODE
    assert "XID 79" in found.message
    assert "pid 1234" in found.message


def test_fallen_off_the_bus_without_a_number_is_a_79() -> None:
    """The lines without an XID and the XID itself are one fault."""
    bare = "NVRM: GPU 0000:01:00.0: GPU has fallen off the bus."
    found = Node().finds(bare, line(79))
    assert [each.code for each in found] == ["xid.79"]
    assert found[0].component == component.gpu(uuid(0))


def test_lines_of_one_fault_count_once() -> None:
    """Repeats of a code on one GPU within five seconds are one event; later, or on another GPU, a new one."""
    node = Node()
    assert len(node.finds(line(13), line(13), line(13, bus=2))) == 2
    assert node.finds(line(13), after=4.9) == []
    assert len(node.finds(line(13), after=5.1)) == 1


def test_a_worse_line_of_the_same_code_is_not_swallowed() -> None:
    """An NVLink error that does not matter does not hide one that does a second later."""
    node = Node()
    head = "NVLink: fatal error detected on link 1"
    mild = node.finds(line(74, text=f"{head}(0x1, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0)"))
    grave = node.finds(line(74, text=f"{head}(0x100, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0)"), after=1)
    assert [each.severity for each in mild + grave] == [Severity.INFO, Severity.CRITICAL]


@pytest.mark.parametrize("code", [43, 45])
def test_clean_up_after_another_fault_is_a_consequence(code: int) -> None:
    """43 and 45 within a minute of another XID on the GPU are information; alone, elsewhere or later they count."""
    node = Node()
    node.finds(line(48))
    (after,) = node.finds(line(code), after=30)
    assert (after.severity, after.action) == (Severity.INFO, Action.NONE)
    assert "consequence of XID 48" in after.message
    for other in (node.finds(line(code, bus=2), after=31), node.finds(line(code), after=120)):
        assert other[0].severity is xid.lookup(code).severity
        assert "consequence" not in other[0].message


def test_a_line_that_names_its_cause_is_a_consequence() -> None:
    """Where the driver itself says which XID it cleans up after, no other line is needed."""
    (named,) = Node().finds(line(45, text="pid=9, name=python3, Ch 00000001 caused by previous Xid 149"))
    assert (named.severity, named.action) == (Severity.INFO, Action.NONE)
    assert "consequence of XID 149" in named.message


def test_clean_up_while_the_driver_is_released() -> None:
    """What is done to a released driver begins with ending what uses it: that is no fault, and says so."""
    node = Node()
    node.away, node.release = Missing(MissingReason.RELEASED), Release(("annotation",), START)
    (ended,) = node.finds(line(45))
    assert (ended.severity, ended.action) == (Severity.INFO, Action.NONE)
    assert "while the driver was released on request" in ended.message
    (reset,) = node.finds(line(79))
    assert (reset.severity, reset.action) == (Severity.INFO, Action.NONE)
    (other,) = node.finds(line(48))
    assert other.severity is Severity.CRITICAL
    node.release = None
    (lost,) = node.finds(line(79), after=60)
    assert lost.severity is Severity.CRITICAL


def test_a_storm_of_teardowns_is_no_hardware_fault() -> None:
    """168,924 lines of XID 45 from as many processes leave no critical, no quarantine and little memory."""
    node, worst, findings = Node(), Severity.INFO, 0
    for batch in range(168_924 // 1024):
        lines = [line(45, bus=1 + number % 2, pid=batch * 1024 + number) for number in range(1024)]
        for found in node.finds(*lines, after=batch * 2.0):
            worst = max(worst, found.severity, key=lambda each: each.rank)
            findings += 1
            assert found.code == "xid.45"
            assert not CODES.of(found).quarantine
    assert worst is Severity.WARNING
    assert findings < 2 * 168
    assert len(msgspec.json.encode(node.memory)) < 10_000


def test_repetition_of_what_only_the_vendor_knows_is_critical() -> None:
    """A used code that says "contact support" is critical at its third time in a day."""
    node = Node()
    seen = [node.finds(line(142), after=after)[0] for after in (0, 3600, 7200)]
    assert [each.severity for each in seen] == [Severity.WARNING, Severity.WARNING, Severity.CRITICAL]
    assert seen[-1].evidence.threshold == "3 in 86400 s"
    assert node.finds(line(142), after=3 * 86400)[0].severity is Severity.WARNING


@pytest.mark.parametrize("code", [1, 59, 87, 167, 175, 999])
def test_repetition_of_unused_and_unknown_codes_stays_a_warning(code: int) -> None:
    """What no catalogue knows a remedy for never takes a node out."""
    node = Node()
    assert {node.finds(line(code), after=60 * number)[0].severity for number in range(6)} == {Severity.WARNING}


def test_recovery_action_by_value() -> None:
    """154 raises what it asks for, under its own code and under that of the polled action; "None" clears."""
    node = Node()
    asked = node.finds(line(154, text="GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)"))
    assert {(each.code, each.severity, each.action) for each in asked} == {
        ("xid.154", Severity.CRITICAL, Action.REBOOT_NODE),
        ("gpu.recovery_action", Severity.CRITICAL, Action.REBOOT_NODE),
    }
    cleared = node.says(line(154, text="GPU recovery action changed from 0x2 (OS Reboot) to 0x0 (None)"), after=1)
    first = component.gpu(uuid(0))
    assert cleared == [Clean("gpu.recovery_action", first), Clean("xid.154", first)]


def test_a_recovery_action_that_is_not_polled() -> None:
    """Where the GPU has no field 230 the XID stands alone: nothing would ever read that the action is over."""
    node = Node()
    node.gpus = [gpu(0, recovery_action=NOT_SUPPORTED)]
    (found,) = node.finds(line(154, text="GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)"))
    assert (found.code, found.severity, found.action) == ("xid.154", Severity.CRITICAL, Action.RESET_GPU)


def test_a_recovery_action_without_text() -> None:
    """A 154 that came through NVML does not say which action: field 230 does."""
    node = Node()
    found = [each for each in node.judged(nvml_event(154)) if isinstance(each, Finding)]
    assert [(each.code, each.severity) for each in found] == [("xid.154", Severity.WARNING)]
    assert found[0].evidence.source == "NVML event"


def test_mig_instances() -> None:
    """A fault within a MIG instance names the MIG device and belongs to its GPU."""
    node = Node()
    devices = (MigDevice("MIG-a", 5, 0), MigDevice("MIG-b", 9, 0), MigDevice("MIG-c", 9, 1))
    node.gpus = [gpu(0, mig_enabled=True, mig_devices=devices)]
    cases = {" GPU-I:05": "MIG-a", " GPU-I:09 GPU-CI:01": "MIG-c", " GPU-I:09": "", " GPU-I:02": "", "": ""}
    for number, (instance, named) in enumerate(cases.items()):
        (found,) = node.finds(line(94, instance=instance, pid=1), after=60 * number)
        expected = Component(Kind.MIG, named, uuid(0)) if named else component.gpu(uuid(0))
        assert found.component == expected, instance
        assert found.component.gpu == uuid(0)


def test_two_mig_instances_at_once() -> None:
    """One code in two MIG instances within a second is two events."""
    node = Node()
    devices = (MigDevice("MIG-a", 5, 0), MigDevice("MIG-b", 9, 0))
    node.gpus = [gpu(0, mig_enabled=True, mig_devices=devices)]
    found = node.finds(line(94, instance=" GPU-I:05"), line(94, instance=" GPU-I:09"))
    assert [each.component for each in found] == [Component(Kind.MIG, name, uuid(0)) for name in ("MIG-a", "MIG-b")]


def test_sxids_belong_to_their_switch() -> None:
    """An SXid is a finding of the NVSwitch at its address, with or without a link."""
    head = "nvidia-nvswitch0: SXid (PCI:0000:a9:00.0): "
    found = Node().finds(
        f"{head}23001, Fatal, Link 07 text", f"{head}23001, Severity 1 Engine instance 7", f"{head}26006, SOE HALTED"
    )
    switch = Component(Kind.NVSWITCH, "0000:a9:00")
    assert [(each.code, each.component, each.component.gpu, each.severity) for each in found] == [
        ("sxid.23001", switch, "", Severity.CRITICAL),
        ("sxid.26006", switch, "", Severity.CRITICAL),
    ]


def test_coverage() -> None:
    """Whether XIDs reach us is itself a check, and an essential one: not read is not clean."""
    for log, expected in (
        (READ, Clean("xid", NODE)),
        (KernelLogStatus("nvml"), Clean("xid", NODE)),
        (absent := Missing(MissingReason.NO_PERMISSION), NotChecked("xid", NODE, absent)),
        (UNREAD, NotChecked("xid", NODE, UNREAD)),
    ):
        assert Node(log).judged() == [expected]
    assert next(code for code in CHECK.codes if code.name == "xid").essential


# -- codes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "quarantine", "drain", "clears"),
    [
        ("xid.79", True, True, Clears.REBOOT),
        ("xid.48", True, True, Clears.RECOVERY),
        ("xid.119", True, True, Clears.RECOVERY),
        ("xid.54", True, False, Clears.REBOOT),
        ("xid.74", True, True, Clears.RECOVERY),
        ("xid.149", True, True, Clears.RECOVERY),
        ("xid.154", True, True, Clears.RECOVERY),
        ("xid.109", False, False, Clears.RECOVERY),
        ("xid.142", False, False, Clears.REBOOT),
        ("xid.13", False, False, Clears.QUIET_PERIOD),
        ("xid.31", False, False, Clears.QUIET_PERIOD),
        ("xid.43", False, False, Clears.QUIET_PERIOD),
        ("xid.45", False, False, Clears.QUIET_PERIOD),
        ("xid.94", False, False, Clears.QUIET_PERIOD),
        ("xid.1", False, False, Clears.QUIET_PERIOD),
        ("xid.999", False, False, Clears.QUIET_PERIOD),
        ("sxid.23001", True, True, Clears.RECOVERY),
        ("sxid.10001", False, False, Clears.QUIET_PERIOD),
        ("sxid.12028", False, False, Clears.QUIET_PERIOD),
    ],
)
def test_code_for(name: str, quarantine: bool, drain: bool, clears: Clears) -> None:
    """A code's defaults are those of the worst it can be, and what a program can cause never quarantines."""
    code = code_of(name)
    assert (code.name, code.quarantine, code.drain, code.clears) == (name, quarantine, drain, clears)
    assert code.meaning
    assert code.advice


def test_a_code_is_as_its_word_is_printed() -> None:
    """The table asks for a reset, the driver prints Non-fatal: the code is a warning."""
    assert sxid.lookup(12028).severity is Severity.CRITICAL
    code = code_of("sxid.12028")
    assert (code.severity, code.action) == (Severity.WARNING, Action.NONE)


def test_every_code() -> None:
    """All codes of both catalogues have defaults, and no warning takes a node out of service."""
    for name in [f"xid.{code}" for code in xid.table()] + [f"sxid.{code}" for code in sxid.table()]:
        assert code_of(name).name == name
        for severity in (Severity.INFO, Severity.WARNING):
            mild = CODES.get(name, severity)
            assert (mild.quarantine, mild.drain, mild.clears) == (False, False, Clears.QUIET_PERIOD)


def test_a_code_as_its_finding_has_it() -> None:
    """The way a code ends follows from how bad it was and what it asks for."""
    assert CODES.get("xid.145", Severity.CRITICAL, Action.RESET_GPU).clears is Clears.RECOVERY
    assert CODES.get("xid.74", Severity.CRITICAL, Action.INSPECT_HARDWARE).clears is Clears.REBOOT
    assert CODES.get("xid.145", Severity.WARNING, Action.CONTACT_SUPPORT).clears is Clears.QUIET_PERIOD
    assert with_expiry(code_of("xid.13"), Xid(expire_after=60.0)).clear_after == 60.0


def test_the_expiry_is_a_setting_of_xids_alone() -> None:
    """The setting xid.expire_after holds for XIDs and SXids, on a finding too, and for no other code."""
    adjust, settings = MONITOR.adjust_code, Settings(xid=Xid(expire_after=60.0))
    assert adjust is not None
    assert {adjust(code_of(name), settings).clear_after for name in ("xid.13", "xid.48", "sxid.10001")} == {60.0}
    for other in ("gpu.lost", "xid", "gpu.repeated_app_faults", "driver.errors"):
        assert adjust(code_of(other), settings) is code_of(other)
    node = Node()
    judge = Judge(settings, node.memory, time=START)
    event = kernel_log_parser().feed(KernelRecord(line(13), START))
    assert event is not None
    (found,) = (each for each in judge.judge_events([event], START) if isinstance(each, Finding))
    assert found.clears_when == "not repeated for 60 s"


@pytest.mark.parametrize("name", ["xid.", "xid.x", "xid.²", "gpu.79", "sxid.-1", "xid.9999999999", "79", "yxid.79"])
def test_names_that_are_no_codes(name: str) -> None:
    """A name of another kind is refused, and none that is taken otherwise is a number's."""
    with pytest.raises(KeyError):
        code_of(name)
    assert not CODES.exists(name)
    named: list[Code] = [code_of("xid"), code_of("gpu.lost")]
    assert named == [COVERAGE, next(code for code in MONITOR.codes if code.name == "gpu.lost")]


def test_events_in_any_order_of_time() -> None:
    """Lines without a time count as of now."""
    node = Node()
    event = nvml_event(79)
    assert event.time is None
    (found,) = [each for each in node.judged(event) if isinstance(each, Finding)]
    assert found.first_seen == START
    assert isinstance(found.first_seen, datetime)
