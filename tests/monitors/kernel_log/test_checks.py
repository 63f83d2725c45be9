"""Findings from kernel log lines other than XIDs."""

from datetime import datetime, timedelta

import msgspec
import pytest
from testing.findings import tracker
from testing.readings import START, gpu, node, outcomes, uuid

from gpuhealth.model.codes import Clears
from gpuhealth.model.component import NODE, Component, Kind
from gpuhealth.model.component import gpu as gpu_component
from gpuhealth.model.finding import Clean, Finding, NotChecked, Outcome, Severity
from gpuhealth.model.kernel_event import KernelEvent, KernelLogStatus, KernelRecord
from gpuhealth.model.missing import Missing, MissingReason, Reading
from gpuhealth.model.tracker import ChangeKind
from gpuhealth.monitors.judge import Judge
from gpuhealth.monitors.kernel_log.codes import EVENTS, OVERRUN, UNAVAILABLE
from gpuhealth.monitors.nvidia.checks.log_events import CODES as OF_DRIVER
from gpuhealth.monitors.nvidia.checks.log_events import PORT_ERROR
from gpuhealth.monitors.registry import code_of, kernel_log_parser
from gpuhealth.monitors.settings import Settings

MLX5 = "mlx5_core 0000:9a:00.0"
CODES = (*EVENTS, *(code for code in OF_DRIVER if code is not PORT_ERROR))
"""Of every line that by itself is all there is to know, whichever monitor it belongs to."""
OF_LOG = {code.name for code in (*CODES, OVERRUN, UNAVAILABLE)}


def events(*lines: str) -> tuple[KernelEvent, ...]:
    """What lines of the kernel mean."""
    parser = kernel_log_parser()
    return tuple(event for line in lines if (event := parser.feed(KernelRecord(line, START))))


def judged(*lines: str, log: Reading[KernelLogStatus] = KernelLogStatus("kmsg")) -> list[Outcome]:  # noqa: B008 - immutable
    """What all monitors make of lines of the kernel in a round, on a node with one GPU."""
    return outcomes(
        Judge(Settings(), boot_id="boot-1", time=START), node(gpu(0), kernel_log=log, events=events(*lines))
    )


def findings(*lines: str) -> list[Finding]:
    """The findings among them."""
    return [each for each in judged(*lines) if isinstance(each, Finding)]


CASES = {
    "host.memory_edac": ("EDAC MC0: 1 UE memory read error on CPU", Severity.CRITICAL),
    "host.memory_recovered": ("Memory failure: 0x1f: recovery action for dirty LRU page: Recovered", Severity.WARNING),
    "host.volume_errors": ("EXT4-fs (rbd1): Remounting filesystem read-only", Severity.WARNING),
    "host.kernel_oops": ("BUG: kernel NULL pointer dereference, address: 00000000000000a8", Severity.WARNING),
    "host.disk_readonly": ("EXT4-fs (sda1): Remounting filesystem read-only", Severity.CRITICAL),
    "driver.needs_reboot": (
        "NVRM: f: uvm encountered global fatal error 0x60, requiring os reboot to recover.",
        Severity.CRITICAL,
    ),
    "driver.init_failed": ("NVRM: RmInitAdapter failed! (0x26:0xffff:1290)", Severity.CRITICAL),
    "driver.client_mismatch": ("NVRM: API mismatch: the client has the version 535.54, but", Severity.WARNING),
    "driver.errors": ("NVRM: GPU0 _issueRpcAndWait: rpcSendMessage failed with status 0xf", Severity.WARNING),
    "host.mce": ("mce: [Hardware Error]: Machine check events logged", Severity.WARNING),
    "host.hung_task": ("INFO: task python:1 blocked for more than 120 seconds.", Severity.WARNING),
    "host.cpu_lockup": ("watchdog: BUG: soft lockup - CPU#3 stuck for 22s! [python:1]", Severity.WARNING),
    "host.oom": ("Out of memory: Killed process 1 (python) total-vm:1kB", Severity.WARNING),
    "host.io_errors": ("I/O error, dev nvme0n1, sector 0 op 0x0:(READ)", Severity.WARNING),
    "host.segfault": ("python[1]: segfault at 0 ip 0 sp 0 error 4 in libcuda.so.1[0+1]", Severity.INFO),
    "infiniband.errors": (f"{MLX5}: Port module event[error]: module 0, Cable error, Bus stuck", Severity.WARNING),
    "infiniband.down": (f"{MLX5} ibp154s0: Link down", Severity.WARNING),
    "nic.down": (f"{MLX5} ens1f0np0: Link down", Severity.WARNING),
}
COMPONENTS = {
    "infiniband.errors": Component(Kind.PCI_DEVICE, "0000:9a:00"),
    "infiniband.down": Component(Kind.NIC, "ibp154s0"),
    "nic.down": Component(Kind.NIC, "ens1f0np0"),
}
"""Of the codes that are not about the node as a whole."""


