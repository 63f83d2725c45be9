"""Progress of a burn-in on standard error: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from gpuhealth.burnin.figures import format_figure, name_and_unit
from gpuhealth.burnin.registry import TESTS
from gpuhealth.burnin.run import Run
from gpuhealth.burnin.targets import Target
from gpuhealth.cli.output import console, short_name
from gpuhealth.cli.wording import RESULT_STYLE, counted
from gpuhealth.model.burnin_run import TestResult, TestStatus
from gpuhealth.runtime.text import printable

_REFRESH_SECONDS = 0.5
_LINE_SECONDS = 30.0
_MAX_RATES = 2  # that fit on a line


@contextlib.asynccontextmanager
async def progress_shown(run: Run) -> AsyncIterator[None]:
    """Show the progress of a run until the context ends."""
    out = console(sys.stderr)
    task = asyncio.create_task(_live(run, out) if out.is_terminal else _plain(run, out))
    await asyncio.sleep(0)  # lets the task set its callbacks before the first test starts
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _live(run: Run, out: Console) -> None:
    start = time.monotonic()
    with Live(console=out, auto_refresh=False, transient=True) as live:
        while True:
            live.update(_table(run, time.monotonic() - start), refresh=True)
            await asyncio.sleep(_REFRESH_SECONDS)


def _table(run: Run, seconds: float) -> RenderableType:
    tests = list(run.plan.tests)
    if run.test:
        number, state = tests.index(run.test) + 1, run.test
    else:
        number, state = (len(tests), "done") if run.results else (1, "starting")
    heading = Text.assemble((f"test {number} of {len(tests)}  ", "dim"), (state, "bold"))
    if run.test:
        heading.append(f"  {TESTS[run.test].meaning}")
    heading.append(f"  {_clock(seconds)}", style="dim")
    if run.stopped:
        heading.append("  stopping", style="yellow")
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("device", "GPU", "done", "temp", "power", "clock", "rate", "results"):
        table.add_column(name, no_wrap=True, justify="right" if name in ("temp", "power", "clock") else "left")
    for target in run.plan.targets:
        progress = run.progress.get(target.gpu)
        sample = run.sampler.latest(target.gpu)
        values = sample.values if sample else {}
        table.add_row(
            target.device,
            short_name(target.gpu),
            ProgressBar(total=1.0, completed=progress.fraction if progress else 0.0, width=16),
            _value(values, "temperature_celsius", "°C"),
            _value(values, "power_watts", "W"),
            _value(values, "sm_clock_megahertz", "MHz"),
            _rates(run, target),
            _results(run, target),
        )
    return Group(heading, table)


def _value(values: dict[str, float], name: str, unit: str) -> str:
    return f"{values[name]:.0f} {unit}" if name in values else "-"


def _rates(run: Run, target: Target) -> str:
    progress = run.progress.get(target.gpu)
    rates = [format_figure(*rate) for rate in progress.rates.items() if name_and_unit(rate[0])[1]] if progress else []
    return ", ".join(rates[-_MAX_RATES:])


def _results(run: Run, target: Target) -> Text:
    out = Text()
    for result in run.results:
        if result.gpu == target.gpu and result.status is not TestStatus.SKIPPED:
            out.append(f"{result.test} ", style=RESULT_STYLE[result.status])
    return out


async def _plain(run: Run, out: Console) -> None:
    start = time.monotonic()

    def print_line(text: str, style: str = "") -> None:
        out.print(Text(f"{_clock(time.monotonic() - start)}  {printable(text)}", style=style), soft_wrap=True)

    def on_started(test: str) -> None:
        print_line(
            f"{test}: {TESTS[test].meaning}, {run.plan.tests[test]:.0f} s on {counted(len(run.plan.targets), 'device')}"
        )

    def on_ended(results: Sequence[TestResult]) -> None:
        for result in results:
            if result.status is not TestStatus.PASSED:
                print_line(
                    f"{result.test}: {result.gpu} {result.status}: {result.message}", RESULT_STYLE[result.status]
                )
        passed = sum(result.status is TestStatus.PASSED for result in results)
        if passed:
            print_line(f"{results[0].test}: passed on {counted(passed, 'device')}", RESULT_STYLE[TestStatus.PASSED])

    run.on_test_started, run.on_test_ended = on_started, on_ended
    while True:
        await asyncio.sleep(_LINE_SECONDS)
        for target in run.plan.targets:
            if progress := run.progress.get(target.gpu):
                sample = run.sampler.latest(target.gpu)
                values = sample.values if sample else {}
                parts = [f"{progress.fraction:.0%}", _rates(run, target)]
                parts += (
                    [_value(values, "temperature_celsius", "°C"), _value(values, "power_watts", "W")] if values else []
                )
                print_line(f"{run.test}: {target.gpu} {', '.join(filter(None, parts))}")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02}"
