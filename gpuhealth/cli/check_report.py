"""The text output of `gpuhealth check`: GPUs, findings with what to do, checks that did not run, and the verdict."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from gpuhealth.cli.output import align_columns, console, print_labelled, short_name
from gpuhealth.cli.single_run import RunResult
from gpuhealth.cli.wording import ACTIONS, MISSING_REASONS, STYLE, counted
from gpuhealth.model.codes import CODES
from gpuhealth.model.component import Component, Kind
from gpuhealth.model.finding import Action, Finding, Severity
from gpuhealth.model.missing import Missing, Reading
from gpuhealth.model.verdict import GpuVerdict, NotCovered, State, Verdict
from gpuhealth.monitors.judge import tracker_rules
from gpuhealth.monitors.nvidia.monitor import MONITOR as NVIDIA
from gpuhealth.monitors.nvidia.readings import GpuReadings
from gpuhealth.monitors.readings import NodeReadings
from gpuhealth.runtime.text import printable

_NEEDS_DRAIN = (Action.RESET_GPU, Action.REBOOT_NODE, Action.INSPECT_HARDWARE)
"""Actions for which the node must be empty, each of them including the ones before it."""


def show(result: RunResult, notes: Sequence[str] = (), *, verbose: bool = False, replay_of: str = "") -> None:
    """Print the whole report."""
    out = console()
    verdict = result.verdict
    _header(out, result.readings, verdict, replay_of)
    for note in notes:
        print_labelled(out, "", f"note: {printable(note)}", margin=0)
    if result.nothing_to_check:
        out.print(Text(result.nothing_to_check, style=STYLE[State.UNKNOWN]))
        return
    if verdict.gpus:
        out.print()
        for line in _gpus(result, verbose):
            out.print(line)
    for group in _groups(verdict.findings):
        out.print()
        _findings(out, group, result, verbose)
    out.print()
    _coverage(out, verdict, verbose)
    out.print()
    print_labelled(out, "", _conclusion(result), margin=0)


def _header(out: Console, readings: NodeReadings, verdict: Verdict, replay_of: str) -> None:
    nvidia = readings.of(NVIDIA)
    driver = None if isinstance(nvidia, Missing) else nvidia.nvml.driver_version
    line = Text.assemble((printable(verdict.node), "bold"))
    line.append(f"  driver {printable(driver) if isinstance(driver, str) else '-'}")
    line.append(f"  {verdict.time:%Y-%m-%d %H:%M:%SZ}")
    out.print(line)
    if replay_of:
        out.print(Text(f"replay of {printable(replay_of)}"))


# --- the GPUs ---------------------------------------------------------------------------------------------------------


def _gpus(result: RunResult, verbose: bool) -> list[Text]:
    nvidia = result.readings.of(NVIDIA)
    read = () if isinstance(nvidia, Missing) else nvidia.nvml.gpus
    complete = not isinstance(nvidia, Missing) and nvidia.nvml.is_complete
    headings = ("GPU", "model", "PCI", "uuid", "temp", "power", "state")
    rows = [[Text(heading, style="dim") for heading in headings]]
    for gpu in result.verdict.gpus:
        reading = next((one for one in read if gpu.uuid == one.id or gpu.index == one.index), None)
        cells = (
            str(gpu.index) if gpu.index >= 0 else "-",
            printable(gpu.model.removeprefix("NVIDIA ")) or "-",
            printable(gpu.pci) or "-",
            printable(gpu.uuid) if verbose else short_name(gpu.uuid),
            _value(reading.temperature_celsius, "{} °C") if reading else "-",
            _value(reading.power_milliwatts, "{} W", 1000) if reading else "-",
        )
        rows.append([*map(Text, cells), Text(_state(gpu, reading, complete), style=STYLE[gpu.verdict])])
        for mig in gpu.mig:
            uuid = printable(mig.uuid) if verbose else short_name(mig.uuid)
            cells = ("", f"MIG instance {mig.gpu_instance}", "", uuid, "", "")
            rows.append([*map(Text, cells), Text(mig.verdict, style=STYLE[mig.verdict])])
    return align_columns(rows, right=(0, 4, 5))


def _state(gpu: GpuVerdict, reading: GpuReadings | None, complete: bool) -> str:
    if reading:
        return str(gpu.verdict)
    return f"{gpu.verdict}, {'gone' if complete else 'not read'}"


def _value(reading: Reading[int], template: str, divisor: int = 1) -> str:
    return "-" if isinstance(reading, Missing) else template.format(round(reading / divisor))


# --- the findings -----------------------------------------------------------------------------------------------------


def _groups(findings: Sequence[Finding]) -> list[list[Finding]]:
    """Groups of findings that differ only in their component, in the order of the first of each."""
    groups: dict[tuple[object, ...], list[Finding]] = {}
    for finding in findings:
        key = (finding.code, finding.severity, finding.action, finding.evidence.source, finding.clears_when)
        groups.setdefault(key, []).append(finding)
    return list(groups.values())


def _findings(out: Console, group: list[Finding], result: RunResult, verbose: bool) -> None:
    """Print a group: differing parts once per finding, common parts once."""
    first = group[0]
    heading = Text.assemble((first.severity.upper(), STYLE[first.severity]))
    heading.append(f"  {printable(first.code)}", style="bold")
    if len(group) > 1:
        heading.append(f"  ({counted(len(group), 'finding')})")
    out.print(heading)
    code = tracker_rules(result.settings).code_of(first)
    if verbose:
        print_labelled(out, "meaning", code.meaning)
    same_reading = len({_reading(finding) for finding in group}) == 1
    with_time = verbose or any(finding.last_seen < result.verdict.time for finding in group)
    same_time = not with_time or len({_seen(finding) for finding in group}) == 1
    label = "what"
    for finding in group:
        print_labelled(out, label, _what(finding, verbose))
        if not same_reading:
            print_labelled(out, "read", _reading(finding))
        if not same_time:
            print_labelled(out, "seen", _seen(finding))
        if finding.evidence.line:
            print_labelled(out, "line", printable(finding.evidence.line))
        label = "" if same_reading and same_time and not finding.evidence.line else "what"
    if same_reading and _reading(first):
        print_labelled(out, "read", _reading(first))
    if with_time and same_time:
        print_labelled(out, "seen", _seen(first))
    print_labelled(out, "source", printable(first.evidence.source))
    print_labelled(out, "action", f"{first.action}: {code.advice}")
    print_labelled(out, "clears", f"when {first.clears_when}")


def _what(finding: Finding, verbose: bool) -> str:
    """The message, with the component unless it is the node or the message names it."""
    component = finding.component
    name = component.id if verbose else short_name(component.id)
    is_named = component.kind is Kind.NODE or name in finding.message
    return printable(finding.message) if is_named else f"{printable(finding.message)}  [{printable(name)}]"


def _reading(finding: Finding) -> str:
    threshold = f" (threshold {finding.evidence.threshold})" if finding.evidence.threshold else ""
    return printable(f"{finding.evidence.reading}{threshold}") if finding.evidence.reading else ""


def _seen(finding: Finding) -> str:
    if finding.first_seen == finding.last_seen:
        return f"{finding.first_seen:%Y-%m-%d %H:%M:%SZ}"
    return f"{finding.first_seen:%Y-%m-%d %H:%M:%SZ} to {finding.last_seen:%H:%M:%SZ}"


# --- the coverage -----------------------------------------------------------------------------------------------------


def _coverage(out: Console, verdict: Verdict, verbose: bool) -> None:
    coverage = verdict.coverage
    ran = f"{counted(len(coverage.checked), 'check')} ran"
    if verbose and coverage.checked:
        ran += f": {', '.join(_folded(coverage.checked))}"
    print_labelled(out, "", f"{ran}; not checked:" if coverage.not_checked else f"{ran}, none was skipped.", margin=0)
    where: dict[tuple[str, str], set[Component]] = {}  # reason and check -> components
    for entry in coverage.not_checked:
        where.setdefault((_reason(entry, verdict), entry.check), set()).add(entry.component)
    lines: dict[tuple[str, str], list[str]] = {}  # reason and components in words -> checks
    for (reason, check), components in where.items():
        lines.setdefault((reason, _in_words(components, verdict)), []).append(check)
    for (reason, named), skipped in lines.items():
        print_labelled(out, "-", f"{reason}{named}: {', '.join(_folded(sorted(skipped)))}", margin=4)


def _reason(entry: NotCovered, verdict: Verdict) -> str:
    """The reason in words. Reasons that differ only in a GPU's address become equal."""
    detail = entry.detail
    for gpu in verdict.gpus:
        if gpu.uuid == entry.component.gpu and gpu.pci:
            detail = detail.replace(gpu.pci, "<address>")
    return printable(detail) or MISSING_REASONS.get(entry.reason, printable(entry.reason))


