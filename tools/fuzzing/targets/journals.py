"""Damaged journals, through the start of the agent, `gpuhealth events` and `gpuhealth check`."""

from __future__ import annotations

import contextlib
import random
import sqlite3
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from fuzzing import mutate
from fuzzing.console import plain_output
from fuzzing.target import encoded, require, require_printable, require_sentence
from gpuhealth.agent.state import AgentState, open_journal, restore
from gpuhealth.cli import events as command
from gpuhealth.cli.output import CommandError
from gpuhealth.cli.snapshot import load_memory, read_journal
from gpuhealth.kernel_log.kmsg import Position
from gpuhealth.model.causes import Cause
from gpuhealth.model.component import NODE, gpu
from gpuhealth.model.tracker import Change, ChangeKind, FindingTracker, NodeFacts
from gpuhealth.model.tracker_state import TrackedFinding, TrackerState
from gpuhealth.monitors.registry import code_of
from gpuhealth.monitors.settings import Settings
from gpuhealth.runtime.clock import SteadyClock
from gpuhealth.runtime.journal import Entry, Journal, JournalError, entry_of

_BOOT = "boot-1"
_SINCE = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
_GPU = gpu("GPU-1")
_COLUMNS = ("time", "kind", "code", "component", "severity", "message", "detail")
_ODD = (
    None,
    1e300,
    -1e300,
    0,
    -1,
    2**62,
    "",
    "now",
    b"\xff\xfe",
    "\x1b[2J",
    '{"kind":"gpu"}',
    "[]",
    b"",
    "x" * 5000,
    1.5,
)
_HEADER_BYTES = 100  # in which SQLite counts its own changes
_MAGIC_OFFSETS = (0, 16, 18, 20, 24, 28, 36, 52, 56, 60, 92, 96, 100, 103, 105, 107)  # of SQLite's file header


class Case(msgspec.Struct):
    """What was done to the journal: statements, changed values of its state, and bytes of the file."""

    statements: list[tuple[str, int]] = []  # SQL, and the number of the odd value in it
    state: dict[str, bytes] = {}
    file: list[tuple[int, bytes]] = []  # offset and new bytes
    length: int = -1  # to which the file is cut


