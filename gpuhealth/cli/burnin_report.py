"""How the results of a burn-in are shown to people: a table, what failed and why, the last word."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from gpuhealth.burnin.figures import in_words, is_pair, quantity
from gpuhealth.cli.output import columns, console, labelled, printable, short
from gpuhealth.cli.wording import RESULT_STYLE, counted
from gpuhealth.model.burnin_run import BurninRun, Miscompare, TestResult, TestStatus

_MISCOMPARES = 4
_EVIDENCE_LINES = 12
_MARGIN = 12


def show(run: BurninRun) -> None:
    """Prints it all."""
    out = console()
    head = Text.assemble((printable(run.node), "bold"), f"  burn-in {run.level} ({run.reason})")
    out.print(head.append(f"  {run.started:%Y-%m-%d %H:%M:%SZ}"))
    software = ", ".join(f"{name} {version}" for name, version in sorted(run.software.items()))
    if software:
        out.print(Text(printable(software), style="dim"))
    for note in run.notes:
        labelled(out, "", f"note: {printable(note)}", margin=0)
    if run.results:
        out.print()
        for line in _table(run):
            out.print(line, soft_wrap=True)
        _figures(out, run)
    for result in run.results:
        if result.status is TestStatus.FAILED:
            _failure(out, run, result)
    _left_out(out, run)
    out.print()
    labelled(out, "", _last_word(run), margin=0)


def _gpus(run: BurninRun) -> list[str]:
    return list(dict.fromkeys(result.gpu for result in run.results))


def _table(run: BurninRun) -> list[Text]:
    tests = list(dict.fromkeys(result.test for result in run.results))
    results = {(result.gpu, result.test): result for result in run.results}
    rows = [[Text(heading, style="dim") for heading in ("GPU", "model", *tests, "hottest")]]
    for gpu in _gpus(run):
        row = [Text(short(gpu)), Text(printable(run.models.get(gpu, "-").removeprefix("NVIDIA ")))]
        for test in tests:
            result = results.get((gpu, test))
            row.append(_status(result.status) if result else Text("-"))
        spans = [result.telemetry["temperature_celsius"] for result in run.results if _has_temperature(result, gpu)]
        row.append(Text(f"{max(span.max for span in spans):.0f} °C" if spans else "-"))
        rows.append(row)
    return columns(rows, right=(len(tests) + 2,))


def _has_temperature(result: TestResult, gpu: str) -> bool:
    return result.gpu == gpu and "temperature_celsius" in result.telemetry


def _status(status: TestStatus) -> Text:
    return Text(status.upper() if status is TestStatus.FAILED else status, style=RESULT_STYLE[status])


def _figures(out: Console, run: BurninRun) -> None:
    """Of each rate the least and the most, and where they were: a straggler shows without a limit being crossed."""
    values: dict[tuple[str, str], list[tuple[float, str]]] = {}
    for result in run.results:
        for figure, value in result.figures.items():
            if quantity(figure)[1] in ("TFLOPS", "GB/s") and not is_pair(figure):
                values.setdefault((result.test, figure), []).append((value, result.gpu))
    if not values:
        return
    out.print()
    rows = [[Text(heading, style="dim") for heading in ("test", "least", "", "most", "")]]
    for (test, figure), each in values.items():
        least, most = min(each), max(each)
        where = [Text(short(gpu) if least[0] != most[0] else "", style="dim") for _, gpu in (least, most)]
        rows.append([Text(test), Text(in_words(figure, least[0])), where[0], Text(in_words(figure, most[0])), where[1]])
    for line in columns(rows):
        out.print(line, soft_wrap=True)


def _failure(out: Console, run: BurninRun, result: TestResult) -> None:
    out.print()
    head = Text.assemble(("FAILED", RESULT_STYLE[TestStatus.FAILED]), f"  {result.test}", style="bold")
    out.print(head.append(f"  {printable(result.gpu)}  {printable(run.models.get(result.gpu, ''))}".rstrip()))
    labelled(out, "why", printable(result.message), _MARGIN)
    for miss in result.miscompares[:_MISCOMPARES]:
        labelled(out, "wrong", printable(_miscompare(miss)), _MARGIN)
    if len(result.miscompares) > _MISCOMPARES:
        labelled(out, "", f"and {len(result.miscompares) - _MISCOMPARES} more (--json has them all)", _MARGIN)
    lines = [line for line in result.evidence.splitlines() if line.strip()]
    for number, line in enumerate(lines[:_EVIDENCE_LINES]):
        labelled(out, "" if number else "evidence", printable(line), _MARGIN)
    if len(lines) > _EVIDENCE_LINES:
        labelled(out, "", f"and {len(lines) - _EVIDENCE_LINES} lines more (--json has them all)", _MARGIN)


def _miscompare(miss: Miscompare) -> str:
    parts = [f"{miss.what}: {counted(miss.wrong, 'value')}, the first at {miss.index}"]
    parts += [f"bits {miss.xor}"] if miss.xor else []
    parts += [f"{miss.got} where {miss.expected} must be"] if miss.got and miss.expected else []
    parts += [miss.kind.replace("_", " ")] if miss.kind else []
    parts += [miss.repeats] if miss.repeats else []
    parts += [f"at {miss.temperature_celsius:.0f} °C"] if miss.temperature_celsius is not None else []
    return ", ".join(parts)


def _left_out(out: Console, run: BurninRun) -> None:
    """Tests that said nothing, one line a reason."""
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for result in run.results:
        if result.status in (TestStatus.SKIPPED, TestStatus.STOPPED):
            reasons.setdefault((result.status, result.test, result.message), []).append(result.gpu)
    if reasons:
        out.print()
    for (status, test, message), gpus in reasons.items():
        where = "" if len(gpus) == len(_gpus(run)) else f" ({', '.join(map(short, gpus))})"
        labelled(out, status, printable(f"{test}: {message}{where}"), _MARGIN)


def _last_word(run: BurninRun) -> Text:
    gpus = _gpus(run)
    failed = {result.gpu for result in run.results if result.status is TestStatus.FAILED}
    lasted = f"{(run.ended - run.started).total_seconds():.0f} s"
    word = _status(run.status)
    match run.status:
        case TestStatus.FAILED:
            names = ", ".join(short(gpu) for gpu in gpus if gpu in failed)
            word.append(f": {len(failed)} of {counted(len(gpus), 'GPU')} ({names}), after {lasted}.", style="")
            word.append(" Take the node out of service and have its hardware looked at.", style="")
        case TestStatus.PASSED:
            word.append(f": {counted(len(gpus), 'GPU')}, nothing wrong found in {lasted}.", style="")
        case TestStatus.STOPPED:
            word.append(f" after {lasted}: nothing wrong until then, and nothing proven.", style="")
        case TestStatus.SKIPPED:
            word.append(": there are GPUs on which nothing could be tested, and nothing is proven of them.", style="")
    return word
