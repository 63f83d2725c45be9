"""Reads burn-in results from the folder to which every run writes one file."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import msgspec

from gpuhealth.model.burnin_run import BurninRun, TestResult
from gpuhealth.model.decoding import JSON_ERRORS
from gpuhealth.model.missing import Missing, MissingReason, Reading
from gpuhealth.monitors.burnin_results.readings import BurninReadings
from gpuhealth.runtime.files import file_missing, open_file

MAX_RUNS = 64
"""Maximum number of files that are read, newest first."""
MAX_BYTES = 4 << 20  # of one file; a run of sixteen GPUs has some 100 kB
_PATIENCE_SECONDS = 2.0
_NAMED = 3  # unreadable files that are listed by name
_EVIDENCE_LIMIT = 2000
_MISCOMPARES = 4

_Stamp = tuple[int, int, int]
_Name = tuple[str, _Stamp]


class BurninProbe:
    """Reads changed files in a thread: the disk may be slow or gone, and must not delay the round."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[_Name, BurninRun | str] = {}
        self._readings = BurninReadings()
        self._reading: asyncio.Task[Reading[BurninReadings]] | None = None

    async def read(self) -> Reading[BurninReadings]:
        """All runs, oldest first. Unreadable files are listed; the others still count."""
        if self._reading is None:
            self._reading = asyncio.create_task(asyncio.to_thread(self._read))
        await asyncio.wait([self._reading], timeout=_PATIENCE_SECONDS)
        if not self._reading.done():
            return Missing(MissingReason.TIMEOUT, f"{self._folder} has not been read yet")
        reading, self._reading = self._reading, None
        return reading.result()

    def configure(self, _settings: object) -> None:
        """Does nothing: the folder is fixed at the start."""

    def close(self) -> None:
        """Does nothing: a hung thread ends with the process."""

    def _read(self) -> Reading[BurninReadings]:
        try:
            names = sorted(self._names(), key=lambda name: name[1])[-MAX_RUNS:]
        except FileNotFoundError:
            names = []  # no burn-in has been run here
        except OSError as error:
            return file_missing(error)
        if list(self._files) != names:
            self._files = {name: self._files.get(name) or self._file(name[0]) for name in names}
            self._readings = _readings(self._files)
        return self._readings

    def _names(self) -> list[_Name]:
        found = []
        for path in self._folder.iterdir():
            if path.suffix == ".json":
                with contextlib.suppress(FileNotFoundError):  # another process deletes old files
                    status = path.stat()
                    found.append((path.name, (status.st_ctime_ns, status.st_size, status.st_ino)))
        return found

    def _file(self, name: str) -> BurninRun | str:
        """The run, or a sentence about the fault of the file."""
        try:
            with open_file(self._folder / name) as file:
                text = file.read(MAX_BYTES + 1)
            if len(text) > MAX_BYTES:
                return f"{name}: larger than {MAX_BYTES} bytes"
            return msgspec.json.decode(text, type=BurninRun)
        except OSError as error:
            return f"{name}: {error.strerror}"
        except JSON_ERRORS as error:
            return f"{name}: {error}"


def _readings(files: dict[_Name, BurninRun | str]) -> BurninReadings:
    runs = sorted((run for run in files.values() if isinstance(run, BurninRun)), key=lambda run: run.started)
    wrong = [why for why in files.values() if isinstance(why, str)]
    more = f"; and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
    return BurninReadings(_slim(runs), "; ".join(wrong[:_NAMED]) + more)


def _slim(runs: list[BurninRun]) -> tuple[BurninRun, ...]:
    """Keeps only the last conclusive result of each test and GPU complete, and no curves: the runs stay in memory."""
    seen: set[tuple[str, str]] = set()

    def kept(result: TestResult) -> TestResult:
        key = (result.test, result.gpu)
        if key in seen or not result.status.is_conclusive:
            return TestResult(*key, result.status, "", result.started, result.seconds)
        seen.add(key)
        evidence, miscompares = result.evidence[-_EVIDENCE_LIMIT:], result.miscompares[:_MISCOMPARES]
        return msgspec.structs.replace(result, telemetry={}, evidence=evidence, miscompares=miscompares)

    slim = [msgspec.structs.replace(run, results=tuple(map(kept, run.results))) for run in reversed(runs)]
    return tuple(reversed(slim))
