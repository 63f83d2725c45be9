"""One registry of finding codes: whatever names a code names one that exists, and what a line says is judged."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path

import msgspec
import pytest
import yaml
from testing.fault_cases import CASES
from testing.findings import at, clean, facts, found, tracker
from testing.kernel_lines import LINES
from testing.readings import START, gpu, node, pci, remembering, uuid

from gpuhealth.agent.agent import Agent
from gpuhealth.cli import explain
from gpuhealth.cli.output import CommandError
from gpuhealth.model import component
from gpuhealth.model.causes import Cause
from gpuhealth.model.codes import CODES, Clears, Code, define
from gpuhealth.model.component import Component, Kind
from gpuhealth.model.finding import Action, Finding, Outcome, Severity
from gpuhealth.model.kernel_event import KernelEvent, KernelLogStatus, KernelRecord
from gpuhealth.model.tracker_state import TrackedFinding, TrackerState
from gpuhealth.monitors.fleet_findings.monitor import MONITOR as FLEET_FINDINGS
from gpuhealth.monitors.fleet_findings.readings import FleetFinding, FleetReadings
from gpuhealth.monitors.judge import Judge
from gpuhealth.monitors.kernel_log import codes as host_codes
from gpuhealth.monitors.kernel_log import oops
from gpuhealth.monitors.kernel_log import patterns as host_patterns
from gpuhealth.monitors.kernel_log.monitor import MONITOR as KERNEL_LOG
from gpuhealth.monitors.nvidia import nvrm_lines, pci_lines
from gpuhealth.monitors.nvidia.catalog import sxid, xid
from gpuhealth.monitors.nvidia.checks import log_events as driver_codes
from gpuhealth.monitors.nvidia.checks import pcie
from gpuhealth.monitors.nvidia.monitor import MONITOR as NVIDIA
from gpuhealth.monitors.registry import code_of, kernel_log_parser, known_codes, monitors, unmatched_patterns
from gpuhealth.monitors.settings import Settings
from gpuhealth.runtime.journal import Entry, Journal

ROOT = Path(__file__).parents[2]
EXAMPLES = [line for line, *_ in LINES]
NUMBERED = [f"NVRM: Xid (PCI:0000:01:00): {code}, pid=1, name=x, words" for code in (*xid.table(), 999)] + [
    f"nvidia-nvswitch0: SXid (PCI:0000:a9:00.0): {code:05d}, words" for code in (*sxid.table(), 99_999)
]
COUNTED = {pcie.AER_CORRECTABLE_RATE.name, pcie.AER_UNCORRECTABLE.name}
"""Codes that lines name and no line raises: the kernel counts these errors in /sys, and that is read."""
OF_PORTS = driver_codes.PORT_ERROR.name
"""The code of lines about a port, which count only if a GPU is below it."""
KNOWN = known_codes()


def event_of(line: str, at: datetime = START) -> KernelEvent:
    """The event of a line that has one."""
    event = kernel_log_parser().feed(KernelRecord(line, at))
    assert event is not None, line
    return event


def judged(*events: KernelEvent) -> list[Outcome]:
    """What the agent makes of events, as soon as they come."""
    judge = Judge(Settings(), time=START)
    judge.set_readings(NVIDIA, node(gpu(0)).nvidia, START)
    return judge.judge_events(events, START)


def raised(outcomes: Iterable[Outcome]) -> list[Finding]:
    """The findings among outcomes."""
    return [each for each in outcomes if isinstance(each, Finding)]


def test_every_code_of_a_line_is_registered() -> None:
    """Each code that a line of the kernel log can name is raised from lines, or by the counters in /sys, and known."""
    of_lines = {code.name for code in (*host_codes.EVENTS, *driver_codes.CODES)}
    named = {event_of(line).finding for line in EXAMPLES}
    assert {name for name in named if not name.startswith(("xid.", "sxid."))} == of_lines | COUNTED
    assert not of_lines & COUNTED
    assert {code.name for code in pcie.CHECK.codes} >= COUNTED
    assert all(CODES.exists(name) for name in named | of_lines)


def test_no_code_is_registered_twice() -> None:
    """Two checks never share a code: what one raises the other would clear. A name is defined once."""
    codes = [code for monitor in monitors() for check in monitor.checks for code in check.codes]
    assert len(codes) == len({code.name for code in codes})
    assert all(CODES.get(code.name) is code for code in codes)
    with pytest.raises(ValueError, match=r"gpu\.lost is defined twice"):
        define("gpu.lost", Severity.INFO, Action.NONE, meaning="Another.", advice="None.")
    with pytest.raises(ValueError, match="xid is defined twice"):
        CODES.define_family("xid", lambda number, _severity=None, _action=None: CODES.get(f"xid.{number}"), list)


def explained(text: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What `gpuhealth explain` says of a text, in one line."""
    explain.command([text])
    said = capsys.readouterr()
    assert said.err == ""
    return " ".join(said.out.split())


