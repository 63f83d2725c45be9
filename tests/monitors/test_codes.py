"""One registry of finding codes: whatever names a code names one that exists, and what a line says is judged."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import msgspec
import pytest
from gpuhealth.kernel_log.codes import LogCode
from testing.findings import found
from testing.kernel_lines import LINES
from testing.readings import START, gpu, node

from gpuhealth import monitors as checks
from gpuhealth.cli import explain
from gpuhealth.cli.output import CommandError
from gpuhealth.model.finding import Finding, Outcome, Severity
from gpuhealth.model.history import History
from gpuhealth.model.kernel_event import KernelEvent, KernelRecord
from gpuhealth.model.tracker_state import TrackerState
from gpuhealth.monitors.kernel_log import checks as kernel
from gpuhealth.monitors.kernel_log import patterns as host_lines
from gpuhealth.monitors.nvidia.catalog import log_lines as nvidia_lines
from gpuhealth.monitors.nvidia.catalog import sxid, xid
from gpuhealth.monitors.nvidia.checks import pcie
from gpuhealth.monitors.registry import kernel_log_parser
from gpuhealth.monitors.settings import Settings

ROOT = Path(__file__).parents[2]
EXAMPLES = [line for line, *_ in LINES]
NUMBERED = [f"NVRM: Xid (PCI:0000:01:00): {code}, pid=1, name=x, words" for code in (*xid.table(), 999)] + [
    f"nvidia-nvswitch0: SXid (PCI:0000:a9:00.0): {code:05d}, words" for code in (*sxid.table(), 99_999)
]


def event_of(line: str) -> KernelEvent:
    """The event of a line that has one."""
    event = kernel_log_parser().feed(KernelRecord(line, START))
    assert event is not None, line
    return event


def judged(event: KernelEvent) -> list[Outcome]:
    """What the agent makes of an event, as soon as it comes."""
    return checks.judge_events(node(gpu(0), events=(event,)), Settings(), History())


def test_every_code_of_a_line_is_registered() -> None:
    """Each code that a line of the kernel log can name is raised from lines, or by the counters in /sys, and known."""
    of_lines, counted = {code.name for code in kernel.EVENTS}, {code.value for code in kernel.COUNTED}
    assert of_lines | counted == {code.value for code in LogCode}
    assert not of_lines & counted
    assert counted <= {code.name for code in pcie.CHECK.codes}
    assert all(checks.exists(code.value) for code in LogCode)


def test_no_code_is_registered_twice() -> None:
    """Two checks never share a code: what one raises the other would clear."""
    names = [code.name for check in checks.CHECKS for code in check.codes]
    assert len(names) == len(set(names))


def explained(text: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What `gpuhealth explain` says of a text, in one line."""
    explain.command([text])
    said = capsys.readouterr()
    assert said.err == ""
    return " ".join(said.out.split())


def test_every_pattern_has_an_example() -> None:
    """No pattern of the catalogue is without a line that shows what becomes of it."""
    for kind, _, pattern, _ in host_lines.LINES:
        assert any(pattern.match(line) for line in EXAMPLES), (kind, pattern.pattern)
    for pattern, (_, _, _, meaning) in nvidia_lines.NVRM:
        assert any(event_of(line).meaning == meaning for line in EXAMPLES), pattern.pattern


@pytest.mark.parametrize("line", EXAMPLES)
def test_what_a_line_says_is_found(line: str) -> None:
    """A line that is a warning or worse becomes a finding of its code as soon as it comes, but for what is counted."""
    event = event_of(line)
    raised = [each for each in judged(event) if isinstance(each, Finding)]
    if event.finding in kernel.COUNTED:
        assert raised == []
    elif event.severity is not Severity.INFO:
        (found,) = (each for each in raised if each.code == event.finding)
        assert found.severity is event.severity or event.kind == "xid"  # which may be the clean-up after another
    assert all(checks.exists(each.code) for each in raised)


def test_every_xid_and_sxid_is_found() -> None:
    """The same of every XID and SXid, in the catalogue or not."""
    for line in NUMBERED:
        event = event_of(line)
        if event.severity is not Severity.INFO:
            assert event.finding in {each.code for each in judged(event) if isinstance(each, Finding)}, line


