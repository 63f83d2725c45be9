"""How a verdict is shown to people: the GPUs, what is wrong and what to do, what was not looked at, the last word."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from gpuhealth.cli.output import columns, console, labelled, printable, short
from gpuhealth.cli.single_run import Judgement
from gpuhealth.cli.wording import DO, STYLE, UNREAD, counted
from gpuhealth.model.codes import CODES
from gpuhealth.model.component import Component, Kind
from gpuhealth.model.finding import Action, Finding, Severity
from gpuhealth.model.missing import Missing, Reading
from gpuhealth.model.verdict import NotCovered, State, Verdict
from gpuhealth.monitors.judge import tracker_rules
from gpuhealth.monitors.nvidia.monitor import MONITOR as NVIDIA
from gpuhealth.monitors.readings import NodeReadings
from gpuhealth.monitors.settings import Settings

_TAKES_THE_NODE = (Action.RESET_GPU, Action.REBOOT_NODE, Action.INSPECT_HARDWARE)


def show(judgement: Judgement, notes: Sequence[str] = (), *, verbose: bool = False, replay_of: str = "") -> None:
    """Prints it all."""
    out = console()
    verdict = judgement.verdict
    _header(out, judgement.readings, verdict, replay_of)
    for note in notes:
        labelled(out, "", f"note: {printable(note)}", margin=0)
    if judgement.nothing_here:
        out.print(Text(judgement.nothing_here, style=STYLE[State.UNKNOWN]))
        return
    if verdict.gpus:
        out.print()
        for line in _gpus(judgement, verbose):
            out.print(line)
    for group in _groups(verdict.findings):
        out.print()
        _findings(out, group, judgement.settings, verbose)
    out.print()
    _coverage(out, verdict, verbose)
    out.print()
    labelled(out, "", _last_word(judgement), margin=0)


def _header(out: Console, readings: NodeReadings, verdict: Verdict, replay_of: str) -> None:
    nvidia = readings.of(NVIDIA)
    driver = None if isinstance(nvidia, Missing) else nvidia.nvml.driver_version
    head = Text.assemble((printable(verdict.node), "bold"))
    head.append(f"  driver {printable(driver) if isinstance(driver, str) else '-'}")
    head.append(f"  {verdict.time:%Y-%m-%d %H:%M:%SZ}")
    out.print(head)
    if replay_of:
        out.print(Text(f"replay of {printable(replay_of)}"))


# --- the GPUs ---------------------------------------------------------------------------------------------------------


def _gpus(judgement: Judgement, verbose: bool) -> list[Text]:
    nvidia = judgement.readings.of(NVIDIA)
    read = () if isinstance(nvidia, Missing) else nvidia.nvml.gpus
    complete = not isinstance(nvidia, Missing) and nvidia.nvml.is_complete
    headings = ("GPU", "model", "PCI", "uuid", "temp", "power", "state")
    rows = [[Text(heading, style="dim") for heading in headings]]
    for gpu in judgement.verdict.gpus:
        own = next((each for each in read if gpu.uuid == each.id or gpu.index == each.index), None)
        state = Text(gpu.verdict + ("" if own else ", gone" if complete else ", not read"), style=STYLE[gpu.verdict])
        cells = (
            str(gpu.index) if gpu.index >= 0 else "-",
            printable(gpu.model.removeprefix("NVIDIA ")) or "-",
            printable(gpu.pci) or "-",
            printable(gpu.uuid) if verbose else short(gpu.uuid),
            _value(own.temperature_celsius, "{} °C") if own else "-",
            _value(own.power_milliwatts, "{} W", 1000) if own else "-",
        )
        rows.append([*map(Text, cells), state])
        for mig in gpu.mig:
            uuid = printable(mig.uuid) if verbose else short(mig.uuid)
            cells = ("", f"MIG instance {mig.gpu_instance}", "", uuid, "", "")
            rows.append([*map(Text, cells), Text(mig.verdict, style=STYLE[mig.verdict])])
    return columns(rows, right=(0, 4, 5))


def _value(reading: Reading[int], form: str, divisor: int = 1) -> str:
    return "-" if isinstance(reading, Missing) else form.format(round(reading / divisor))


# --- the findings -----------------------------------------------------------------------------------------------------


def _groups(findings: Sequence[Finding]) -> list[list[Finding]]:
    """Findings that differ only in where they are stand together, in the order of the first of them."""
    groups: dict[tuple[object, ...], list[Finding]] = {}
    for each in findings:
        key = (each.code, each.severity, each.action, each.evidence.source, each.clears_when)
        groups.setdefault(key, []).append(each)
    return list(groups.values())


def _findings(out: Console, group: list[Finding], settings: Settings, verbose: bool) -> None:
    first = group[0]
    head = Text.assemble((first.severity.upper(), STYLE[first.severity]))
    head.append(f"  {printable(first.code)}", style="bold")
    if len(group) > 1:
        head.append(f"  ({counted(len(group), 'finding')})")
    out.print(head)
    code = tracker_rules(settings).code_of(first)
    if verbose:
        labelled(out, "meaning", code.meaning)
    same = len({_read(each) for each in group}) == 1
    for number, each in enumerate(group):
        labelled(out, "" if number and same else "what", _what(each, verbose))
        if not same:
            labelled(out, "read", _read(each))
        if each.evidence.line:
            labelled(out, "line", printable(each.evidence.line))
        if verbose:
            labelled(out, "seen", f"{each.first_seen:%Y-%m-%d %H:%M:%SZ} to {each.last_seen:%H:%M:%SZ}")
    if same and _read(first):
        labelled(out, "read", _read(first))
    labelled(out, "source", printable(first.evidence.source))
    labelled(out, "action", f"{first.action}: {code.advice}")
    labelled(out, "clears", f"when {first.clears_when}")


def _what(finding: Finding, verbose: bool) -> str:
    component = finding.component
    name = component.id if verbose else short(component.id)
    is_named = component.kind is Kind.NODE or name in finding.message
    return printable(finding.message) if is_named else f"{printable(finding.message)}  [{printable(name)}]"


def _read(finding: Finding) -> str:
    threshold = f" (threshold {finding.evidence.threshold})" if finding.evidence.threshold else ""
    return printable(f"{finding.evidence.reading}{threshold}") if finding.evidence.reading else ""


# --- what was looked at -----------------------------------------------------------------------------------------------


def _coverage(out: Console, verdict: Verdict, verbose: bool) -> None:
    coverage = verdict.coverage
    done = f"{counted(len(coverage.checked), 'check')} done"
    if verbose and coverage.checked:
        done += f": {', '.join(_folded(coverage.checked))}"
    out.print(Text(f"{done}{'; not checked:' if coverage.not_checked else ', none left out.'}"))
    where: dict[tuple[str, str], set[Component]] = {}  # reason and check -> components
    for item in coverage.not_checked:
        where.setdefault((_reason(item, verdict), item.check), set()).add(item.component)
    lines: dict[tuple[str, str], list[str]] = {}  # reason and place -> checks
    for (reason, check), components in where.items():
        lines.setdefault((reason, _place(components, verdict)), []).append(check)
    for (reason, place), checked in lines.items():
        labelled(out, "-", f"{reason}{place}: {', '.join(_folded(sorted(checked)))}", margin=4)


def _reason(item: NotCovered, verdict: Verdict) -> str:
    """The reason in words; two GPUs whose reasons differ only in their PCI addresses have one in common."""
    detail = item.detail
    for gpu in verdict.gpus:
        if gpu.uuid == item.component.gpu and gpu.pci:
            detail = detail.replace(gpu.pci, "<address>")
    return printable(detail) or UNREAD.get(item.reason, printable(item.reason))


def _place(components: set[Component], verdict: Verdict) -> str:
    """` (GPU 3, 5)`, with GPUs by number in place of their uuids; nothing for the node as a whole."""
    others = sorted(component.name for component in components if component.kind not in (Kind.NODE, Kind.GPU))
    uuids = {component.id for component in components if component.kind is Kind.GPU}
    if len(uuids) == len(verdict.gpus) > 1:
        gpus = [f"all {len(uuids)} GPUs"]
    else:
        numbers = sorted(gpu.index for gpu in verdict.gpus if gpu.uuid in uuids and gpu.index >= 0)
        gone = [short(gpu.uuid) for gpu in verdict.gpus if gpu.uuid in uuids and gpu.index < 0]
        gpus = [f"GPU {', '.join([*map(str, numbers), *gone])}"] if uuids else []
    return f" ({', '.join([*gpus, *others])})" if gpus or others else ""


def _folded(names: Sequence[str]) -> list[str]:
    """`ecc.*` in place of all of a subject's codes."""
    known = [code.name for code in CODES.defined()]
    folded: dict[str, None] = {}
    for name in names:
        subject = f"{name.partition('.')[0]}."
        whole = {each for each in known if each.startswith(subject)}
        folded[f"{subject}*" if len(whole) > 1 and whole <= set(names) else name] = None
    return list(folded)


