"""What the kernel log tells beside XIDs."""

from datetime import timedelta

import msgspec
import pytest
from testing.readings import START, gpu, uuid

from gpuhealth import monitors as checks
from gpuhealth.model.codes import Clears
from gpuhealth.model.component import NODE
from gpuhealth.model.finding import Clean, Finding, NotChecked, Outcome, Severity
from gpuhealth.model.history import History
from gpuhealth.model.kernel_event import KernelLogStatus, KernelRecord
from gpuhealth.model.missing import Missing, MissingReason
from gpuhealth.model.tracker import ChangeKind
from gpuhealth.monitors.kernel_log.codes import CHECK, EVENTS
from gpuhealth.monitors.nvidia.readings import NvmlReadings
from gpuhealth.monitors.readings import NodeReadings
from gpuhealth.monitors.settings import Settings

SETTINGS = Settings()
MLX5 = "mlx5_core 0000:9a:00.0"


def outcomes(*lines: str, log: KernelLog | Missing = KernelLogStatus("kmsg")) -> list[Outcome]:  # noqa: B008 - immutable
    """What is made of lines of the kernel, on a node with one GPU."""
    parser = Parser()
    events = tuple(event for line in lines if (event := parser.feed(KernelRecord(line, START))))
    nvml = NvmlReadings(answered=True, gpus=(gpu(0),))
    readings = NodeReadings("n", START, "boot", nvml=nvml, kernel_log=log, events=events)
    return list(CHECK.run(readings, SETTINGS, History()))


def findings(*lines: str) -> list[Finding]:
    """The findings among them."""
    return [each for each in outcomes(*lines) if isinstance(each, Finding)]