class Target:
    """A case is the damage of a journal of a node that is out of service."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
        self._path = Path(self._folder.name) / "journal.sqlite"
        self._settings = Settings.model_validate({"node_name": "a", "journal": {"path": self._path}})
        self._clock = SteadyClock()
        self._sound, self._state = self._made()

    def _made(self) -> tuple[bytes, dict[str, bytes]]:
        finding = code_of("xid.79").found(_GPU, "fell off the bus", now=_SINCE, source="kernel log", line="NVRM: x")
        tracked = TrackerState([TrackedFinding(finding, raised=True, boot_id=_BOOT)])
        state = AgentState(tracker=tracked, position=Position(_BOOT, 7)).encoded(self._clock, _BOOT)
        journal = Journal(self._path, 86400.0, 1000)
        entries = [entry_of(Change(ChangeKind.RAISED, finding, _SINCE)) for _ in range(3)]
        journal.write(entries, state)
        journal.close()
        return self._path.read_bytes(), state

    def make(self, chance: random.Random) -> bytes:
        """Damage by a program, by hand, or by a disk."""
        case = Case()
        roll = chance.random()
        if roll < 0.35:
            for _ in range(chance.choice((1, 2))):
                column = chance.choice(_COLUMNS)
                statement = chance.choice(
                    (
                        f"UPDATE entries SET {column} = ?",
                        "UPDATE state SET value = ?",
                        "UPDATE state SET value = ? WHERE key = 'findings'",
                        "DELETE FROM state WHERE key != ?",
                        "DROP TABLE state",
                        "DROP TABLE entries",
                        "ALTER TABLE entries ADD COLUMN x",
                        f"ALTER TABLE entries RENAME COLUMN {column} TO y",
                        "CREATE TABLE memory (x)",
                        "PRAGMA user_version=7",
                        "PRAGMA user_version=1",
                        "CREATE TRIGGER t AFTER INSERT ON entries BEGIN DELETE FROM state; END",
                    )
                )
                case.statements.append((statement, chance.randrange(len(_ODD))))
        elif roll < 0.7:
            for key in chance.sample([*self._state], chance.choice((1, 1, 2))):
                value: Any = msgspec.json.decode(self._state[key])
                wrapped = [value]
                mutate.mutate_value(wrapped, chance, 2)
                case.state[key] = msgspec.json.encode(wrapped[0] if wrapped else None)
                if chance.random() < 0.2:
                    case.state[key] = mutate.mutate_bytes(case.state[key], chance)
        else:
            size = len(self._sound)
            for _ in range(chance.choice((1, 2, 5, 40))):
                at = chance.choice(_MAGIC_OFFSETS) if chance.random() < 0.3 else chance.randrange(size)
                case.file.append((at, bytes(chance.randrange(256) for _ in range(chance.choice((1, 1, 4, 100))))))
            if chance.random() < 0.3:
                case.length = chance.randrange(size)
        return msgspec.json.encode(case)

    def check(self, case: bytes) -> int:
        """Everything that can be read is; the rest is set aside, and the node stays out of service."""
        damage = msgspec.json.decode(case, type=Case)
        for file in Path(self._folder.name).iterdir():
            file.unlink()
        self._damage(damage)
        before = self._path.read_bytes()
        self._check_commands()
        journal = open_journal(self._settings.journal)
        state = restore(journal, self._clock, _BOOT)
        self._check_state(state)
        if journal is not None:
            if journal.set_aside is not None:
                kept = journal.set_aside.read_bytes()[_HEADER_BYTES : len(before)]
                require(kept == before[_HEADER_BYTES:], "a damaged journal was overwritten")
            self._check_writing(journal, state)
            journal.close()
        return 1

    def _damage(self, damage: Case) -> None:
        data = bytearray(self._sound)
        for at, new in damage.file:
            data[at : at + len(new)] = new
        if damage.length >= 0:
            del data[damage.length :]
        self._path.write_bytes(data)
        if not damage.statements and not damage.state:
            return
        with contextlib.closing(sqlite3.connect(self._path, isolation_level=None)) as database:
            for statement, number in damage.statements:
                with contextlib.suppress(sqlite3.Error):
                    database.execute(statement, (_ODD[number],) if "?" in statement else ())
            for key, value in damage.state.items():
                database.execute("INSERT OR REPLACE INTO state VALUES (?, ?)", (key, value))

    def _check_commands(self) -> None:
        found = read_journal(self._settings, with_entries=True)
        if found.problem:
            require_sentence(found.problem, "the problem", 1000)
        load_memory(found.checks)
        try:
            entries = command._read(self._path, _SINCE - timedelta(days=1), "*", 100)
        except CommandError as error:
            require_sentence(error, "the error", 1000)
            return
        for entry in entries:
            encoded(entry, 1 << 16)
        if entries:
            output = plain_output(lambda: command._table(entries))
            require_printable(output, "the table", 1 << 17, allowed="\n")

    def _check_state(self, state: AgentState) -> None:
        require(state.tracker.is_sound(), "a stored time has no zone")
        own = [tracked for tracked in state.tracker.tracked if tracked.finding.code == "xid.79"]
        # The journal says that it has ended, or that the node has rebooted since.
        remembers_end = bool(state.tracker.ended) or any(tracked.boot_id != _BOOT for tracked in own)
        tracker = FindingTracker(state=state.tracker)
        now = datetime.now(UTC)
        facts = NodeFacts(node="a", time=now, boot_id=_BOOT)
        record = [Cause("xid.79", _SINCE, _GPU, _BOOT)]
        tracker.recall(record, _SINCE, None, now, _BOOT)
        tracker.resolve(facts)
        verdict = tracker.verdict(facts)
        encoded(verdict, 1 << 20)
        if not remembers_end:
            require(tracker.quarantine().findings, "a node is given back to service by a damaged journal")
            require(verdict.verdict != "healthy", "a node is healthy by a damaged journal")
        encoded(AgentState(tracker=tracker.state(), memory=state.memory).encoded(self._clock, _BOOT), 1 << 20)

    def _check_writing(self, journal: Journal, state: AgentState) -> None:
        entry = Entry(time=_SINCE, kind="agent", code="x", component=NODE, message="text")
        try:
            journal.write([entry], state.encoded(self._clock, _BOOT))
            journal.prune(datetime.now(UTC))
            list(journal.entries(limit=10))
        except JournalError as error:
            require_sentence(error, "the error", 1000)

    def close(self) -> None:
        """Removes the folder of the files that cases have written."""
        self._folder.cleanup()
