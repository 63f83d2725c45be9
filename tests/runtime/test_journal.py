"""The journal: what is written is found again, it stays bounded, and damage costs no more than the damaged file."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gpuhealth.agent.state import open_journal
from gpuhealth.runtime import settings as config
from gpuhealth.runtime.journal import Entry, Journal, JournalError, JournalWriter

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
DAY = 86400.0


def entry(age_seconds: float = 0.0, code: str = "xid.79", message: str = "lost") -> Entry:
    """An entry of that age."""
    return Entry(NOW - timedelta(seconds=age_seconds), "raised", code, "GPU-1", message, "critical")


def journal(path: Path, keep: float = 14 * DAY, most: int = 100) -> Journal:
    """A journal in the folder."""
    return Journal(path / "journal.sqlite", keep, most)


def test_remembers_over_a_restart(tmp_path: Path) -> None:
    """Entries and memory written by one process are there for the next."""
    first = journal(tmp_path)
    first.write([entry()], {"kmsg": b"17"})
    first.close()
    second = journal(tmp_path)
    assert list(second.entries()) == [entry()]
    assert second.recall("kmsg") == b"17"
    assert second.recall("other") is None
    second.close()


def test_entries_are_chosen_by_time_code_and_number(tmp_path: Path) -> None:
    """`since`, the pattern of codes and the limit each choose, the newest are kept and come oldest first."""
    kept = journal(tmp_path)
    kept.write([entry(30, "xid.79"), entry(20, "xid.31"), entry(10, "ecc.uncorrectable"), entry(0, "xid.48")])
    assert [e.code for e in kept.entries(code="xid.*")] == ["xid.79", "xid.31", "xid.48"]
    assert [e.code for e in kept.entries(since=NOW - timedelta(seconds=20))] == [
        "xid.31",
        "ecc.uncorrectable",
        "xid.48",
    ]
    assert [e.code for e in kept.entries(limit=2)] == ["ecc.uncorrectable", "xid.48"]
    kept.close()


def test_pruning_bounds_age_and_number(tmp_path: Path) -> None:
    """What is older than the time to keep goes, and of the rest the oldest beyond the number."""
    kept = journal(tmp_path, keep=DAY, most=100)
    kept.write([entry(2 * DAY, "old")])
    kept.write([entry(0, f"xid.{number}") for number in range(150)])
    kept.prune(NOW)
    assert [e.code for e in kept.entries()] == [f"xid.{number}" for number in range(50, 150)]
    kept.close()


def test_a_failed_write_changes_nothing(tmp_path: Path) -> None:
    """Entries and memory are one transaction: if the memory cannot be written, neither is the entry."""
    kept = journal(tmp_path)
    with pytest.raises(JournalError, match="cannot write journal"):
        kept.write([entry()], {"kmsg": object()})  # type: ignore[dict-item]  # SQLite refuses it
    assert list(kept.entries()) == []
    kept.write([entry()])
    assert len(list(kept.entries())) == 1
    kept.close()


def test_a_damaged_file_is_set_aside(tmp_path: Path) -> None:
    """A file that is no database is kept under another name, and a new journal begins."""
    (tmp_path / "journal.sqlite").write_bytes(b"not a database" * 100)
    kept = journal(tmp_path)
    assert kept.set_aside
    assert kept.set_aside.read_bytes().startswith(b"not a database")
    kept.write([entry()])
    assert len(list(kept.entries())) == 1
    kept.close()


def test_a_damaged_file_that_cannot_be_moved(tmp_path: Path) -> None:
    """Where the damaged file cannot be set aside there is no journal, and one sentence says so."""
    path = tmp_path / f"{'x' * 240}.sqlite"  # the name that it would get is longer than a name may be
    path.write_bytes(b"no journal" * 1000)
    with pytest.raises(JournalError, match=r"is no journal, and cannot be set aside: .*File name too long"):
        Journal(path, 1e9, 100)


def test_reading_leaves_no_trace(tmp_path: Path) -> None:
    """A reader neither makes a journal nor repairs one."""
    with pytest.raises(JournalError, match="cannot open"):
        Journal(tmp_path / "none.sqlite", DAY, 100, read_only=True)
    assert not (tmp_path / "none.sqlite").exists()
    damaged = tmp_path / "damaged.sqlite"
    damaged.write_bytes(b"not a database" * 100)
    with pytest.raises(JournalError, match="is no journal"):
        Journal(damaged, DAY, 100, read_only=True)
    assert damaged.exists()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True, check=False).returncode:
        pytest.skip("mounting needs CAP_SYS_ADMIN")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_disk_that_has_become_read_only(tmp_path: Path, disk: Path) -> None:
    """What was remembered is there for the next agent and for `gpuhealth events`; what cannot be written is told."""
    with closing(journal(tmp_path)) as open_to_the_end:
        open_to_the_end.write([entry()], {"findings": b"latched"})
        for name in ("journal.sqlite", "journal.sqlite-wal"):  # the last words are in the second alone
            shutil.copy(tmp_path / name, disk)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    again = open_journal(config.Journal(path=disk / "journal.sqlite"))
    assert again is not None
    with closing(again):
        assert again.recall("findings") == b"latched"
        assert len(list(again.entries())) == 1
        with pytest.raises(JournalError, match="cannot write journal"):
            again.write((), {"findings": b"other"})


def test_a_place_that_cannot_be_made(tmp_path: Path) -> None:
    """Where the folder cannot be made, the error is one sentence with the path."""
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match=r"cannot make journal .*file"):
        Journal(tmp_path / "file" / "journal.sqlite", DAY, 100)


def test_the_writer_tries_again_what_the_disk_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries that cannot be written are kept in order and written when the disk takes them again."""
    monkeypatch.setattr("gpuhealth.runtime.journal._RETRY_SECONDS", 0.01)
    kept = journal(tmp_path)
    full = True

    def write(entries: list[Entry], memory: dict[str, bytes]) -> None:
        if full:
            raise JournalError("database or disk is full")
        Journal.write(kept, entries, memory)

    monkeypatch.setattr(kept, "write", write)

    async def run() -> None:
        nonlocal full
        writer = JournalWriter(kept, lambda: {"kmsg": b"1"}, lambda: NOW)
        writer.note(entry(code="first"))
        await writer.run_once()
        writer.note(entry(code="second"))
        await writer.run_once()
        assert writer.errors == 2
        full = False
        await writer.run_once()
        assert [e.code for e in kept.entries()] == ["first", "second"]
        assert kept.recall("kmsg") == b"1"
        writer.close()

    asyncio.run(run())


