"""The text output of `gpuhealth burnin`: a table of results, throughput, failures, and the conclusion."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from gpuhealth.burnin.figures import format_figure, is_pair_figure, name_and_unit
from gpuhealth.cli.output import align_columns, console, print_labelled, short_name
from gpuhealth.cli.wording import RESULT_STYLE, counted
from gpuhealth.model.burnin_run import BurninRun, TestResult, TestStatus
from gpuhealth.runtime.text import printable

_MISCOMPARES = 4
_EVIDENCE_LINES = 12
_MARGIN = 12


def show(run: BurninRun) -> None:
    """Print the whole report."""
    out = console()
    heading = Text.assemble((printable(run.node), "bold"), f"  burn-in {run.level} ({run.reason})")
    out.print(heading.append(f"  {run.started:%Y-%m-%d %H:%M:%SZ}"))
    software = ", ".join(f"{name} {version}" for name, version in sorted(run.software.items()))
    if software:
        out.print(Text(printable(software), style="dim"))
    for note in run.notes:
        print_labelled(out, "", f"note: {printable(note)}", margin=0)
    if run.results:
        out.print()
        for line in _table(run):
            out.print(line, soft_wrap=True)
        _figures(out, run)
    for result in run.results:
        if result.status is TestStatus.FAILED:
            _failure(out, run, result)
    _inconclusive(out, run)
    out.print()
    print_labelled(out, "", _conclusion(run), margin=0)


def _gpus(run: BurninRun) -> list[str]:
    return list(dict.fromkeys(result.gpu for result in run.results))


def _table(run: BurninRun) -> list[Text]:
    tests = list(dict.fromkeys(result.test for result in run.results))
    results = {(result.gpu, result.test): result for result in run.results}
    rows = [[Text(heading, style="dim") for heading in ("GPU", "model", *tests, "max temp")]]
    for gpu in _gpus(run):
        row = [Text(short_name(gpu)), Text(printable(run.models.get(gpu, "-").removeprefix("NVIDIA ")))]
        for test in tests:
            result = results.get((gpu, test))
            row.append(_status(result.status) if result else Text("-"))
        spans = [result.telemetry["temperature_celsius"] for result in run.results if _has_temperature(result, gpu)]
        row.append(Text(f"{max(span.max for span in spans):.0f} °C" if spans else "-"))
        rows.append(row)
    return align_columns(rows, right=(len(tests) + 2,))


def _has_temperature(result: TestResult, gpu: str) -> bool:
    return result.gpu == gpu and "temperature_celsius" in result.telemetry


def _status(status: TestStatus) -> Text:
    return Text(status.upper() if status is TestStatus.FAILED else status, style=RESULT_STYLE[status])


def _figures(out: Console, run: BurninRun) -> None:
    """The lowest and highest value of each rate with its GPU, which shows a slow GPU even within the limits."""
    values: dict[tuple[str, str], list[tuple[float, str]]] = {}
    for result in run.results:
        for figure, value in result.figures.items():
            if name_and_unit(figure)[1] in ("TFLOPS", "GB/s") and not is_pair_figure(figure):
                values.setdefault((result.test, figure), []).append((value, result.gpu))
    if not values:
        return
    out.print()
    rows = [[Text(heading, style="dim") for heading in ("test", "lowest", "", "highest", "")]]
    for (test, figure), measured in values.items():
        lowest, highest = min(measured), max(measured)
        where = [Text(short_name(gpu) if lowest[0] != highest[0] else "", style="dim") for _, gpu in (lowest, highest)]
        rows.append(
            [
                Text(test),
                Text(format_figure(figure, lowest[0])),
                where[0],
                Text(format_figure(figure, highest[0])),
                where[1],
            ]
        )
    for line in align_columns(rows):
        out.print(line, soft_wrap=True)


def _failure(out: Console, run: BurninRun, result: TestResult) -> None:
    out.print()
    heading = Text.assemble(("FAILED", RESULT_STYLE[TestStatus.FAILED]), f"  {result.test}", style="bold")
    out.print(heading.append(f"  {printable(result.gpu)}  {printable(run.models.get(result.gpu, ''))}".rstrip()))
    print_labelled(out, "why", printable(result.message), _MARGIN)
    for miss in result.miscompares[:_MISCOMPARES]:
        print_labelled(out, "wrong", printable(miss.describe(details=True)), _MARGIN)
    if len(result.miscompares) > _MISCOMPARES:
        print_labelled(out, "", f"and {len(result.miscompares) - _MISCOMPARES} more, see --json", _MARGIN)
    lines = [line for line in result.evidence.splitlines() if line.strip()]
    for number, line in enumerate(lines[:_EVIDENCE_LINES]):
        print_labelled(out, "" if number else "evidence", printable(line), _MARGIN)
    if len(lines) > _EVIDENCE_LINES:
        print_labelled(out, "", f"and {len(lines) - _EVIDENCE_LINES} more lines, see --json", _MARGIN)


def _inconclusive(out: Console, run: BurninRun) -> None:
    """Print tests that were skipped or stopped, one line per reason."""
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for result in run.results:
        if result.status in (TestStatus.SKIPPED, TestStatus.STOPPED):
            reasons.setdefault((result.status, result.test, result.message), []).append(result.gpu)
    if reasons:
        out.print()
    for (status, test, message), gpus in reasons.items():
        where = "" if len(gpus) == len(_gpus(run)) else f" ({', '.join(map(short_name, gpus))})"
        print_labelled(out, status, printable(f"{test}: {message}{where}"), _MARGIN)


def _conclusion(run: BurninRun) -> Text:
    gpus = _gpus(run)
    failed = {result.gpu for result in run.results if result.status is TestStatus.FAILED}
    duration = f"{(run.ended - run.started).total_seconds():.0f} s"
    line = _status(run.status)
    match run.status:
        case TestStatus.FAILED:
            names = ", ".join(short_name(gpu) for gpu in gpus if gpu in failed)
            line.append(f": {len(failed)} of {counted(len(gpus), 'GPU')} ({names}), after {duration}.", style="")
            line.append(" Take the node out of service and have its hardware inspected.", style="")
        case TestStatus.PASSED:
            line.append(f": {counted(len(gpus), 'GPU')}, no errors in {duration}.", style="")
        case TestStatus.STOPPED:
            line.append(f" after {duration}: incomplete, no errors so far, inconclusive.", style="")
        case TestStatus.SKIPPED:
            line.append(": at least one GPU could not be tested; its health is unknown.", style="")
    return line
