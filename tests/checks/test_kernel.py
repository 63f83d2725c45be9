"""What the kernel log tells beside XIDs."""

import msgspec
import pytest

from gpuhealth.catalog.kernel_lines import KernelLog as Parser
from gpuhealth.checks.code import Clears
from gpuhealth.checks.history import History
from gpuhealth.checks.kernel import CHECK, EVENTS
from gpuhealth.config import Settings
from gpuhealth.model import NODE, Clean, Finding, KernelRecord, Missing, MissingReason, NotChecked, Outcome, Severity
from gpuhealth.readings import KernelLog, NodeReadings, NvmlReadings
from tests.checks.builders import START, gpu, uuid

SETTINGS = Settings()


def outcomes(*lines: str, log: KernelLog | Missing = KernelLog("kmsg")) -> list[Outcome]:  # noqa: B008 - immutable
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
    "host.soft_lockup": ("watchdog: BUG: soft lockup - CPU#3 stuck for 22s! [python:1]", Severity.WARNING),
    "host.oom": ("Out of memory: Killed process 1 (python) total-vm:1kB", Severity.WARNING),
    "host.io_errors": ("I/O error, dev nvme0n1, sector 0 op 0x0:(READ)", Severity.WARNING),
    "host.segfault": ("python[1]: segfault at 0 ip 0 sp 0 error 4 in libcuda.so.1[0+1]", Severity.INFO),
}


def test_every_code_has_a_case() -> None:
    """No code of this file is left without a line that raises it."""
    assert set(CASES) == {code.name for code in EVENTS}


@pytest.mark.parametrize("name", CASES)
def test_fires(name: str) -> None:
    """The line raises the finding on the node, with the line as its evidence."""
    line, severity = CASES[name]
    (found,) = findings(line)
    assert (found.code, found.severity, found.component) == (name, severity, NODE)
    assert found.evidence.line == line
    assert found.message


@pytest.mark.parametrize("name", CASES)
def test_ends(name: str) -> None:
    """A passing event ends when it does not come back, a lasting one with the reboot."""
    code = next(code for code in EVENTS if code.name == name)
    assert code.clears is (Clears.REBOOT if code.quarantine and code.clear_after == 30.0 else Clears.EXPIRY)
    assert code.clears is Clears.REBOOT or code.clear_after >= 600.0


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
    """XIDs, PCIe errors and network links raise nothing here."""
    assert not findings(
        "NVRM: Xid (PCI:0000:01:00): 79, text",
        "nvidia 0000:01:00.0: PCIe Bus Error: severity=Uncorrected (Fatal), type=Transaction Layer",
        "mlx5_core 0000:9a:00.0 ens1f0np0: Link down",
    )


def test_lost_records() -> None:
    """Records that were overwritten are a warning of the agent's own, which ends when none is lost any more."""
    lost = [each for each in outcomes(log=KernelLog("kmsg", lost_records=7)) if isinstance(each, Finding)]
    assert [(each.code, each.severity, each.evidence.reading) for each in lost] == [
        ("kmsg.overrun", Severity.WARNING, "7")
    ]
    assert outcomes() == [Clean("kmsg.unavailable", NODE), Clean("kmsg.overrun", NODE)]


def test_the_log_cannot_be_read() -> None:
    """With NVML's events in its place that is a warning; with nothing in its place nothing was checked."""
    fallback = outcomes(log=KernelLog("nvml"))
    assert [(type(each), each.code) for each in fallback] == [
        (NotChecked, "kmsg.overrun"),
        (Finding, "kmsg.unavailable"),
    ]
    absent = Missing(MissingReason.NO_PERMISSION)
    assert outcomes(log=absent) == [
        NotChecked("kmsg.overrun", NODE, absent),
        NotChecked("kmsg.unavailable", NODE, absent),
    ]


def test_a_finding_survives_a_round_trip() -> None:
    """Findings are plain data."""
    (found,) = findings(CASES["host.mce"][0])
    assert msgspec.json.decode(msgspec.json.encode(found), type=Finding) == found
