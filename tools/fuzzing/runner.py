"""Runs one target in this process: makes cases, runs each within a time limit, and keeps what fails."""

from __future__ import annotations

import contextlib
import faulthandler
import hashlib
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import msgspec

from fuzzing.mutate import smaller
from fuzzing.target import FuzzTarget, quiet_log

LIMIT_SECONDS = 30.0
"""For one case, by the clock on the wall. A case that takes longer is a hang; on a busy machine none comes near."""
_GIVE_UP_SECONDS = 120.0  # in which even C code must have returned
_MOST_FAILURES = 20  # of one kind, each kept in a file


class HangError(BaseException):
    """A case did not end within the limit. No Exception, so that no handler of the tested code takes it."""


class Failure(msgspec.Struct, frozen=True):
    """A case for which a rule does not hold."""

    target: str
    error: str  # the last line of the traceback
    place: str  # the innermost line of gpuhealth or of the target
    traceback: str
    case: bytes


class Result(msgspec.Struct):
    """Figures of a run of one target."""

    target: str
    inputs: int = 0
    cases: int = 0
    seconds: float = 0.0
    slowest_seconds: float = 0.0  # of one case
    failures: list[Failure] = []
    failed_cases: int = 0


@contextlib.contextmanager
def time_limit() -> Iterator[Callable[[float], None]]:
    """Yields a function that starts the limit of a case, or stops it with 0; an earlier timer goes on afterwards."""

    def expired(_: int, __: FrameType | None) -> None:
        raise HangError(f"no end within {LIMIT_SECONDS:g} s")

    before = signal.signal(signal.SIGALRM, expired)
    left = signal.setitimer(signal.ITIMER_REAL, 0.0)
    try:
        yield lambda seconds: _set_timer(seconds)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
        if left[0]:
            signal.setitimer(signal.ITIMER_REAL, *left)


def _set_timer(seconds: float) -> None:
    signal.setitimer(signal.ITIMER_REAL, seconds)


def run_case(name: str, target: FuzzTarget, case: bytes, set_timer: Callable[[float], None]) -> int | Failure:
    """The number of inputs in the case, or its failure."""
    set_timer(LIMIT_SECONDS)
    try:
        return target.check(case)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - every error is a finding, SystemExit too
        set_timer(0.0)
        return _failure(name, error, case)
    finally:
        set_timer(0.0)


def _failure(name: str, error: BaseException, case: bytes) -> Failure:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [
        frame for frame in frames if "gpuhealth/" in frame.filename or "fuzzing/targets" in frame.filename
    ] or frames
    last = ours[-1]
    where = f"{Path(last.filename).name}:{last.lineno}"
    text = "".join(traceback.format_exception(error))
    return Failure(name, f"{type(error).__name__}: {error}"[:500], where, text[-4000:], case)


def run(
    name: str,
    target: FuzzTarget,
    *,
    seed: int,
    inputs: int = 0,
    seconds: float = 0.0,
    first: int = 0,
    step: int = 1,
    on_case: Callable[[int], None] = lambda _: None,
    minimise: bool = True,
    until_failure: bool = False,
) -> Result:
    """Runs cases until so many inputs or seconds are used up.

    Case n is made from `seed` and n alone. `first` and `step` share the cases among processes; `on_case` is called with
    n before each.
    """
    result = Result(name, failures=[])
    kinds: set[tuple[str, str]] = set()
    began = time.monotonic()
    number = first
    with quiet_log(), time_limit() as set_timer:
        while (not inputs or result.inputs < inputs) and (not seconds or time.monotonic() - began < seconds):
            on_case(number)
            case = case_of(target, seed, number)
            started = time.monotonic()
            done = run_case(name, target, case, set_timer)
            result.slowest_seconds = max(result.slowest_seconds, time.monotonic() - started)
            result.cases += 1
            number += step
            if isinstance(done, int):
                result.inputs += done
                continue
            result.inputs += 1
            result.failed_cases += 1
            kind = (done.place, done.error.partition(":")[0])
            if kind not in kinds and len(kinds) < _MOST_FAILURES:
                kinds.add(kind)
                result.failures.append(_smallest(name, target, done, set_timer) if minimise else done)
            if until_failure:
                break
    result.seconds = time.monotonic() - began
    return result


def case_of(target: FuzzTarget, seed: int, number: int) -> bytes:
    """Case `number` of a run with this seed."""
    return target.make(random.Random(seed * 1_000_003 + number))


def _smallest(name: str, target: FuzzTarget, failure: Failure, set_timer: Callable[[float], None]) -> Failure:
    """The same failure with a smaller case, where leaving parts out is enough for that."""
    if len(failure.case) > 1 << 16 or failure.error.startswith("HangError"):
        return failure
    found = failure

    def fails(case: bytes) -> bool:
        nonlocal found
        done = run_case(name, target, case, set_timer)
        if isinstance(done, int) or done.place != failure.place or done.error[:20] != failure.error[:20]:
            return False
        found = done
        return True

    smaller(failure.case, fails)
    return found


def saved(failure: Failure, folder: Path) -> Path:
    """Writes the case of a failure to a file, and its traceback to another one of the same name with .txt."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{failure.target}-{hashlib.sha256(failure.case).hexdigest()[:12]}"
    path.write_bytes(failure.case)
    path.with_suffix(".txt").write_text(failure.traceback, errors="backslashreplace")
    return path


@contextlib.contextmanager
def watchdog() -> Iterator[Callable[[], None]]:
    """Ends the process with a traceback when the yielded function is not called for too long: C code may hang."""

    def alive() -> None:
        faulthandler.dump_traceback_later(_GIVE_UP_SECONDS, exit=True, file=sys.__stderr__ or sys.stderr)

    alive()
    try:
        yield alive
    finally:
        faulthandler.cancel_dump_traceback_later()