def test_every_pattern_has_an_example() -> None:
    """No pattern of the catalogue is without a line that shows what becomes of it."""
    for pattern in (*host_patterns.LINES, *oops.LINES, *pci_lines.LINES):
        assert any(pattern.expression.match(line) for line in EXAMPLES), (pattern.kind, pattern.expression.pattern)
    for each in nvrm_lines.LINES:
        assert any(event_of(line).meaning == each.meaning for line in EXAMPLES), each.pattern.pattern
    forms = {form for monitor in monitors() if monitor.patterns for form in monitor.patterns.user_text}
    assert {"hung_task", "soft_lockup", "oom", "segfault"} <= forms <= {event_of(line).kind for line in EXAMPLES}


@pytest.mark.parametrize("line", EXAMPLES)
def test_what_a_line_says_is_found(line: str) -> None:
    """A line that is a warning or worse becomes a finding of its code as soon as it comes, but for what is counted."""
    event = event_of(line)
    findings = raised(judged(event))
    if event.finding in (*COUNTED, OF_PORTS):
        assert findings == []
    elif event.severity is not Severity.INFO:
        (found,) = (each for each in findings if each.code == event.finding)
        assert found.severity is event.severity or event.kind == "xid"  # which may be the clean-up after another
    assert all(CODES.exists(each.code) for each in findings)


def test_every_xid_and_sxid_is_found() -> None:
    """Every XID and SXid above INFO raises its finding, in the catalogue or not."""
    for line in NUMBERED:
        event = event_of(line)
        if event.severity is not Severity.INFO:
            assert event.finding in {each.code for each in raised(judged(event))}, line