CASES = {
    "host.memory_edac": ("EDAC MC0: 1 UE memory read error on CPU", Severity.CRITICAL),
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
COMPONENTS = {"infiniband.errors": "0000:9a:00", "infiniband.down": "ibp154s0", "nic.down": "ens1f0np0"}
"""Of the codes that are not about the node as a whole."""


def test_every_code_has_a_case() -> None:
    """No code of this file is left without a line that raises it."""
    assert set(CASES) == {code.name for code in EVENTS}


@pytest.mark.parametrize("name", CASES)
def test_fires(name: str) -> None:
    """The line raises the finding on its component, with the line as its evidence, and on no GPU."""
    line, severity = CASES[name]
    (found,) = findings(line)
    assert (found.code, found.severity, found.component) == (name, severity, COMPONENTS.get(name, NODE))
    assert found.gpu == ""
    assert found.evidence.line == line
    assert found.message


@pytest.mark.parametrize("name", CASES)
def test_ends(name: str) -> None:
    """A passing event ends when it does not come back, a lasting one with the reboot."""
    code = next(code for code in EVENTS if code.name == name)
    lasting = code.quarantine and code.clear_after == 30.0
    assert code.clears in ((Clears.REBOOT,) if lasting else (Clears.QUIET_PERIOD, Clears.LOGGED_END))
    assert code.clears is Clears.REBOOT or code.clear_after >= 600.0


def taken(tracker: Findings, *lines: str, seconds: float = 0.0, boot: str = "boot") -> list[tuple[ChangeKind, str]]:
    """What lines that come so much later change in the findings."""
    judged = [each for each in outcomes(*lines) if isinstance(each, Finding | Clean) and each.code in CASES]
    changes = tracker.take(judged, START + timedelta(seconds=seconds), boot)
    return [(change.kind, change.finding.code) for change in changes]


@pytest.mark.parametrize("name", CASES)
def test_fires_and_clears(name: str) -> None:
    """The line raises the finding at once, and only its own rule ends it."""
    tracker, code = Findings(SETTINGS), checks.code(name)
    assert taken(tracker, CASES[name][0]) == [(ChangeKind.RAISED, name)]
    assert taken(tracker, seconds=code.clear_after - 1) == []
    if code.clears is Clears.REBOOT:
        assert taken(tracker, seconds=1e6) == []
        assert taken(tracker, seconds=1e6, boot="another") == [(ChangeKind.CLEARED, name)]
    else:
        assert taken(tracker, seconds=code.clear_after) == [(ChangeKind.CLEARED, name)]


@pytest.mark.parametrize("name", ["infiniband.down", "nic.down"])
def test_a_link_that_comes_up_again(name: str) -> None:
    """The line that reports the same link up ends the finding; that of another link does not."""
    tracker, down = Findings(SETTINGS), CASES[name][0]
    up = down.replace("Link down", "Link up")
    assert taken(tracker, up) == []
    assert taken(tracker, down) == [(ChangeKind.RAISED, name)]
    assert taken(tracker, up.replace(COMPONENTS[name], "ib9s9"), up.replace(COMPONENTS[name], "eth9")) == []
    assert taken(tracker, "bond0: (slave eth7): link status definitely up, 100 Mbps") == []
    assert taken(tracker, up, seconds=1) == [(ChangeKind.CLEARED, name)]
    assert taken(tracker, down, up, seconds=2) == []
    assert taken(tracker, up, down, seconds=3) == [(ChangeKind.RAISED, name)]


def test_no_link_line_takes_a_node_out() -> None:
    """Links flap, and adapters report what programs do: one line of theirs degrades the node and no more."""
    tracker = Findings(SETTINGS)
    taken(tracker, *(CASES[name][0] for name in COMPONENTS), f"{MLX5}: device's health compromised - reached miss")
    assert {each.code for each in tracker.active()} == set(COMPONENTS)
    assert tracker.quarantine().findings == ()


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
    assert (known.component, known.gpu) == (uuid(0), uuid(0))
    (unknown,) = findings("NVRM: GPU 0000:77:00.0: RmInitAdapter failed! (0x62:0x55:1860)")
    assert unknown.component == "0000:77:00"


def test_a_cascade_is_one_finding() -> None:
    """Of thousands of lines of one fault in a batch the worst one speaks."""
    line = "NVRM: GPU0 _issueRpcAndWait: rpcSendMessage failed with status 0x0000000f for fn {}!"
    assert len(findings(*(line.format(number) for number in range(5000)))) == 1
    (worst,) = findings("EDAC MC0: 1 UE memory read error on CPU", "EDAC MC0: 1 CE memory read error on CPU")
    assert worst.severity is Severity.CRITICAL


def test_lines_that_others_judge_are_left_to_them() -> None:
    """XIDs and PCIe errors raise nothing here."""
    assert not findings(
        "NVRM: Xid (PCI:0000:01:00): 79, text",
        "nvidia 0000:01:00.0: PCIe Bus Error: severity=Uncorrected (Fatal), type=Transaction Layer",
    )


def test_lost_records() -> None:
    """Records that were overwritten are a warning of the agent's own, which ends when none is lost any more."""
    lost = [each for each in outcomes(log=KernelLogStatus("kmsg", lost_records=7)) if isinstance(each, Finding)]
    assert [(each.code, each.severity, each.evidence.reading) for each in lost] == [
        ("agent.kmsg_overrun", Severity.WARNING, "7")
    ]
    assert outcomes() == [Clean("agent.kmsg_unavailable", NODE), Clean("agent.kmsg_overrun", NODE)]


def test_the_log_cannot_be_read() -> None:
    """With NVML's events in its place that is a warning; with nothing in its place nothing was checked."""
    fallback = outcomes(log=KernelLogStatus("nvml"))
    assert [(type(each), each.code) for each in fallback] == [
        (NotChecked, "agent.kmsg_overrun"),
        (Finding, "agent.kmsg_unavailable"),
    ]
    absent = Missing(MissingReason.NO_PERMISSION)
    assert outcomes(log=absent) == [
        NotChecked("agent.kmsg_overrun", NODE, absent),
        NotChecked("agent.kmsg_unavailable", NODE, absent),
    ]


def test_a_finding_survives_a_round_trip() -> None:
    """Findings are plain data."""
    (found,) = findings(CASES["host.mce"][0])
    assert msgspec.json.decode(msgspec.json.encode(found), type=Finding) == found
