"""The journal: what is written is found again, it stays bounded, and damage costs no more than the damaged file.

A journal of schema version 1 is upgraded: its entries stay, and what that version stored for its next start does not.
"""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gpuhealth.agent.state import AgentState, open_journal, restore
from gpuhealth.model.component import NODE, Component, Kind, gpu
from gpuhealth.runtime import settings as config
from gpuhealth.runtime.clock import SteadyClock
from gpuhealth.runtime.journal import Entry, Journal, JournalError
from gpuhealth.runtime.journal_writer import JournalWriter, RepeatFilter

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
DAY = 86400.0


def entry(age_seconds: float = 0.0, code: str = "xid.79", message: str = "lost") -> Entry:
    """An entry of that age."""
    return Entry(
        time=NOW - timedelta(seconds=age_seconds),
        kind="raised",
        code=code,
        component=gpu("GPU-1"),
        message=message,
        severity="critical",
    )


def journal(path: Path, keep: float = 14 * DAY, most: int = 100) -> Journal:
    """A journal in the folder."""
    return Journal(path / "journal.sqlite", keep, most)


def test_remembers_over_a_restart(tmp_path: Path) -> None:
    """Entries and state written by one process are there for the next."""
    first = journal(tmp_path)
    first.write([entry()], {"kmsg": b"17"})
    first.close()
    second = journal(tmp_path)
    assert list(second.entries()) == [entry()]
    assert second.stored("kmsg") == b"17"
    assert second.stored("other") is None
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
    """Entries and state are one transaction: if the state cannot be written, neither is the entry."""
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
    """Stored state stays readable on a read-only disk, and a failed write is reported."""
    with closing(journal(tmp_path)) as open_to_the_end:
        open_to_the_end.write([entry()], {"findings": b"latched"})
        for name in ("journal.sqlite", "journal.sqlite-wal"):  # the last words are in the second alone
            shutil.copy(tmp_path / name, disk)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    again = open_journal(config.Journal(path=disk / "journal.sqlite"))
    assert again is not None
    with closing(again):
        assert again.stored("findings") == b"latched"
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
    monkeypatch.setattr("gpuhealth.runtime.journal_writer._RETRY_SECONDS", 0.01)
    full, really_write = True, Journal.write

    def write(kept: Journal, entries: list[Entry], state: dict[str, bytes]) -> None:
        if full:
            raise JournalError("database or disk is full")
        really_write(kept, entries, state)

    monkeypatch.setattr(Journal, "write", write)

    async def run() -> None:
        nonlocal full
        writer = JournalWriter(journal(tmp_path), lambda: {"kmsg": b"1"}, lambda: NOW, lambda: journal(tmp_path))
        writer.append(entry(code="first"))
        await writer.run_once()
        writer.append(entry(code="second"))
        await writer.run_once()
        assert writer.errors == 2
        full = False
        await writer.run_once()
        with closing(journal(tmp_path)) as reader:
            assert [e.code for e in reader.entries()] == ["first", "second"]
            assert reader.stored("kmsg") == b"1"
        writer.close()

    with capture_logs() as logs:
        asyncio.run(run())
    assert [line["event"] for line in logs] == ["journal write failed", "journal written again"]


@pytest.mark.parametrize("refused", [False, True])
def test_closed_while_the_thread_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: bool) -> None:
    """A stop in the middle of a write loses nothing and writes nothing twice, whether the disk takes it or not."""
    begun, may_go_on, really_write = threading.Event(), threading.Event(), Journal.write

    def write(kept: Journal, entries: list[Entry], state: dict[str, bytes]) -> None:
        if threading.current_thread() is not threading.main_thread():
            begun.set()
            assert may_go_on.wait(30)
            if refused:
                raise JournalError("database or disk is full")
        really_write(kept, entries, state)

    monkeypatch.setattr(Journal, "write", write)

    async def run() -> None:
        writer = JournalWriter(journal(tmp_path), lambda: {"kmsg": b"2"}, lambda: NOW, lambda: journal(tmp_path))
        writer.append(entry(code="first"))
        writing = asyncio.create_task(writer.run_once())
        while not begun.is_set():
            await asyncio.sleep(0.01)
        writer.append(entry(code="second"))
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        threading.Timer(0.1, may_go_on.set).start()
        writer.close()

    asyncio.run(run())
    monkeypatch.undo()
    again = journal(tmp_path)
    assert [e.code for e in again.entries()] == ["first", "second"]
    assert again.stored("kmsg") == b"2"
    again.close()


def test_a_clock_that_is_far_ahead_does_not_empty_the_journal(tmp_path: Path) -> None:
    """The newest entries stay, however old they look; of the others those that are too old go."""
    kept = journal(tmp_path, keep=DAY, most=5000)
    kept.write([entry(0, f"xid.{number}") for number in range(1200)])
    kept.prune(NOW + timedelta(days=365))
    assert [e.code for e in kept.entries(limit=5000)] == [f"xid.{number}" for number in range(200, 1200)]
    kept.close()


