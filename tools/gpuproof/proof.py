"""Runs the steps one after another, and writes results.json and summary.txt after each of them."""

from __future__ import annotations

import signal
import sys
import time
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import msgspec

from gpuproof.step import Context, Outcome, Status, Step, TooLateError, not_proved


class StepResult(msgspec.Struct, frozen=True, kw_only=True):
    """A step that has ended."""

    step: str
    status: str
    sentence: str
    seconds: float
    lines: tuple[str, ...] = ()
    facts: dict[str, object] = {}


class Results(msgspec.Struct, kw_only=True):
    """The content of results.json."""

    verdict: str
    exit_code: int
    started: str
    seconds: float
    steps: list[StepResult]
    not_run: list[str]


def run(steps: Sequence[Step], folder: Path, seconds: float, devices: str) -> int:
    """Run the steps within so many seconds; return the exit code. An interrupt ends the proof with what there is."""
    began, started = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    done: list[StepResult] = []
    signal.signal(signal.SIGTERM, _interrupt)
    interrupted = False
    try:
        for number, step in enumerate(steps):
            left = seconds - (time.monotonic() - began)
            share = left * step.seconds / sum(each.seconds for each in steps[number:])  # with what others left over
            print(f"{step.name} … ", end="", file=sys.stderr, flush=True)
            done.append(_run_step(step, Context(folder, share, devices)))
            print(f"{done[-1].status}: {done[-1].sentence}", file=sys.stderr, flush=True)
            _write(folder, _results(steps, done, started, time.monotonic() - began))
    except KeyboardInterrupt:
        interrupted = True
        print("interrupted", file=sys.stderr)
    results = _results(steps, done, started, time.monotonic() - began)
    if interrupted:
        results.verdict = f"interrupted; {results.verdict}"
        results.exit_code = max(results.exit_code, 1)
    _write(folder, results)
    print(summary(results), end="")
    print(f"\nresults: {folder}")
    return results.exit_code


def _interrupt(_number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _run_step(step: Step, context: Context) -> StepResult:
    began = time.monotonic()
    try:
        outcome = step.run(context)
    except TooLateError as error:
        outcome = not_proved(f"not within its time: {error}")
    except Exception as error:  # noqa: BLE001 - a step fails alone: the others must still run
        trace = traceback.format_exc()
        context.save(f"{step.name}.traceback.txt", trace)
        outcome = not_proved(f"the step itself failed: {type(error).__name__}: {error}")
    return _result(step, outcome, time.monotonic() - began)


def _result(step: Step, outcome: Outcome, seconds: float) -> StepResult:
    return StepResult(
        step=step.name,
        status=outcome.status,
        sentence=outcome.sentence,
        seconds=round(seconds, 1),
        lines=outcome.lines,
        facts=outcome.facts,
    )


def _results(steps: Sequence[Step], done: list[StepResult], started: str, seconds: float) -> Results:
    count = {status: sum(result.status == status for result in done) for status in Status}
    missing = [step.name for step in steps[len(done) :]]
    if count[Status.DISPROVED]:
        code, verdict = 2, f"{count[Status.DISPROVED]} of {len(steps)} steps disproved"
    elif not any(result.status == Status.PROVED for result in done if result.step != "environment"):
        code, verdict = 3, "no proof possible on this machine"
    elif count[Status.NOT_PROVED] or missing:
        code, verdict = 1, f"{count[Status.PROVED]} of {len(steps)} steps proved, none disproved"
    else:
        code, verdict = 0, f"all {len(steps)} steps proved"
    return Results(
        verdict=verdict, exit_code=code, started=started, seconds=round(seconds, 1), steps=list(done), not_run=missing
    )


def summary(results: Results) -> str:
    """The results for people, the verdict first."""
    lines = [f"gpu-proof: {results.verdict}", ""]
    for result in results.steps:
        lines.append(f"{result.step:12} {result.status:10} {result.sentence} ({result.seconds:.0f} s)")
        lines += [f"{'':12} {line}" for line in result.lines]
    lines += [f"{name:12} not run" for name in results.not_run]
    return "\n".join(lines) + "\n"


def _write(folder: Path, results: Results) -> None:
    for name, text in (
        ("results.json", msgspec.json.format(msgspec.json.encode(results)).decode() + "\n"),
        ("summary.txt", summary(results)),
    ):
        part = folder / f".{name}"
        part.write_text(text, encoding="utf-8")
        part.replace(folder / name)