def _in_words(components: set[Component], verdict: Verdict) -> str:
    """` (GPU 3, 5)`: the GPUs by number instead of uuid, other components by name; empty for the node."""
    others = sorted(component.name for component in components if component.kind not in (Kind.NODE, Kind.GPU))
    uuids = {component.id for component in components if component.kind is Kind.GPU}
    if len(uuids) == len(verdict.gpus) > 1:
        gpus = [f"all {len(uuids)} GPUs"]
    else:
        numbers = sorted(gpu.index for gpu in verdict.gpus if gpu.uuid in uuids and gpu.index >= 0)
        gone = [short_name(gpu.uuid) for gpu in verdict.gpus if gpu.uuid in uuids and gpu.index < 0]
        gpus = [f"GPU {', '.join([*map(str, numbers), *gone])}"] if uuids else []
    return f" ({', '.join([*gpus, *others])})" if gpus or others else ""


def _folded(names: Sequence[str]) -> list[str]:
    """The names, with `ecc.*` in place of all codes of a subject."""
    known = [code.name for code in CODES.defined()]
    folded: dict[str, None] = {}
    for name in names:
        subject = f"{name.partition('.')[0]}."
        whole = {code for code in known if code.startswith(subject)}
        folded[f"{subject}*" if len(whole) > 1 and whole <= set(names) else name] = None
    return list(folded)


