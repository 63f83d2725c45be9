"""The journal of observations and actions on this node: SQLite on a local disk, bounded in time and size.

Two tables: `entries` for people (`gpuhealth events`), `state` for the agent's next start. Both are written in one
transaction, so that after a crash the stored kernel-log position never runs ahead of the entries.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import structlog

from gpuhealth.model.component import Component
from gpuhealth.model.decoding import JSON_ERRORS
from gpuhealth.model.tracker import Change
from gpuhealth.runtime.text import printable

log = structlog.get_logger()

_DATABASE_ERRORS = (sqlite3.Error, UnicodeDecodeError)  # the latter: SQLite quotes a damaged schema in its error
_RAM_DISK = Path("/dev/shm")  # noqa: S108 - writable when no disk is
_MIN_ENTRIES = 1000  # kept however old they are: a clock set far ahead must not expire everything
_SCHEMA_VERSION = 2
_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    id INTEGER PRIMARY KEY,
    time REAL NOT NULL,
    kind TEXT NOT NULL,
    code TEXT NOT NULL,
    component TEXT NOT NULL,  -- JSON
    severity TEXT NOT NULL,
    message TEXT NOT NULL,
    detail TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS entries_by_time ON entries (time);
CREATE TABLE IF NOT EXISTS state (key TEXT PRIMARY KEY, value BLOB NOT NULL);
"""
# Version 1 had a component as bare text, and stored state that is no longer usable. It may have run after this version,
# when an update was rolled back: then some components are JSON already, and state stored by this version is outdated.
_UPGRADE_FROM_1 = """
UPDATE entries SET component = CAST(component AS TEXT) WHERE typeof(component) != 'text';
UPDATE entries SET component = CASE
    WHEN component GLOB '{"kind":*' THEN component
    ELSE json_object('kind', CASE
        WHEN component = 'node' THEN 'node'
        WHEN component GLOB 'GPU-*' THEN 'gpu'
        WHEN component GLOB 'MIG-*' THEN 'mig'
        WHEN component GLOB '*:*:*' THEN 'pci_device'
        ELSE 'nic' END, 'id', component) END;
DELETE FROM state;
DROP TABLE memory;
"""


class JournalError(Exception):
    """The journal cannot be read or written; the text has path and reason."""


class DamagedValueError(JournalError):
    """A stored value has an unexpected format; other values can still be read."""