def test_every_code_has_a_case() -> None:
    """No code of this file is left without a line that raises it."""
    assert set(CASES) == {code.name for code in CODES}


@pytest.mark.parametrize("name", CASES)
def test_fires(name: str) -> None:
    """The line raises the finding on its component, with the line as its evidence, and on no GPU."""
    line, severity = CASES[name]
    (found,) = findings(line)
    assert (found.code, found.severity, found.component) == (name, severity, COMPONENTS.get(name, NODE))
    assert found.component.gpu == ""
    assert found.evidence.line == line
    assert found.message


@pytest.mark.parametrize("name", CASES)
def test_ends(name: str) -> None:
    """A passing event ends when it does not come back, a lasting one with the reboot."""
    code = next(code for code in CODES if code.name == name)
    lasting = code.quarantine and code.clear_after == 30.0
    assert code.clears in ((Clears.REBOOT,) if lasting else (Clears.QUIET_PERIOD, Clears.LOGGED_END))
    assert code.clears is Clears.REBOOT or code.clear_after >= 600.0


class Reported:
    """A node whose kernel log is judged as it comes, line by line."""

    def __init__(self) -> None:
        self.tracker = tracker()
        self._judge = Judge(Settings(), boot_id="boot-1", time=START)
        readings = node(gpu(0)).readings()
        for monitor in self._judge.monitors:
            self._judge.set_readings(monitor, readings.of(monitor), START)

    def take(self, *lines: str, seconds: float = 0.0, boot: str = "boot-1") -> list[tuple[ChangeKind, str]]:
        """What lines that come so much later change in the findings."""
        now: datetime = START + timedelta(seconds=seconds)
        said = self._judge.judge_events(events(*lines), now)
        changes = self.tracker.apply([each for each in said if each.code in CASES], now, boot)
        return [(change.kind, change.finding.code) for change in changes]


@pytest.mark.parametrize("name", CASES)
def test_fires_and_clears(name: str) -> None:
    """The line raises the finding at once, and only its own rule ends it."""
    reported, code = Reported(), code_of(name)
    assert reported.take(CASES[name][0]) == [(ChangeKind.RAISED, name)]
    assert reported.take(seconds=code.clear_after - 1) == []
    if code.clears is Clears.REBOOT:
        assert reported.take(seconds=1e6) == []
        assert reported.take(seconds=1e6, boot="boot-2") == [(ChangeKind.CLEARED, name)]
    else:
        assert reported.take(seconds=code.clear_after) == [(ChangeKind.CLEARED, name)]


def test_an_oops_in_the_driver_takes_the_node_out() -> None:
    """An oops is a warning until its instruction pointer shows that it was in the driver; only a reboot ends it."""
    said = events("Oops: 0002 [#1] PREEMPT SMP NOPTI", "RIP: 0010:nvlogInit+0x6/0xd0 [nvidia]")
    judge, tracked = Judge(Settings(), boot_id="boot-1", time=START), tracker()
    quarantined = []
    for event in said:
        tracked.apply(judge.judge_events([event], START), START, "boot-1")
        quarantined.append([each.code for each in tracked.quarantine().findings])
    assert quarantined == [[], ["host.kernel_oops"]]
    (found,) = tracked.active()
    assert (found.severity, found.component) == (Severity.CRITICAL, NODE)
    tracked.apply([], START + timedelta(days=7), "boot-1")
    assert tracked.active()
    tracked.apply([], START + timedelta(days=7), "boot-2")
    assert tracked.active() == ()


@pytest.mark.parametrize("name", ["infiniband.down", "nic.down"])
def test_a_link_that_comes_up_again(name: str) -> None:
    """The line that reports the same link up ends the finding; that of another link does not."""
    reported, down = Reported(), CASES[name][0]
    up = down.replace("Link down", "Link up")
    assert reported.take(up) == []
    assert reported.take(down) == [(ChangeKind.RAISED, name)]
    assert reported.take(up.replace(COMPONENTS[name].id, "ib9s9"), up.replace(COMPONENTS[name].id, "eth9")) == []
    assert reported.take("bond0: (slave eth7): link status definitely up, 100 Mbps") == []
    assert reported.take(up, seconds=1) == [(ChangeKind.CLEARED, name)]
    assert reported.take(down, up, seconds=2) == []
    assert reported.take(up, down, seconds=3) == [(ChangeKind.RAISED, name)]


