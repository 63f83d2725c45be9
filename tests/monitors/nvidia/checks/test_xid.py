"""XIDs and SXids over time: attribution, consequences, repetition, recovery."""

from datetime import datetime, timedelta

import msgspec
import pytest
from testing.readings import START, gpu, uuid

from gpuhealth.kernel_log.parser import nvml_xid_event
from gpuhealth.model.codes import Clears
from gpuhealth.model.finding import Action, Clean, Finding, NotChecked, Outcome, Severity
from gpuhealth.model.history import Baseline, History
from gpuhealth.model.kernel_event import KernelLogStatus, KernelRecord
from gpuhealth.model.missing import NOT_SUPPORTED, Missing, MissingReason
from gpuhealth.monitors.nvidia.catalog import sxid, xid
from gpuhealth.monitors.nvidia.checks.xid import CHECK, code_for
from gpuhealth.monitors.nvidia.readings import MigDevice, NvmlReadings
from gpuhealth.monitors.readings import NodeReadings
from gpuhealth.monitors.settings import Settings

READ = KernelLogStatus("kmsg")
SETTINGS = Settings()


class Node:
    """A node with GPUs at 0000:01:00 and on, whose kernel writes lines."""

    def __init__(self, **changes: object) -> None:
        self.gpus = [gpu(0), gpu(1)]
        self.history = History()
        self.parser = Parser()
        self.readings = NodeReadings("n", START, "boot", nvml=NvmlReadings(answered=True), kernel_log=READ)
        self.readings = msgspec.structs.replace(self.readings, **changes)

    def says(self, *lines: str, after: float = 0.0) -> list[Outcome]:
        """What is made of lines that are logged together, so many seconds after the start."""
        when = START + timedelta(seconds=after)
        events = [event for line in lines if (event := self.parser.feed(KernelRecord(line, when)))]
        readings = self.readings
        if isinstance(readings.nvml, NvmlReadings):
            readings = msgspec.structs.replace(
                readings, nvml=msgspec.structs.replace(readings.nvml, gpus=tuple(self.gpus))
            )
        readings = msgspec.structs.replace(readings, events=tuple(events), time=when)
        return [each for each in CHECK.run(readings, SETTINGS, self.history) if each.code != "xid"]

    def finds(self, *lines: str, after: float = 0.0) -> list[Finding]:
        """The findings among them."""
        return [each for each in self.says(*lines, after=after) if isinstance(each, Finding)]


def line(code: int, bus: int = 1, pid: int = 100, text: str = "text", domain: int = 0, instance: str = "") -> str:
    """A line of an XID on the GPU at that bus."""
    return f"NVRM: Xid (PCI:{domain:04x}:{bus:02x}:00{instance}): {code}, pid={pid}, name=python, {text}"


def test_a_fault_is_attributed_by_the_whole_address() -> None:
    """Two GPUs that differ in the domain alone are told apart."""
    node = Node()
    node.gpus = [gpu(0, pci="0000:3b:00.0"), gpu(1, pci="0001:3b:00.0"), gpu(2, pci="10000:3b:00.0")]
    for index, domain in enumerate((0, 1, 0x10000)):
        (found,) = node.finds(line(79, 0x3B, domain=domain))
        assert (found.code, found.component, found.gpu) == ("xid.79", uuid(index), uuid(index))
    (elsewhere,) = node.finds(line(79, 0x3C))
    assert elsewhere.component == "0000:3c:00"


def test_a_gpu_that_nvml_has_lost_is_known_by_the_baseline() -> None:
    """A GPU that fell off the bus keeps its uuid."""
    node = Node()
    node.gpus = [gpu(1)]
    node.history.baseline = Baseline(gpus={uuid(0): "0000:01:00.0", uuid(1): "0000:02:00.0"})
    (found,) = node.finds(line(79))
    assert (found.component, found.gpu, found.severity) == (uuid(0), uuid(0), Severity.CRITICAL)
    node.readings = msgspec.structs.replace(node.readings, nvml=Missing(MissingReason.NOT_LOADED))
    (again,) = node.finds(line(48))
    assert again.component == uuid(0)


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
    assert found[0].component == uuid(0)


def test_lines_of_one_fault_count_once() -> None:
    """The same code on the same GPU within five seconds is one event; later, or elsewhere, it is another."""
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