# --- the conclusion ---------------------------------------------------------------------------------------------------


def _conclusion(result: RunResult) -> Text:
    verdict, quarantine = result.verdict, result.quarantine
    state = verdict.verdict
    line = Text.assemble((state.upper() if state is State.UNHEALTHY else str(state), STYLE[state]))
    line.append(f": {_summary(verdict)}")
    if quarantine.findings:
        acts = "quarantines and drains" if quarantine.drain else "quarantines"
        line.append(f" The agent {acts} a node in this state ({quarantine.findings[0].code}).")
    return line


def _summary(verdict: Verdict) -> str:
    found = _counts(verdict)
    match verdict.verdict:
        case State.HEALTHY if not verdict.gpus:
            return "the NVIDIA driver of this machine has no GPU to use: nothing to check."
        case State.HEALTHY:
            return f"{counted(len(verdict.gpus), 'GPU')}, no fault found."
        case State.DEGRADED:
            return f"{found}; the node can stay in service. {_next(verdict)}."
        case State.UNHEALTHY:
            return f"{found}. {_next(verdict)}."
        case State.UNKNOWN:
            also = f" Also {found}. {_next(verdict)}." if found else ""
            return f"an essential check could not run; treat this node as unhealthy until it does.{also}"


def _counts(verdict: Verdict) -> str:
    """`2 critical findings, 1 warning`; empty without either."""
    critical = sum(finding.severity is Severity.CRITICAL for finding in verdict.findings)
    warnings = sum(finding.severity is Severity.WARNING for finding in verdict.findings)
    parts = [counted(critical, "critical finding")] if critical else []
    parts += [counted(warnings, "warning")] if warnings else []
    return ", ".join(parts)


def _next(verdict: Verdict) -> str:
    """What to do next: the action for the worst findings that includes the actions for the others."""
    actionable = [finding for finding in verdict.findings if finding.action is not Action.NONE]
    candidates = actionable or list(verdict.findings)
    severity = candidates[0].severity
    worst = max((finding for finding in candidates if finding.severity is severity), key=_reach)
    numbers = {gpu.uuid: gpu.index for gpu in verdict.gpus}
    same = [finding for finding in candidates if (finding.code, finding.action) == (worst.code, worst.action)]
    gpus = sorted({numbers.get(finding.component.gpu, -1) for finding in same} - {-1})
    where = f"GPU {', '.join(map(str, gpus))}, {worst.code}" if gpus else worst.code
    # A node that can work is not drained for a warning.
    later = verdict.verdict is State.DEGRADED and worst.action in _NEEDS_DRAIN
    return f"{'When the node is idle' if later else 'Next'}: {ACTIONS[worst.action]} ({where})"


def _reach(finding: Finding) -> int:
    """How much of the node an action takes: 0 for one that does not need it empty."""
    return 1 + _NEEDS_DRAIN.index(finding.action) if finding.action in _NEEDS_DRAIN else 0