@pytest.mark.parametrize("refused", [False, True])
def test_closed_while_the_thread_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: bool) -> None:
    """A stop in the middle of a write loses nothing and writes nothing twice, whether the disk takes it or not."""
    kept = journal(tmp_path)
    begun, may_go_on = threading.Event(), threading.Event()

    def write(entries: list[Entry], memory: dict[str, bytes]) -> None:
        if threading.current_thread() is not threading.main_thread():
            begun.set()
            assert may_go_on.wait(30)
            if refused:
                raise JournalError("database or disk is full")
        Journal.write(kept, entries, memory)

    monkeypatch.setattr(kept, "write", write)

    async def run() -> None:
        writer = JournalWriter(kept, lambda: {"kmsg": b"2"}, lambda: NOW)
        writer.note(entry(code="first"))
        writing = asyncio.create_task(writer.run_once())
        while not begun.is_set():
            await asyncio.sleep(0.01)
        writer.note(entry(code="second"))
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        threading.Timer(0.1, may_go_on.set).start()
        writer.close()

    asyncio.run(run())
    monkeypatch.undo()
    again = journal(tmp_path)
    assert [e.code for e in again.entries()] == ["first", "second"]
    assert again.recall("kmsg") == b"2"
    again.close()


def test_a_clock_that_is_far_ahead_does_not_empty_the_journal(tmp_path: Path) -> None:
    """The newest entries stay, however old they look; of the others those that are too old go."""
    kept = journal(tmp_path, keep=DAY, most=5000)
    kept.write([entry(0, f"xid.{number}") for number in range(1200)])
    kept.prune(NOW + timedelta(days=365))
    assert [e.code for e in kept.entries(limit=5000)] == [f"xid.{number}" for number in range(200, 1200)]
    kept.close()
