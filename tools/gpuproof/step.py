"""A step of a proof, what it is given, and its outcome."""

from __future__ import annotations

import enum
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

_KILL_SECONDS = 3.0  # after SIGTERM


class Status(enum.StrEnum):
    """Outcome of a step."""

    PROVED = "proved"
    DISPROVED = "disproved"
    NOT_PROVED = "not proved"  # what it needs is not on this machine, or it took too long


class Outcome(msgspec.Struct, frozen=True):
    """The result of a step: one sentence, further lines for people, figures and facts for programs."""

    status: Status
    sentence: str
    lines: tuple[str, ...] = ()
    facts: dict[str, Any] = {}


def proved(sentence: str, *lines: str, **facts: Any) -> Outcome:
    """The claim of the step holds."""
    return Outcome(Status.PROVED, sentence, lines, facts)


def disproved(sentence: str, *lines: str, **facts: Any) -> Outcome:
    """The claim of the step is wrong on this machine."""
    return Outcome(Status.DISPROVED, sentence, lines, facts)


def not_proved(sentence: str, *lines: str, **facts: Any) -> Outcome:
    """The claim can be neither proved nor disproved here."""
    return Outcome(Status.NOT_PROVED, sentence, lines, facts)


class TooLateError(Exception):
    """The step has used its time."""


class Done(msgspec.Struct, frozen=True):
    """A program that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as one JSON value; None where it is none."""
        with suppress(ValueError):
            return json.loads(self.out)
        return None

    @property
    def problem(self) -> str:
        """The last line of standard error, or the exit code."""
        return (self.err.strip().splitlines() or [f"exit code {self.code}"])[-1]


class Context:
    """What a step works with: the folder of results, the devices of burn-ins, its deadline, and programs."""

    def __init__(self, folder: Path, seconds: float, devices: str = "all") -> None:
        self.folder = folder
        self.devices = devices
        self.seconds = seconds
        self._deadline = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds until the deadline. Raises TooLateError when it has passed."""
        if (left := self._deadline - time.monotonic()) <= 0:
            raise TooLateError(f"the step has used its {self.seconds:.0f} s")
        return left

    def gpuhealth(self, *words: str, **environment: str) -> Done:
        """Run `gpuhealth WORDS…`. Raises TooLateError."""
        return self.run([sys.executable, "-m", "gpuhealth", *words], environment)

    def start(self, words: Sequence[str], **environment: str) -> subprocess.Popen[bytes]:
        """Start `gpuhealth WORDS…` in a session of its own; its output goes to a file of its name."""
        with (self.folder / f"{words[0]}.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "gpuhealth", *words],
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def run(self, words: Sequence[str], environment: Mapping[str, str] | None = None) -> Done:
        """Run a program to its end, with its children. Raises TooLateError, and OSError where it cannot be started."""
        process = subprocess.Popen(
            words,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            out, err = process.communicate(timeout=self.left)
        except subprocess.TimeoutExpired:
            raise TooLateError(f"{' '.join(words[-3:])} did not end within {self.seconds:.0f} s") from None
        finally:
            end(process)
        return Done(process.returncode, out.decode(errors="replace"), err.decode(errors="replace"))

    def save(self, name: str, text: str) -> None:
        """Write a file into the folder of results."""
        (self.folder / name).write_text(text, encoding="utf-8")


def end(process: subprocess.Popen[bytes]) -> None:
    """End a program and all its children."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_KILL_SECONDS)
            if number == signal.SIGTERM:
                continue
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


class Step(msgspec.Struct, frozen=True):
    """A part of the proof: its name, its share of the time, in seconds of nine minutes, and its function."""

    name: str
    seconds: float
    run: Callable[[Context], Outcome]