def test_no_link_line_takes_a_node_out() -> None:
    """Links flap, and adapters report what programs do: one line of theirs degrades the node and no more."""
    reported = Reported()
    reported.take(*(CASES[name][0] for name in COMPONENTS), f"{MLX5}: device's health compromised - reached miss")
    assert {each.code for each in reported.tracker.active()} == set(COMPONENTS)
    assert reported.tracker.quarantine().findings == ()


def test_a_link_without_a_device_is_of_the_node() -> None:
    """Names of interfaces that a user can make in a network namespace become no components."""
    lines = [f"bond{number}: (slave x{number}): link status definitely down, disabling slave" for number in range(500)]
    (found,) = findings(*lines)
    assert (found.code, found.component) == ("nic.down", NODE)


@pytest.mark.parametrize(
    ("line", "severity"),
    [
        ("EDAC MC0: 1 CE memory read error on CPU", Severity.INFO),
        ("NMI watchdog: Watchdog detected hard LOCKUP on cpu 3", Severity.CRITICAL),
        ("Memory cgroup out of memory: Killed process 1 (python) total-vm:1kB", Severity.INFO),
        ("{1}[Hardware Error]: event severity: fatal", Severity.CRITICAL),
    ],
)
def test_the_line_decides_how_bad_it_is(line: str, severity: Severity) -> None:
    """Of one code a line may be worse or milder than the default."""
    (found,) = findings(line)
    assert found.severity is severity


def test_a_line_about_a_gpu_is_a_finding_of_that_gpu() -> None:
    """Where the driver names a GPU the finding is its, known to NVML or not."""
    (known,) = findings("NVRM: GPU 0000:01:00.0: RmInitAdapter failed! (0x62:0x55:1860)")
    assert (known.component, known.component.gpu) == (gpu_component(uuid(0)), uuid(0))
    (unknown,) = findings("NVRM: GPU 0000:77:00.0: RmInitAdapter failed! (0x62:0x55:1860)")
    assert unknown.component == gpu_component("0000:77:00.0"), "as an XID of it is"


def test_a_cascade_is_one_finding() -> None:
    """Of thousands of lines of one fault in a batch the worst one speaks."""
    line = "NVRM: GPU0 _issueRpcAndWait: rpcSendMessage failed with status 0x0000000f for fn {}!"
    assert len(findings(*(line.format(number) for number in range(5000)))) == 1
    (worst,) = findings("EDAC MC0: 1 UE memory read error on CPU", "EDAC MC0: 1 CE memory read error on CPU")
    assert worst.severity is Severity.CRITICAL


def test_lines_that_others_judge_are_left_to_them() -> None:
    """XIDs and PCIe errors raise nothing here."""
    found = findings(
        "NVRM: Xid (PCI:0000:01:00): 79, text",
        "nvidia 0000:01:00.0: PCIe Bus Error: severity=Uncorrected (Fatal), type=Transaction Layer",
    )
    assert [each.code for each in found] == ["xid.79"]
    assert "xid.79" not in OF_LOG


def of_log(log: Reading[KernelLogStatus] = KernelLogStatus("kmsg")) -> list[Outcome]:  # noqa: B008 - immutable
    """What the monitor of the kernel log says of the log itself."""
    return [outcome for outcome in judged(log=log) if outcome.code in OF_LOG]


def test_lost_records() -> None:
    """Records that were overwritten are a warning of the agent's own, which ends when none is lost any more."""
    lost = [each for each in of_log(log=KernelLogStatus("kmsg", lost_records=7)) if isinstance(each, Finding)]
    assert [(each.code, each.severity, each.evidence.reading) for each in lost] == [
        ("agent.kmsg_overrun", Severity.WARNING, "7")
    ]
    assert of_log() == [Clean("agent.kmsg_unavailable", NODE), Clean("agent.kmsg_overrun", NODE)]


def test_the_log_cannot_be_read() -> None:
    """With NVML's events in its place that is a warning; with nothing in its place nothing was checked."""
    fallback = of_log(log=KernelLogStatus("nvml"))
    assert [(type(each), each.code) for each in fallback] == [
        (NotChecked, "agent.kmsg_overrun"),
        (Finding, "agent.kmsg_unavailable"),
    ]
    absent = Missing(MissingReason.NO_PERMISSION)
    assert of_log(log=absent) == [
        NotChecked("agent.kmsg_overrun", NODE, absent),
        NotChecked("agent.kmsg_unavailable", NODE, absent),
    ]


def test_a_finding_survives_a_round_trip() -> None:
    """Findings are plain data."""
    (found,) = findings(CASES["host.mce"][0])
    assert msgspec.json.decode(msgspec.json.encode(found), type=Finding) == found
