"""How a burn-in is followed: a table that lives on a terminal, plain lines elsewhere. Both on standard error."""

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

from gpuhealth.burnin.figures import in_words, quantity
from gpuhealth.burnin.registry import TESTS
from gpuhealth.burnin.run import Run
from gpuhealth.burnin.targets import Target
from gpuhealth.cli.output import console, printable, short
from gpuhealth.cli.wording import RESULT_STYLE, counted
from gpuhealth.model.burnin_run import TestResult, TestStatus

_REFRESH_SECONDS = 0.5
_LINE_SECONDS = 30.0
_RATES = 2  # that a line has room for


@contextlib.asynccontextmanager
async def shown(run: Run) -> AsyncIterator[None]:
    """Shows the run while the context lasts."""
    out = console(sys.stderr)
    task = asyncio.create_task(_live(run, out) if out.is_terminal else _plain(run, out))
    await asyncio.sleep(0)  # it hears of the first test, too
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _live(run: Run, out: Console) -> None:
    began = time.monotonic()
    with Live(console=out, auto_refresh=False, transient=True) as live:
        while True:
            live.update(_table(run, time.monotonic() - began), refresh=True)
            await asyncio.sleep(_REFRESH_SECONDS)


def _table(run: Run, seconds: float) -> RenderableType:
    tests = list(run.plan.tests)
    number = tests.index(run.test) + 1 if run.test else len(tests) if run.results else 1
    word = run.test or ("done" if run.results else "begins")
    head = Text.assemble((f"test {number} of {len(tests)}  ", "dim"), (word, "bold"))
    if run.test:
        head.append(f"  {TESTS[run.test].meaning}")
    head.append(f"  {_clock(seconds)}", style="dim")
    if run.stopped:
        head.append("  stopping", style="yellow")
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("device", "GPU", "done", "temp", "power", "clock", "rate", "so far"):
        table.add_column(name, no_wrap=True, justify="right" if name in ("temp", "power", "clock") else "left")
    for target in run.plan.targets:
        progress = run.progress.get(target.gpu)
        sample = run.sampler.latest(target.gpu)
        values = sample.values if sample else {}
        table.add_row(
            target.device,
            short(target.gpu),
            ProgressBar(total=1.0, completed=progress.done if progress else 0.0, width=16),
            _value(values, "temperature_celsius", "°C"),
            _value(values, "power_watts", "W"),
            _value(values, "sm_clock_megahertz", "MHz"),
            _rates(run, target),
            _so_far(run, target),
        )
    return Group(head, table)


def _value(values: dict[str, float], name: str, unit: str) -> str:
    return f"{values[name]:.0f} {unit}" if name in values else "-"


def _rates(run: Run, target: Target) -> str:
    progress = run.progress.get(target.gpu)
    rates = [in_words(*rate) for rate in progress.rates.items() if quantity(rate[0])[1]] if progress else []
    return ", ".join(rates[-_RATES:])


def _so_far(run: Run, target: Target) -> Text:
    out = Text()
    for result in run.results:
        if result.gpu == target.gpu and result.status is not TestStatus.SKIPPED:
            out.append(f"{result.test} ", style=RESULT_STYLE[result.status])
    return out


async def _plain(run: Run, out: Console) -> None:
    began = time.monotonic()

    def say(words: str, style: str = "") -> None:
        out.print(Text(f"{_clock(time.monotonic() - began)}  {printable(words)}", style=style), soft_wrap=True)

    def begins(test: str) -> None:
        say(
            f"{test}: {TESTS[test].meaning}, {run.plan.tests[test]:.0f} s on {counted(len(run.plan.targets), 'device')}"
        )

    def ended(results: Sequence[TestResult]) -> None:
        for result in results:
            if result.status is not TestStatus.PASSED:
                say(f"{result.test}: {result.gpu} {result.status}: {result.message}", RESULT_STYLE[result.status])
        passed = sum(result.status is TestStatus.PASSED for result in results)
        if passed:
            say(f"{results[0].test}: passed on {counted(passed, 'device')}", RESULT_STYLE[TestStatus.PASSED])

    run.on_test, run.on_results = begins, ended
    while True:
        await asyncio.sleep(_LINE_SECONDS)
        for target in run.plan.targets:
            if progress := run.progress.get(target.gpu):
                sample = run.sampler.latest(target.gpu)
                values = sample.values if sample else {}
                parts = [f"{progress.done:.0%}", _rates(run, target)]
                parts += (
                    [_value(values, "temperature_celsius", "°C"), _value(values, "power_watts", "W")] if values else []
                )
                say(f"{run.test}: {target.gpu} {', '.join(filter(None, parts))}")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02}"