def test_a_storm_of_teardowns_is_no_hardware_fault() -> None:
    """168,924 lines of XID 45 from as many processes leave no critical, no quarantine and little memory."""
    node, worst, findings = Node(), Severity.INFO, 0
    for batch in range(168_924 // 1024):
        lines = [line(45, bus=1 + number % 2, pid=batch * 1024 + number) for number in range(1024)]
        for found in node.finds(*lines, after=batch * 2.0):
            worst = max(worst, found.severity, key=lambda each: each.rank)
            findings += 1
            assert found.code == "xid.45"
            assert not code_for(found.code, found.severity, found.action).quarantine
    assert worst is Severity.WARNING
    assert findings < 2 * 168
    assert len(msgspec.json.encode(node.history)) < 10_000


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


def test_faults_of_different_programs_cast_doubt_on_the_gpu() -> None:
    """Three processes that fail on one GPU within a day are a warning that asks for a burn-in, and no more."""
    node = Node()
    assert len(node.finds(line(13, pid=1))) == 1
    assert len(node.finds(line(31, pid=2), after=600)) == 1
    found = node.finds(line(13, pid=3), after=1200)
    assert [each.code for each in found] == ["xid.13", "gpu.repeated_app_faults"]
    repeated = next(each for each in CHECK.codes if each.name == "gpu.repeated_app_faults")
    assert (found[1].severity, found[1].component) == (Severity.WARNING, uuid(0))
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
    found = [node.finds(line(13, pid=number), after=number * 50_000) for number in range(4)]
    assert all(len(each) == 1 for each in found)


def test_recovery_action_by_value() -> None:
    """154 raises what it asks for, under its own code and under that of the polled action; "None" clears."""
    node = Node()
    asked = node.finds(line(154, text="GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)"))
    assert {(each.code, each.severity, each.action) for each in asked} == {
        ("xid.154", Severity.CRITICAL, Action.REBOOT_NODE),
        ("gpu.recovery_action", Severity.CRITICAL, Action.REBOOT_NODE),
    }
    cleared = node.says(line(154, text="GPU recovery action changed from 0x2 (OS Reboot) to 0x0 (None)"), after=1)
    assert cleared == [Clean("gpu.recovery_action", uuid(0)), Clean("xid.154", uuid(0))]


def test_a_recovery_action_that_is_not_polled() -> None:
    """Where the GPU has no field 230 the XID stands alone: nothing would ever read that the action is over."""
    node = Node()
    node.gpus = [gpu(0, recovery_action=NOT_SUPPORTED)]
    (found,) = node.finds(line(154, text="GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)"))
    assert (found.code, found.severity, found.action) == ("xid.154", Severity.CRITICAL, Action.RESET_GPU)


def test_a_recovery_action_without_text() -> None:
    """A 154 that came through NVML does not say which action: field 230 does."""
    node = Node()
    event = nvml_xid_event(154, "0000:01:00")
    readings = msgspec.structs.replace(node.readings, events=(event,))
    found = [each for each in CHECK.run(readings, SETTINGS, node.history) if isinstance(each, Finding)]
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
        assert (found.component, found.mig_instance) == (uuid(0), named), instance


def test_two_mig_instances_at_once() -> None:
    """The same code in two instances within a second is two events."""
    node = Node()
    devices = (MigDevice("MIG-a", 5, 0), MigDevice("MIG-b", 9, 0))
    node.gpus = [gpu(0, mig_enabled=True, mig_devices=devices)]
    found = node.finds(line(94, instance=" GPU-I:05"), line(94, instance=" GPU-I:09"))
    assert [each.mig_instance for each in found] == ["MIG-a", "MIG-b"]


def test_sxids_belong_to_their_switch() -> None:
    """An SXid is a finding of the NVSwitch at its address, with or without a link."""
    head = "nvidia-nvswitch0: SXid (PCI:0000:a9:00.0): "
    found = Node().finds(
        f"{head}23001, Fatal, Link 07 text", f"{head}23001, Severity 1 Engine instance 7", f"{head}26006, SOE HALTED"
    )
    assert [(each.code, each.component, each.gpu, each.severity) for each in found] == [
        ("sxid.23001", "0000:a9:00", "", Severity.CRITICAL),
        ("sxid.26006", "0000:a9:00", "", Severity.CRITICAL),
    ]


def test_coverage() -> None:
    """Whether XIDs reach us is itself a check, and an essential one: not read is not clean."""
    for log, expected in (
        (READ, Clean("xid", "node")),
        (KernelLogStatus("nvml"), Clean("xid", "node")),
        (absent := Missing(MissingReason.NO_PERMISSION), NotChecked("xid", "node", absent)),
    ):
        readings = NodeReadings("n", START, "boot", kernel_log=log)
        assert list(CHECK.run(readings, SETTINGS, History())) == [expected]
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
    code = code_for(name)
    assert (code.name, code.quarantine, code.drain, code.clears) == (name, quarantine, drain, clears)
    assert code.meaning
    assert code.advice


def test_a_code_is_as_its_word_is_printed() -> None:
    """The table asks for a reset, the driver prints Non-fatal: the code is a warning."""
    assert sxid.lookup(12028).severity is Severity.CRITICAL
    assert (code_for("sxid.12028").severity, code_for("sxid.12028").action) == (Severity.WARNING, Action.NONE)


def test_every_code() -> None:
    """All codes of both catalogues have defaults, and no warning takes a node out of service."""
    for name in [f"xid.{code}" for code in xid.table()] + [f"sxid.{code}" for code in sxid.table()]:
        assert code_for(name).name == name
        for severity in (Severity.INFO, Severity.WARNING):
            mild = code_for(name, severity)
            assert (mild.quarantine, mild.drain, mild.clears) == (False, False, Clears.QUIET_PERIOD)


def test_a_code_as_its_finding_has_it() -> None:
    """The way a code ends follows from how bad it was and what it asks for."""
    assert code_for("xid.145", Severity.CRITICAL, Action.RESET_GPU).clears is Clears.RECOVERY
    assert code_for("xid.74", Severity.CRITICAL, Action.INSPECT_HARDWARE).clears is Clears.REBOOT
    assert code_for("xid.145", Severity.WARNING, Action.CONTACT_SUPPORT).clears is Clears.QUIET_PERIOD
    assert code_for("xid.13", expire_after=60.0).clear_after == 60.0


@pytest.mark.parametrize("name", ["xid", "xid.", "xid.x", "xid.²", "gpu.lost", "sxid.-1", "xid.9999999999"])
def test_names_that_are_no_codes(name: str) -> None:
    """A name of another kind is refused."""
    with pytest.raises(KeyError):
        code_for(name)


def test_events_in_any_order_of_time() -> None:
    """Lines without a time count as of now."""
    node = Node()
    event = nvml_xid_event(79, "0000:01:00")
    assert event.time is None
    readings = msgspec.structs.replace(node.readings, events=(event,))
    (found,) = [each for each in CHECK.run(readings, SETTINGS, node.history) if isinstance(each, Finding)]
    assert found.first_seen == START
    assert isinstance(found.first_seen, datetime)