@pytest.mark.parametrize("line", EXAMPLES)
def test_every_line_is_explained(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`gpuhealth explain` of any line that means something says what it means and what becomes of it."""
    assert event_of(line).meaning in explained(line, capsys)


def test_every_number_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    """`gpuhealth explain` names the finding of every XID and SXid line, in the catalogue or not."""
    for line in NUMBERED:
        explain.command([line])
        assert event_of(line).finding in capsys.readouterr().out


def test_every_code_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    """`gpuhealth explain` knows every code by its name, and says how its finding ends."""
    for name in KNOWN:
        said = explained(name, capsys)
        assert f"finding {name}: {code_of(name).severity}" in said
        assert f"clears when {code_of(name).clears_when}." in said


def test_every_code_has_meaning_advice_and_an_end() -> None:
    """Whatever can be raised says what it means, what to do about it, and what ends it."""
    for name in KNOWN:
        code = code_of(name)
        assert code.name == name
        assert code.meaning.endswith("."), name
        assert code.advice.endswith("."), name
        assert code.clears in Clears, name
        assert code.clears_when, name
        assert code.clear_after >= 0, name
        if code.clears in (Clears.QUIET_PERIOD, Clears.LOGGED_END):
            assert code.clear_after > 0, f"{name} would end as soon as it is raised"


def test_every_end_has_words() -> None:
    """No way of ending is without a sentence of its own."""
    words = [msgspec.structs.replace(code_of("gpu.lost"), clears=clears).clears_when for clears in Clears]
    assert all(words)
    assert len(set(words)) == len(words)


MLX5_LOST = "mlx5_core 0000:9a:00.0: poll_health:800:(pid 0): device's health compromised - reached miss count"
LINK_DOWN, LINK_UP = "mlx5_core 0000:9a:00.0 ens1f0np0: Link down", "mlx5_core 0000:9a:00.0 ens1f0np0: Link up"
SAYS = {
    "pcieport 0000:00:1c.0: AER: Uncorrectable (Non-Fatal) error message received from 0000:3b:00.0": (
        "seen in /sys counters: these raise pcie.aer_uncorrectable, this line does not."
    ),
    "mlx5_core 0000:9a:00.0 ens1f0np0: Link up": "this line clears nic.down of this device, if it is active.",
    "e1000e: eth0 NIC Link is Up 1000 Mbps Full Duplex": "finding none from this line.",
    "mlx5_core 0000:9a:00.0: device's health compromised - reached miss count": (
        "this line raises infiniband.errors as critical."
    ),
    MLX5_LOST: "this line raises infiniband.errors as critical.",
}


@pytest.mark.parametrize("line", SAYS)
def test_an_explanation_is_true(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a line that does another thing than to raise its code as usual the explanation says so."""
    assert SAYS[line] in explained(line, capsys)


@pytest.mark.parametrize("line", [MLX5_LOST, LINK_DOWN])
def test_a_line_of_a_network_adapter_is_explained_with_its_code(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The explanation of a line about a network adapter says what its code means, what to do, and what ends it."""
    said, code = explained(line, capsys), code_of(event_of(line).finding)
    for text in (line, "PCI 0000:9a:00", code.name, code.meaning, code.advice, f"when {code.clears_when}."):
        assert text in said


def _agent(folder: Path) -> Agent:
    """An agent of a node without a cluster, which has not been started."""
    settings = {"journal": {"path": folder / "journal.sqlite"}, "kubernetes": {"enabled": False}}
    return Agent(Settings.model_validate(settings))


def _entries(folder: Path) -> list[Entry]:
    journal = Journal(folder / "journal.sqlite", 86400.0, 1000, read_only=True)
    try:
        return list(journal.entries())
    finally:
        journal.close()


def test_the_agent_keeps_a_critical_line_of_a_network_adapter(tmp_path: Path) -> None:
    """The line is a critical finding of the adapter at once, it is in the journal, and a later agent remembers it."""
    agent = _agent(tmp_path)
    agent.node_health.apply_events([event_of(MLX5_LOST, datetime.now(UTC))])
    (finding,) = agent.node_health.tracker.active()
    agent.journal.close()
    assert (finding.code, finding.severity) == ("infiniband.errors", Severity.CRITICAL)
    assert finding.component == Component(Kind.PCI_DEVICE, "0000:9a:00")
    assert finding.evidence.line == MLX5_LOST
    assert agent.status().findings == (finding,)
    assert agent.counts.findings["infiniband.errors"] == 1
    assert {(entry.kind, entry.code, entry.severity) for entry in _entries(tmp_path)} == {
        ("kernel", "infiniband.errors", "critical"),
        ("raised", "infiniband.errors", "critical"),
    }
    again = _agent(tmp_path)
    again.journal.close()
    assert [each.code for each in again.node_health.tracker.active()] == ["infiniband.errors"]


def test_the_agent_keeps_a_link_that_is_down_until_it_is_up(tmp_path: Path) -> None:
    """A link that goes down is a finding of its interface, which the line that it is up again ends."""
    agent = _agent(tmp_path)
    agent.node_health.apply_events([event_of(LINK_DOWN, datetime.now(UTC))])
    (finding,) = agent.node_health.tracker.active()
    assert (finding.code, finding.severity) == ("nic.down", Severity.WARNING)
    assert finding.component == Component(Kind.NIC, "ens1f0np0")
    agent.node_health.apply_events([event_of(LINK_UP, datetime.now(UTC))])
    assert agent.node_health.tracker.active() == ()
    agent.journal.close()
    assert [entry.kind for entry in _entries(tmp_path) if entry.kind != "kernel"] == ["raised", "cleared"]


def test_a_crash_is_not_explained_as_what_it_names() -> None:
    """A line in which a program has hidden another is explained as neither."""
    line = "traps: x[1] trap int3 ip:0 sp:0 error:0 in NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off.[7f+1]"
    with pytest.raises(CommandError, match="does not know this log line"):
        explain.command([line])


# --- every code can be raised -----------------------------------------------------------------------------------------


def _by_readings(status: KernelLogStatus) -> list[Finding]:
    return raised(Judge(Settings(), time=START).round(KERNEL_LOG, status, START))


def _by_the_controller(code: str) -> list[Finding]:
    judge = Judge(Settings(), time=START)
    judge.set_readings(NVIDIA, node(gpu(0)).nvidia, START)
    return raised(judge.round(FLEET_FINDINGS, FleetReadings((FleetFinding(code, uuid(0), "differs"),)), START))


def _by_a_reboot() -> list[Finding]:
    memory = remembering(gpus={"GPU-old": pci(0)}, boot_id="boot-0")
    return raised(Judge(Settings(), memory, boot_id="boot-1", time=START).round(NVIDIA, node(gpu(0)).nvidia, START))


def _by_different_programs() -> list[Finding]:
    lines = [f"NVRM: Xid (PCI:0000:01:00): {number}, pid={number}, name=p{number}, words" for number in (13, 31, 69)]
    return raised(judged(*map(event_of, lines)))


def _at_a_port() -> list[Finding]:
    return raised(
        Judge(Settings(), time=START).judge_events([event_of("pcieport 0000:89:02.0: DPC: containment event")], START)
    )


def _by_many_remapped_rows() -> list[Finding]:
    judge, settings = Judge(Settings(), time=START), Settings().xid
    judge.set_readings(NVIDIA, node(gpu(0)).nvidia, START)
    event = event_of("NVRM: Xid (PCI:0000:01:00): 63, pid=1, name=x, Row Remapper: New row marked for remapping")
    times = [at(10 * settings.coalesce * number) for number in range(settings.remaps_warning)]
    return [
        each for when in times for each in raised(judge.judge_events([msgspec.structs.replace(event, time=when)], when))
    ]


def _in_place_of_a_cleared_fault() -> list[Finding]:
    tracked = tracker(Settings.model_validate({"quarantine": {"test_before_return": True}}))
    for seconds, outcome in ((0, found("gpu.lost")), (10, clean("gpu.lost")), (100, clean("gpu.lost"))):
        tracked.apply_round("nvidia", [outcome], facts(component.gpu("GPU-1"), time=at(seconds)))
    return list(tracked.active())


def _by_the_record_on_the_node() -> list[Finding]:
    tracked = tracker()
    tracked.recall([Cause("gpu.lost", at(0), component.gpu("GPU-1"))], at(0), None, at(10), "boot-1")
    return list(tracked.active())


ELSEWHERE: dict[str, Callable[[], list[Finding]]] = {
    "agent.kmsg_overrun": lambda: _by_readings(KernelLogStatus("kmsg", lost_records=1)),
    "agent.kmsg_unavailable": lambda: _by_readings(KernelLogStatus("nvml")),
    "gpu.repeated_app_faults": _by_different_programs,
    "gpu.replaced": _by_a_reboot,
    OF_PORTS: _at_a_port,
    "gpu_memory.repeated_remaps": _by_many_remapped_rows,
    "fleet.digest_mismatch": lambda: _by_the_controller("fleet.digest_mismatch"),
    "fleet.slow_gpu": lambda: _by_the_controller("fleet.slow_gpu"),
    "burnin.required": _in_place_of_a_cleared_fault,
    "quarantine.memory_lost": _by_the_record_on_the_node,
}
"""Codes that neither a fault of the simulated node nor a single line of the kernel log raises, and what does."""
COVERAGE_ONLY = {"xid", "agent.kmsg_not_read"}
"""Stand for all XIDs and SXids, and for records that are gone, where it is said what is checked; none is a finding."""


@pytest.mark.parametrize("name", ELSEWHERE)
def test_what_is_raised_elsewhere(name: str) -> None:
    """The code is raised by what the table says."""
    assert name in {finding.code for finding in ELSEWHERE[name]()}


def test_every_code_can_be_raised() -> None:
    """No code is dead: each is raised by a fault of the simulated node, by a line of the kernel log, or as the table
    says; every XID and SXid by its line."""
    by_line = {finding.code for line in EXAMPLES for finding in raised(judged(event_of(line)))}
    by_number = {finding.code for line in NUMBERED for finding in raised(judged(event_of(line)))}
    known = {name for name in KNOWN if not name.startswith(("xid.", "sxid."))}
    assert known == {case.code for case in CASES} | (by_line & known) | set(ELSEWHERE) | COVERAGE_ONLY
    assert set(KNOWN) - known <= by_number
    assert not set(ELSEWHERE) & ({case.code for case in CASES} | by_line), "the table has what others raise"


# --- what names codes -------------------------------------------------------------------------------------------------

SETTINGS_OF_OLD = Settings.model_validate({"findings": {"nic.of_old": {"quarantine": True}}})
SUBJECTS = sorted({name.partition(".")[0] for name in KNOWN})
NAME = re.compile(rf"(?<![\w./$-])(?:{'|'.join(SUBJECTS)})\.(?:\*|[a-z][a-z0-9_]*|\d+)(?![\w.(/-])")
LABEL = re.compile(r'\bcode=~?\\?"([^"\\]+)\\?"')
"""A code in a query of Prometheus, whatever its subject."""
FILES = (".py", ".csv", ".yaml", ".lock", ".log", ".h", ".c")
OF_NVIDIA_SMI = ("gpuproof", "nvidia_smi.py")
"""Parts of paths of files with the names of its fields."""
PLACES = (
    "README.md",
    "daemonset/**/*.yaml",
    "daemonset/reference.md",
    "tools/*.md",
    "gpuhealth/**/*.csv",
    "dashboards/**/*.json",
    "dashboards/**/*.y*ml",
)


def _texts() -> Iterator[tuple[Path, str]]:
    for folder in ("gpuhealth", "dashboards", "tools"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if set(OF_NVIDIA_SMI) & set(path.parts):
                continue
            for part in ast.walk(ast.parse(path.read_text())):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield path, part.value
    for pattern in PLACES:
        paths = sorted(ROOT.glob(pattern))
        assert paths, pattern
        for path in paths:
            yield path, path.read_text()


def _is_setting_or_module(name: str) -> bool:
    section, _, key = name.partition(".")
    field = Settings.model_fields.get(section)
    known = getattr(field.annotation, "model_fields", {}) if field else {}
    of_chart = yaml.safe_load((ROOT / "daemonset/chart/values.yaml").read_text()).get(section)
    return key in known or key in (of_chart or ()) or (ROOT / "gpuhealth" / section / f"{key}.py").exists()


def _exists(name: str) -> bool:
    return CODES.exists(name) or any(fnmatchcase(code, name) for code in KNOWN)


def test_every_name_of_a_code_exists() -> None:
    """Source, dashboards, alerts, manifests, README and reference name no finding code that does not exist."""
    named = {(path.name, name) for path, text in _texts() for name in NAME.findall(text)}
    assert {name for _, name in named} > {"driver.unresponsive", "ecc.uncorrectable", "nic.down", "infiniband.errors"}
    assert {"README.md", "rules.py", "rules.yaml", "reference.md"} <= {file for file, _ in named}
    unknown = {
        (path, name)
        for path, name in named
        if not (_exists(name) or name.endswith(FILES) or _is_setting_or_module(name))
    }
    assert unknown == set()


def test_every_label_of_a_query_is_a_code() -> None:
    """An alert or a panel that asks for findings by their code asks for one that exists."""
    asked = {name for _, text in _texts() for name in LABEL.findall(text)}
    assert "driver.unresponsive" in asked
    assert {name for name in asked if not _exists(name)} == set()


def _settings() -> Iterator[tuple[Path, str]]:
    """The texts of settings files that we publish."""
    for path in (ROOT / "README.md", ROOT / "tools" / "README.md"):
        for block in re.findall(r"```yaml\n(.*?)```", path.read_text(), re.DOTALL):
            yield path, block
    for path in sorted(
        set((ROOT / "daemonset").rglob("*.yaml")) - set((ROOT / "daemonset/chart/templates").rglob("*"))
    ):
        for document in yaml.safe_load_all(path.read_text()):
            if isinstance(document, dict) and document.get("kind") == "ConfigMap":
                yield from ((path, text) for text in document["data"].values())


def test_published_settings_change_codes_that_exist() -> None:
    """Every policy for findings that README and manifests show is one for codes that exist."""
    sections = [
        (path, section)
        for path, text in _settings()
        if isinstance(section := yaml.safe_load(text), dict) and section.keys() <= Settings.model_fields.keys()
    ]
    assert {path.name for path, section in sections if "findings" in section} >= {"README.md"}
    for path, section in sections:
        assert unmatched_patterns(Settings.model_validate(section)) == [], path


def test_a_code_of_another_version_does_no_harm() -> None:
    """Stored findings with codes of another version are dropped; policies for such codes are reported."""
    old = msgspec.structs.replace(found("ecc.uncorrectable"), code="nic.of_old")
    state = TrackerState([TrackedFinding(old, raised=True, boot_id="boot")])
    tracked = tracker(SETTINGS_OF_OLD, state)
    assert tracked.active() == ()
    assert tracked.quarantine().findings == ()
    assert tracked.apply_round("nvidia", [], facts(time=START)) == []
    assert unmatched_patterns(SETTINGS_OF_OLD) == ["nic.of_old"]


def test_a_code_is_of_the_worst_case_until_its_finding_is_known() -> None:
    """The registry gives the code as it is for a finding, and for its bare name the worst that it can be."""
    grave: Code = CODES.get("xid.74")
    assert (grave.quarantine, grave.clears) == (True, Clears.RECOVERY)
    mild = found("xid.74", Severity.WARNING)
    assert (CODES.of(mild).quarantine, CODES.of(mild).clears) == (False, Clears.QUIET_PERIOD)
