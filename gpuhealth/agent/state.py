"""What an agent remembers over its restarts, kept in the journal: findings, history, place in the kernel log, release.

Times are remembered as the wall clock told them; if it was set while no agent ran, they are moved along.
"""

from __future__ import annotations

import contextlib
from types import UnionType
from typing import TypeVar

import msgspec
import structlog

from gpuhealth.kernel_log.kmsg import Position
from gpuhealth.model.history import History
from gpuhealth.model.tracker import Ledger
from gpuhealth.monitors.nvidia.readings import Release
from gpuhealth.runtime import settings as config
from gpuhealth.runtime.clock import Instant, SteadyClock
from gpuhealth.runtime.journal import Journal, JournalError, SpoiledError

log = structlog.get_logger()
_T = TypeVar("_T")


class Memory(msgspec.Struct):
    """What is remembered; of what cannot be read, nothing."""

    ledger: Ledger = msgspec.field(default_factory=Ledger)
    history: History = msgspec.field(default_factory=History)
    position: Position | None = None
    release: Release | None = None  # of the driver, in this boot
    preflight_due: bool = False  # the node has to pass its first tests once more, and is not closed yet
    rebooted: bool = False  # since this was remembered

    def encoded(self, clock: SteadyClock, boot_id: str) -> dict[str, bytes]:
        """As the journal keeps it."""
        values = {
            "findings": self.ledger,
            "history": self.history,
            "release": self.release,
            "preflight_due": self.preflight_due,
            "written": clock.instant(boot_id),
        } | ({"kmsg": self.position} if self.position else {})
        return {key: msgspec.json.encode(value) for key, value in values.items()}


def open_journal(where: config.Journal) -> Journal | None:
    """The node's journal; None where there can be none, which is logged.

    One that cannot be written is read all the same: a disk that fails must not take along what was found.
    """
    try:
        journal = Journal(where.path, where.retention, where.max_entries)
    except JournalError as error:
        log.error("journal unavailable: findings will not survive a restart", error=str(error))  # noqa: TRY400 - one sentence
        with contextlib.suppress(JournalError):
            return Journal(where.path, where.retention, where.max_entries, read_only=True)
        return None
    if journal.set_aside:
        log.error("damaged journal set aside", file=str(journal.set_aside))
    return journal


def recall(journal: Journal | None, clock: SteadyClock, boot_id: str) -> Memory:
    """What an earlier agent on this node has remembered."""
    memory = Memory()
    if journal is None:
        return memory
    written: Instant | None = None
    try:
        memory.ledger = _recalled(journal, "findings", Ledger) or memory.ledger
        if not memory.ledger.is_sound():
            log.error("stored findings discarded: times without a time zone")
            memory.ledger = Ledger()
        memory.history = _recalled(journal, "history", History) or memory.history
        memory.position = _recalled(journal, "kmsg", Position)
        memory.preflight_due = _recalled(journal, "preflight_due", bool) or False
        written = _recalled(journal, "written", Instant)
        memory.rebooted = written is not None and written.boot_id != boot_id and bool(written.boot_id and boot_id)
        if written and written.boot_id == boot_id:  # a reboot ends what the driver was released for
            memory.release = _recalled(journal, "release", Release | None)
    except JournalError as error:
        log.error("journal partly unreadable", error=str(error))  # noqa: TRY400 - one sentence says it
        return memory
    if written and (seconds := clock.set_since(written, boot_id)):
        log.warning("clock stepped while no agent ran", seconds=round(seconds))
        memory.ledger.shift(seconds)
        memory.history.shift(seconds)
        memory.release = memory.release and memory.release.shifted(seconds)
    return memory


def _recalled(journal: Journal, key: str, kind: type[_T] | UnionType) -> _T | None:
    """What was remembered under a key; nothing of what cannot be read, which is logged."""
    try:
        value = journal.recall(key)
    except SpoiledError as error:
        log.error("stored state discarded: unreadable", key=key, error=str(error))  # noqa: TRY400
        return None
    if value is None:
        if key == "findings":
            log.info("no stored findings", why="the node is new to gpuhealth, or its journal was lost")
        return None
    try:
        decoded: _T = msgspec.json.decode(value, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        log.error("stored state discarded: unreadable", key=key, error=str(error))  # noqa: TRY400
        return None
    return decoded
