"""The results of active tests, read from a folder of the test's own."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
from testing.burnin_results import FAILED, STOPPED, result, run

from gpuhealth.model.burnin_run import BurninRun, Span
from gpuhealth.model.missing import Missing, MissingReason, Reading
from gpuhealth.monitors.burnin_results import probe as burnin
from gpuhealth.monitors.burnin_results.probe import MAX_BYTES, MAX_RUNS, BurninProbe
from gpuhealth.monitors.burnin_results.readings import BurninReadings


def leave(folder: Path, *runs: BurninRun) -> None:
    """Leaves the runs' results as files."""
    folder.mkdir(exist_ok=True)
    for each in runs:
        (folder / f"{each.started:%Y%m%dT%H%M%SZ}.json").write_bytes(msgspec.json.encode(each))


def read(probe: BurninProbe) -> BurninReadings:
    """What can be read."""
    reading = asyncio.run(probe.read())
    assert not isinstance(reading, Missing)
    return reading


def test_runs_come_oldest_first_and_new_ones_are_seen(tmp_path: Path) -> None:
    """The folder need not be there; what is added later is read, what is taken away is gone, others are ignored."""
    folder = tmp_path / "burnin"
    probe = BurninProbe(folder)
    assert read(probe) == BurninReadings()
    first, second, third = (run(result(), at=60.0 * number) for number in range(3))
    leave(folder, third, first)
    (folder / "20990101T000000Z.part").write_text("half")
    assert [each.started for each in read(probe).runs] == [first.started, third.started]
    leave(folder, second)
    assert len(read(probe).runs) == 3
    next(folder.glob("*.json")).unlink()
    assert len(read(probe).runs) == 2


def test_unchanged_files_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A round without changes opens no file; a replaced file is read again."""
    leave(tmp_path, run(result()))
    probe, opened, original = BurninProbe(tmp_path), list[str](), BurninProbe._file

    def noted(self: BurninProbe, name: str) -> BurninRun | str:
        opened.append(name)
        return original(self, name)

    monkeypatch.setattr(BurninProbe, "_file", noted)
    assert [len(read(probe).runs) for _ in range(3)] == [1, 1, 1]
    assert len(opened) == 1
    leave(tmp_path, run(result(status=FAILED)))
    assert read(probe).runs[0].status is FAILED


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        msgspec.json.encode(run(result())).replace(b"Z", b""),  # times without a zone
        msgspec.json.encode(run(result())).replace(b"passed", b"maybe"),
        b" " * (MAX_BYTES + 1),
    ],
    ids=["empty", "truncated", "array", "bytes", "deep", "no-zone", "status", "large"],
)
def test_a_damaged_file_is_said_and_hides_no_other(tmp_path: Path, text: bytes) -> None:
    """A damaged file is named with the reason; the other runs are read."""
    leave(tmp_path, run(result()))
    (tmp_path / "bad.json").write_bytes(text)
    readings = read(BurninProbe(tmp_path))
    assert len(readings.runs) == 1
    assert readings.unreadable.startswith("bad.json: ")


def test_bounded(tmp_path: Path) -> None:
    """Of many files the newest are read, and of many damaged ones a few are named."""
    for number in range(MAX_RUNS + 10):
        leave(tmp_path, run(result(), at=60.0 * number))
        path = max(tmp_path.iterdir())
        os.utime(path, (number, number))
    for number in range(5):
        (tmp_path / f"bad-{number}.json").write_text("{")
    readings = read(BurninProbe(tmp_path))
    assert len(readings.runs) == MAX_RUNS - 5
    assert readings.unreadable.endswith("; and 2 more")


def test_only_the_last_word_is_kept_whole(tmp_path: Path) -> None:
    """Of superseded and stopped results only how they ended is kept, and of none the telemetry."""
    full: dict[str, Any] = {
        "figures": {"tflops": 1.0},
        "digests": {"a": "b"},
        "telemetry": {"power_watts": Span(1, 2, 3)},
    }
    runs = [run(result(status=FAILED, **full)), run(result(**full), at=60), run(result(status=STOPPED, **full), at=120)]
    leave(tmp_path, *runs)
    old, last, stopped = (each.results[0] for each in read(BurninProbe(tmp_path)).runs)
    assert (old.figures, old.status, stopped.figures, stopped.status) == ({}, FAILED, {}, STOPPED)
    assert (last.figures, last.digests, last.telemetry) == ({"tflops": 1.0}, {"a": "b"}, {})


def test_what_cannot_be_read_is_not_nothing(tmp_path: Path) -> None:
    """A folder that is none is a reason, and no empty result."""
    (tmp_path / "file").touch()
    reading = asyncio.run(BurninProbe(tmp_path / "file").read())
    assert isinstance(reading, Missing)
    assert "file" in reading.detail


def test_a_disk_that_hangs_holds_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The round goes on without the results and says so, with one thread at most; they come when the disk answers."""
    answers, calls, original = threading.Event(), list[BurninProbe](), BurninProbe._read

    def hanging(self: BurninProbe) -> Reading[BurninReadings]:
        calls.append(self)
        answers.wait(60)
        return original(self)

    monkeypatch.setattr(burnin, "_PATIENCE_SECONDS", 0.01)
    monkeypatch.setattr(BurninProbe, "_read", hanging)
    leave(tmp_path, run(result()))

    async def rounds() -> None:
        probe = BurninProbe(tmp_path)
        for _ in range(3):
            reading = await probe.read()
            assert isinstance(reading, Missing)
            assert reading.reason is MissingReason.TIMEOUT
        assert len(calls) == 1
        answers.set()
        async with asyncio.timeout(60):
            while isinstance(reading := await probe.read(), Missing):
                pass
        assert len(reading.runs) == 1

    asyncio.run(rounds())