VERSION_1 = """
CREATE TABLE entries (
    id INTEGER PRIMARY KEY,
    time REAL NOT NULL,
    kind TEXT NOT NULL,
    code TEXT NOT NULL,
    component TEXT NOT NULL,
    severity TEXT NOT NULL,
    message TEXT NOT NULL,
    detail TEXT NOT NULL
);
CREATE INDEX entries_by_time ON entries (time);
CREATE TABLE memory (key TEXT PRIMARY KEY, value BLOB NOT NULL);
PRAGMA user_version=1;
"""
OLD_COMPONENTS: dict[str | bytes, Component] = {
    "node": NODE,
    "GPU-1": gpu("GPU-1"),
    "MIG-2": Component(Kind.MIG, "MIG-2"),
    "0000:3b:00": Component(Kind.PCI_DEVICE, "0000:3b:00"),
    "0000:3b:00.0": Component(Kind.PCI_DEVICE, "0000:3b:00.0"),
    "ens1f0": Component(Kind.NIC, "ens1f0"),
    'a"b\\c\n': Component(Kind.NIC, 'a"b\\c\n'),
    b"GPU-3": gpu("GPU-3"),  # a spoiled value, which a column of text may have
}
"""Components as version 1 wrote them, and what they are now."""


def old_journal(path: Path, schema: str = VERSION_1) -> Path:
    """A journal of version 1 in the folder, with an entry for each component and stored state."""
    file = path / "journal.sqlite"
    with closing(sqlite3.connect(file, isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.executescript(schema)
        database.executemany(
            "INSERT INTO entries (time, kind, code, component, severity, message, detail)"
            " VALUES (?, 'raised', 'xid.79', ?, 'critical', 'lost', '{}')",
            [(NOW.timestamp(), component) for component in OLD_COMPONENTS],
        )
        database.executemany(
            "INSERT INTO memory VALUES (?, ?)",
            [("findings", b'{"tracked":[]}'), ("history", b"{}"), ("kmsg", b'{"boot_id":"b","sequence":17}')],
        )
    return file


def opened(file: Path) -> tuple[Journal | None, list[str]]:
    """The journal as an agent opens it, and the lines that this logs."""
    with capture_logs() as logged:
        kept = open_journal(config.Journal(path=file))
    return kept, [line["event"] for line in logged]


def test_a_journal_of_version_1_is_upgraded(tmp_path: Path) -> None:
    """Its entries are read with their components, what it stored is gone, one line says so, and the next start none."""
    file = old_journal(tmp_path)
    kept, logged = opened(file)
    assert kept is not None
    assert logged == ["journal upgraded: stored findings discarded"]
    assert kept.set_aside is None
    assert [e.component for e in kept.entries()] == list(OLD_COMPONENTS.values())
    assert {(e.time, e.kind, e.code, e.severity, e.message, e.detail) for e in kept.entries()} == {
        (NOW, "raised", "xid.79", "critical", "lost", "{}")
    }
    assert [kept.stored(key) for key in ("findings", "checks", "history", "kmsg")] == [None] * 4
    kept.write([entry()], {"findings": b"new"})
    kept.close()
    again, logged = opened(file)
    assert again is not None
    assert logged == []
    assert [e.component for e in again.entries()] == [*OLD_COMPONENTS.values(), gpu("GPU-1")]
    assert again.stored("findings") == b"new"
    again.close()


def test_an_agent_starts_afresh_from_a_journal_of_version_1(tmp_path: Path) -> None:
    """Nothing of the old state is taken for the new one, and nothing of it is an error."""
    kept, _ = opened(old_journal(tmp_path))
    assert kept is not None
    with capture_logs() as logged, closing(kept):
        assert restore(kept, SteadyClock(), "boot") == AgentState()
    assert [line["log_level"] for line in logged] == ["info"]


def test_an_update_that_was_taken_back_and_made_again(tmp_path: Path) -> None:
    """Entries of both versions are read, and what this version stored before the other one ran counts no more."""
    with closing(journal(tmp_path)) as first:
        first.write([entry()], {"findings": b"outdated", "kmsg": b"1"})
    with closing(sqlite3.connect(first.path, isolation_level=None)) as database:
        older = VERSION_1.replace("CREATE TABLE", "CREATE TABLE IF NOT EXISTS").replace("INDEX", "INDEX IF NOT EXISTS")
        database.executescript(older)
        database.execute("INSERT INTO entries VALUES (NULL, 1.0, 'raised', 'xid.79', 'GPU-2', 'critical', 'lost', '')")
    kept, logged = opened(first.path)
    assert kept is not None
    assert logged == ["journal upgraded: stored findings discarded"]
    assert [e.component for e in kept.entries()] == [gpu("GPU-1"), gpu("GPU-2")]
    assert kept.stored("findings") is None
    assert kept.stored("kmsg") is None
    kept.close()


@pytest.mark.parametrize(
    "schema",
    [
        VERSION_1.replace("component TEXT NOT NULL,", "").replace("detail TEXT", "component_name TEXT"),
        VERSION_1.replace("CREATE TABLE memory", "CREATE VIEW memory AS SELECT 1; CREATE TABLE other"),
        "CREATE VIEW entries AS SELECT 1 AS time; CREATE TABLE memory (key, value)",
    ],
    ids=["no component", "memory is a view", "entries is a view"],
)
def test_an_old_journal_with_other_tables_is_set_aside(tmp_path: Path, schema: str) -> None:
    """A file of version 1 that lacks what the upgrade needs is kept under another name, and a new journal begins."""
    file = tmp_path / "journal.sqlite"
    with closing(sqlite3.connect(file, isolation_level=None)) as database:
        database.executescript(schema)
    before = file.read_bytes()
    kept, logged = opened(file)
    assert kept is not None
    assert logged == ["damaged journal set aside"]
    assert kept.set_aside is not None
    assert kept.set_aside.stat().st_size >= len(before)
    kept.write([entry()], {"findings": b"new"})
    assert list(kept.entries()) == [entry()]
    kept.close()


def test_an_old_journal_without_entries_goes_on(tmp_path: Path) -> None:
    """What an agent of version 1 left that was killed in its first start, a part of the tables, is completed."""
    file = tmp_path / "journal.sqlite"
    with closing(sqlite3.connect(file)) as database:
        database.execute("CREATE TABLE memory (key TEXT PRIMARY KEY, value BLOB NOT NULL)")
    kept, logged = opened(file)
    assert kept is not None
    assert kept.set_aside is None
    assert len(logged) == 1
    kept.write([entry()])
    assert list(kept.entries()) == [entry()]
    kept.close()


@pytest.mark.parametrize("at", [100, 4096 + 8, 2 * 4096 + 8, 3 * 4096 + 8, -4096])
def test_an_old_journal_that_is_half_broken(tmp_path: Path, at: int) -> None:
    """Whichever page of an old file is overwritten, it is set aside, and there is a journal that can be written."""
    file = old_journal(tmp_path)
    content = bytearray(file.read_bytes())
    start = at % len(content)
    content[start : start + 2000] = b"\xff" * len(content[start : start + 2000])
    file.write_bytes(content)
    kept, logged = opened(file)
    assert kept is not None
    assert logged == ["damaged journal set aside"]
    assert kept.set_aside is not None
    with capture_logs():
        kept.write([entry()], {"findings": b"new"})
        assert list(kept.entries()) == [entry()]
    assert kept.stored("findings") == b"new"
    kept.close()


def test_half_of_an_old_journal_is_set_aside(tmp_path: Path) -> None:
    """A file that was cut in the middle is kept under another name, and a new journal begins."""
    file = old_journal(tmp_path)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    kept, logged = opened(file)
    assert kept is not None
    assert logged == ["damaged journal set aside"]
    assert kept.set_aside is not None
    assert list(kept.entries()) == []
    kept.close()


def test_an_old_journal_is_read_as_it_is(tmp_path: Path) -> None:
    """A reader, such as `gpuhealth events`, sees the entries of an old journal and changes nothing of the file."""
    file = old_journal(tmp_path)
    before = file.read_bytes()
    with closing(Journal(file, DAY, 100, read_only=True)) as reader:
        assert [e.component for e in reader.entries()] == list(OLD_COMPONENTS.values())
        assert reader.stored("findings") is None
        with pytest.raises(JournalError, match="cannot write journal"):
            reader.write([entry()])
    assert file.read_bytes() == before


def test_an_old_journal_on_a_disk_that_is_read_only(tmp_path: Path, disk: Path) -> None:
    """An agent that cannot upgrade it reads its entries, and starts with nothing stored."""
    shutil.copy(old_journal(tmp_path), disk)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    kept, logged = opened(disk / "journal.sqlite")
    assert kept is not None
    assert logged == ["journal cannot be written: findings do not survive a restart until it can"]
    with capture_logs(), closing(kept):
        assert [e.component for e in kept.entries()] == list(OLD_COMPONENTS.values())
        assert restore(kept, SteadyClock(), "boot") == AgentState()


def test_recurring_events_are_thinned_out() -> None:
    """Of an event every ten seconds, one passes at once, then one after a minute, two minutes, and so on."""
    repeats = RepeatFilter()
    passed = {at: count for at in range(0, 600, 10) if (count := repeats.suppressed(("xid.13", ""), at)) is not None}
    assert passed == {0: 0, 60: 5, 180: 11, 420: 23}


def test_many_events_do_not_let_a_recurring_one_pass_again() -> None:
    """Thousands of other events between do not make the filter forget an event that recurs."""
    repeats = RepeatFilter()
    assert repeats.suppressed(("xid.13", ""), 0) == 0
    for number in range(999):
        assert repeats.suppressed((f"other.{number}", ""), 1) == 0
    assert repeats.suppressed(("xid.13", ""), 61) == 0
    for number in range(999):
        assert repeats.suppressed((f"more.{number}", ""), 62) == 0
    assert repeats.suppressed(("xid.13", ""), 63) is None