# --- the last word ----------------------------------------------------------------------------------------------------


def _last_word(judgement: Judgement) -> Text:
    verdict, quarantine = judgement.verdict, judgement.quarantine
    state = verdict.verdict
    word = Text.assemble((state.upper() if state is State.UNHEALTHY else str(state), STYLE[state]))
    word.append(f": {_what_it_means(verdict)}")
    if quarantine.findings:
        moves = " and moves its pods elsewhere" if quarantine.drain else ""
        code = quarantine.findings[0].code
        word.append(f" The agent takes such a node out of service{moves} ({code}).")
    return word


def _what_it_means(verdict: Verdict) -> str:
    critical = sum(each.severity is Severity.CRITICAL for each in verdict.findings)
    warnings = sum(each.severity is Severity.WARNING for each in verdict.findings)
    counts = [counted(critical, "critical finding")] * bool(critical) + [counted(warnings, "warning")] * bool(warnings)
    found = ", ".join(counts)
    match verdict.verdict:
        case State.HEALTHY:
            return f"{counted(len(verdict.gpus), 'GPU')}, nothing wrong found."
        case State.DEGRADED:
            return f"{found}; the node can work. {_next(verdict)}."
        case State.UNHEALTHY:
            return f"{found}. {_next(verdict)}."
        case State.UNKNOWN:
            besides = f" {found} besides. {_next(verdict)}." if found else ""
            return f"what is essential could not be checked.{besides} Do not trust this node until it has been."


def _next(verdict: Verdict) -> str:
    """What to do about the worst finding that asks for something."""
    asking = [each for each in verdict.findings if each.action is not Action.NONE] or list(verdict.findings)
    worst = asking[0]
    numbers = {gpu.uuid: gpu.index for gpu in verdict.gpus}
    gpus = {
        numbers.get(each.component.gpu, -1) for each in asking if (each.code, each.action) == (worst.code, worst.action)
    }
    named = ", ".join(str(number) for number in sorted(gpus) if number >= 0)
    # Nobody takes a node that can work away from its work for a warning.
    waits = verdict.verdict is State.DEGRADED and worst.action in _TAKES_THE_NODE
    where = f"GPU {named}, {worst.code}" if named else worst.code
    return f"{'When it is free' if waits else 'Next'}: {DO[worst.action]} ({where})"