@pytest.mark.parametrize("line", EXAMPLES)
def test_every_line_is_explained(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`gpuhealth explain` of any line that means something says what it means and what becomes of it."""
    assert event_of(line).meaning in explained(line, capsys)


def test_every_number_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    """The same of a line of any XID or SXid, in the catalogue or not."""
    for line in NUMBERED:
        explain.command([line])
        assert event_of(line).finding in capsys.readouterr().out


def test_every_code_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    """`gpuhealth explain` knows every code by its name."""
    for name in checks.known_codes():
        explain.command([name])
        assert f"{name}: {checks.code(name).severity}" in capsys.readouterr().out


SAYS = {
    "pcieport 0000:00:1c.0: AER: Uncorrectable (Non-Fatal) error message received from 0000:3b:00.0": (
        "seen in /sys counters: these raise pcie.aer_uncorrectable, this line does not."
    ),
    "mlx5_core 0000:9a:00.0 ens1f0np0: Link up": "this line clears nic.down of this device, if it is active.",
    "e1000e: eth0 NIC Link is Up 1000 Mbps Full Duplex": "finding none from this line.",
    "mlx5_core 0000:9a:00.0: device's health compromised - reached miss count": (
        "this line raises infiniband.errors as critical."
    ),
}


@pytest.mark.parametrize("line", SAYS)
def test_an_explanation_is_true(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a line that does another thing than to raise its code as usual the explanation says so."""
    assert SAYS[line] in explained(line, capsys)


def test_a_crash_is_not_explained_as_what_it_names() -> None:
    """A line in which a program has hidden another is explained as neither."""
    line = "traps: x[1] trap int3 ip:0 sp:0 error:0 in NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off.[7f+1]"
    with pytest.raises(CommandError, match="does not know this log line"):
        explain.command([line])


SETTINGS_OF_OLD = Settings.model_validate({"findings": {"nic.of_old": {"quarantine": True}}})

# --- what names codes -------------------------------------------------------------------------------------------------

SUBJECTS = sorted({name.partition(".")[0] for name in checks.known_codes()})
NAME = re.compile(rf"(?<![\w./$-])(?:{'|'.join(SUBJECTS)})\.(?:\*|[a-z][a-z0-9_]*|\d+)(?![\w.(/-])")
FILES = (".py", ".csv", ".yaml", ".log", ".h")


def _texts() -> Iterator[tuple[Path, str]]:
    for folder in ("gpuhealth", "dashboards", "tools"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for part in ast.walk(ast.parse(path.read_text())):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield path, part.value
    for pattern in ("README.md", "daemonset/**/*.yaml", "dashboards/**/*.json", "dashboards/**/*.y*ml"):
        for path in sorted(ROOT.glob(pattern)):
            yield path, path.read_text()


def _is_setting_or_module(name: str) -> bool:
    section, _, key = name.partition(".")
    field = Settings.model_fields.get(section)
    known = getattr(field.annotation, "model_fields", {}) if field else {}
    return key in known or (ROOT / "gpuhealth" / section / f"{key}.py").exists()


def test_every_name_of_a_code_exists() -> None:
    """Source, dashboards, alerts, manifests and README name no finding code that does not exist."""
    known = checks.known_codes()
    named = {(path.name, name) for path, text in _texts() for name in NAME.findall(text)}
    assert {name for _, name in named} > {"driver.unresponsive", "ecc.uncorrectable"}
    unknown = {
        (path, name)
        for path, name in named
        if not checks.exists(name)
        and not any(fnmatchcase(code, name) for code in known)
        and not name.endswith(FILES)
        and not _is_setting_or_module(name)
    }
    assert unknown == set()


def test_a_code_of_another_version_does_no_harm() -> None:
    """What an older version remembers or was told of codes that no longer exist is left out and named, no more."""
    old = msgspec.structs.replace(found("ecc.uncorrectable"), code="nic.of_old")
    findings = Findings(SETTINGS_OF_OLD, TrackerState([Tracked(old, True, "boot")]))
    assert findings.active() == ()
    assert findings.quarantine().findings == ()
    assert findings.take_round([], START, "boot") == []
    assert checks.unmatched(SETTINGS_OF_OLD) == ["nic.of_old"]