class Entry(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One line of the node's history."""

    time: datetime
    kind: str  # raised, changed, cleared, kernel, act, agent
    code: str
    component: Component
    message: str
    severity: str = ""
    detail: str = ""  # JSON, or the raw kernel-log line


def _shown(error: Exception) -> str:
    """The text of an error, which may quote a damaged file."""
    return printable(str(error))


def entry_of(change: Change) -> Entry:
    """The journal entry for a change of a finding."""
    finding = change.finding
    return Entry(
        time=change.time,
        kind=str(change.kind),
        code=finding.code,
        component=finding.component,
        severity=str(finding.severity),
        message=finding.message + (f" ({change.reason})" if change.reason else ""),
        detail=msgspec.json.encode(finding.evidence).decode(),
    )


class Journal:
    """The journal of one node. Threads are serialized: one may still be writing when another closes it."""

    def __init__(self, path: Path, keep_seconds: float, max_entries: int, read_only: bool = False) -> None:
        """Opens the journal, and creates it if it does not exist.

        Raises JournalError. A file that is not a journal is set aside, never overwritten: the agent starts a new one.
        """
        self.path = path
        self.read_only = read_only
        self._keep_seconds = keep_seconds
        self._max_entries = max_entries
        self.set_aside: Path | None = None
        self._turn = threading.Lock()
        try:
            if not read_only:
                path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and not path.is_file():
                raise JournalError(f"cannot open journal {path}: it is not a file")
            self._database = self._open(read_only)
        except sqlite3.OperationalError as error:
            if not (read_only and path.is_file()):
                raise JournalError(f"cannot open journal {path}: {_shown(error)}") from None
            self._database = self._copy_opened()
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            if read_only:
                raise JournalError(f"{path} is no journal: {_shown(error)}") from None
            self.set_aside = path.with_suffix(f".damaged-{datetime.now(UTC):%Y%m%dT%H%M%S}")
            self._database = self._begun_again(self.set_aside)
        except OSError as error:
            raise JournalError(f"cannot make journal {path}: {error.strerror}") from None
        self._files = self._identify()

    def _copy_opened(self) -> sqlite3.Connection:
        """A copy in memory for reading: on a read-only disk SQLite cannot open a file that it has not closed."""
        try:
            with tempfile.TemporaryDirectory(dir=_RAM_DISK if _RAM_DISK.is_dir() else None) as folder:
                for suffix in ("", "-wal"):  # the last transactions
                    with contextlib.suppress(FileNotFoundError):
                        shutil.copyfile(f"{self.path}{suffix}", f"{folder}/copy{suffix}")
                with closing(sqlite3.connect(f"{folder}/copy")) as copy:
                    database = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
                    copy.backup(database)
            database.text_factory = _text
            _upgrade(database)  # the copy: the file stays as it is
            database.execute("PRAGMA query_only=ON")
        except (OSError, *_DATABASE_ERRORS) as error:
            raise JournalError(f"cannot read journal {self.path}: {_shown(error)}") from None
        return database

    def _begun_again(self, set_aside: Path) -> sqlite3.Connection:
        """A new journal in place of a damaged one, whose disk often permits no renaming either."""
        try:
            self.path.rename(set_aside)
            return self._open(read_only=False)
        except (OSError, *_DATABASE_ERRORS) as error:
            raise JournalError(f"{self.path} is no journal, and cannot be set aside: {_shown(error)}") from None

    def _open(self, read_only: bool) -> sqlite3.Connection:
        mode = "ro" if read_only else "rwc"
        # Autocommit; transactions are explicit. Another process may hold the lock for a moment: `gpuhealth events`.
        database = sqlite3.connect(
            f"{self.path.absolute().as_uri()}?mode={mode}",
            uri=True,
            isolation_level=None,
            timeout=5.0,
            check_same_thread=False,
        )
        database.text_factory = _text
        try:
            if not read_only:
                # A write-ahead log needs no fsync for every transaction: entries that a power cut can lose describe
                # a boot whose kernel log is lost too.
                database.execute("PRAGMA journal_mode=WAL")
                database.execute("PRAGMA synchronous=NORMAL")
                if _upgrade(database):
                    log.warning("journal upgraded: stored findings discarded", file=str(self.path))
            database.execute("SELECT count(*) FROM state").fetchone()
        except BaseException:
            database.close()  # after any error the file must be free to be set aside
            raise
        return database

    def _identify(self) -> list[tuple[int, int] | None]:
        """Which files the journal is in: device and inode of the database and of its write-ahead log."""
        found: list[tuple[int, int] | None] = []
        for suffix in ("", "-wal"):
            try:
                status = Path(f"{self.path}{suffix}").stat()
            except OSError:
                found.append(None)
            else:
                found.append((status.st_dev, status.st_ino))
        return found

    def is_in_place(self) -> bool:
        """Whether a later process will read what is written now: SQLite also writes to files that were deleted."""
        return self._identify() == self._files

    def write(self, entries: Iterable[Entry] = (), state: Mapping[str, bytes] | None = None) -> None:
        """Adds entries and replaces stored values, all or nothing. Raises JournalError."""
        rows = [
            (
                entry.time.timestamp(),
                entry.kind,
                entry.code,
                msgspec.json.encode(entry.component).decode(),
                entry.severity,
                entry.message,
                entry.detail,
            )
            for entry in entries
        ]
        with self._turn:
            self._write(rows, state or {})

    def _write(self, rows: Sequence[tuple[object, ...]], state: Mapping[str, bytes]) -> None:
        try:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                self._database.executemany(
                    "INSERT INTO entries (time, kind, code, component, severity, message, detail)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?)",
                    rows,
                )
                self._database.executemany("INSERT OR REPLACE INTO state VALUES (?, ?)", state.items())
                self._database.execute("COMMIT")
            except BaseException:  # all or nothing, also when interrupted
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise
        except _DATABASE_ERRORS as error:
            raise JournalError(f"cannot write journal {self.path}: {_shown(error)}") from None

    def stored(self, key: str) -> bytes | None:
        """A stored value; None if there is none. Raises JournalError."""
        try:
            row = self._database.execute("SELECT value FROM state WHERE key = ?", (key,)).fetchone()
        except _DATABASE_ERRORS as error:
            raise JournalError(f"cannot read journal {self.path}: {_shown(error)}") from None
        if row is None or isinstance(row[0], bytes):
            return None if row is None else row[0]
        raise DamagedValueError(f"journal {self.path}: the stored value of {key} is damaged")

    def entries(self, since: datetime | None = None, code: str = "*", limit: int = 1000) -> Iterator[Entry]:
        """The newest `limit` entries since a time whose code matches a shell pattern, oldest first."""
        query = (
            "SELECT * FROM (SELECT id, time, kind, code, component, severity, message, detail FROM entries"
            " WHERE time >= ? AND code GLOB ? ORDER BY id DESC LIMIT ?) ORDER BY id"
        )
        start = since.timestamp() if since else 0.0
        try:
            with closing(self._database.execute(query, (start, code, limit))) as rows:
                for number, *values in rows:
                    if entry := _entry(*values):
                        yield entry
                    else:
                        log.warning("corrupt journal entry skipped", file=str(self.path), entry=number)
        except _DATABASE_ERRORS as error:
            raise JournalError(f"cannot read journal {self.path}: {_shown(error)}") from None

    def prune(self, now: datetime) -> None:
        """Drops entries beyond the maximum age or number. Raises JournalError."""
        try:
            with self._turn:
                self._database.execute(
                    "DELETE FROM entries WHERE time < ? AND id <= (SELECT max(id) FROM entries) - ?",
                    (now.timestamp() - self._keep_seconds, _MIN_ENTRIES),
                )
                self._database.execute(
                    "DELETE FROM entries WHERE id <= (SELECT max(id) FROM entries) - ?", (self._max_entries,)
                )
        except _DATABASE_ERRORS as error:
            raise JournalError(f"cannot prune journal {self.path}: {_shown(error)}") from None

    def close(self) -> None:
        """Closes the file after the running write."""
        with self._turn:
            self._database.close()


def _upgrade(database: sqlite3.Connection) -> bool:
    """Creates missing parts of the schema; returns whether the file was of an earlier version.

    Raises sqlite3.OperationalError if the file cannot be used now, sqlite3.DatabaseError if it is not a journal.
    """
    try:
        database.executescript(_SCHEMA)
        (tables,) = database.execute("SELECT count(*) FROM sqlite_master WHERE name = 'memory'").fetchone()
        is_old = tables and database.execute("PRAGMA user_version").fetchone()[0] < _SCHEMA_VERSION
        if is_old:
            (found,) = database.execute("PRAGMA quick_check(1)").fetchone()
            if found != "ok":
                raise sqlite3.DatabaseError(found)
            database.executescript(f"BEGIN IMMEDIATE; {_UPGRADE_FROM_1} COMMIT;")
        database.execute(f"PRAGMA user_version={_SCHEMA_VERSION}")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_ERROR:  # the tables or columns are not those of a journal
            raise sqlite3.DatabaseError(str(error)) from None
        raise
    return bool(is_old)


def _text(column: bytes) -> str:
    """Text of a column, which may not be valid UTF-8 in a damaged file."""
    return column.decode(errors="replace")


def _entry(when: object, *texts: object) -> Entry | None:
    """An entry from its columns, whose types are arbitrary in a damaged or foreign file."""
    try:
        time = datetime.fromtimestamp(when, UTC)  # type: ignore[arg-type]  # it rejects other types
    except (TypeError, ValueError, OverflowError, OSError):
        return None
    words = [text for text in texts if isinstance(text, str)]
    if len(words) < len(texts):
        return None
    kind, name, component, severity, message, detail = words
    try:
        part = msgspec.json.decode(component, type=Component)
    except JSON_ERRORS:
        return None
    return Entry(time=time, kind=kind, code=name, component=part, message=message, severity=severity, detail=detail)
