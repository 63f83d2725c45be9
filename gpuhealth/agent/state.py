"""State that the agent keeps across restarts in the journal: findings, check state, log position, driver release.

Times are stored in wall-clock time; if the clock was set while no agent ran, they are shifted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from types import UnionType
from typing import Any, TypeVar

import msgspec
import structlog

from gpuhealth.kernel_log.kmsg import Position
from gpuhealth.model.decoding import JSON_ERRORS
from gpuhealth.model.tracker_state import TrackerState
from gpuhealth.monitors.judge import Memory, decode_memory
from gpuhealth.monitors.nvidia.readings import Release
from gpuhealth.runtime.clock import Instant, SteadyClock
from gpuhealth.runtime.journal import DamagedValueError, Journal, JournalError
from gpuhealth.runtime.settings import Journal as JournalSettings

log = structlog.get_logger()
_T = TypeVar("_T")

FINDINGS, CHECKS = "findings", "checks"
"""Keys in the journal that other processes read: the tracker's state, and the state of the checks."""


class AgentState(msgspec.Struct):
    """The stored state; a part that cannot be read is empty."""

    tracker: TrackerState = msgspec.field(default_factory=TrackerState)
    memory: Memory = msgspec.field(default_factory=Memory)
    position: Position | None = None
    release: Release | None = None  # of the driver, in this boot
    preflight_due: bool = False  # the node must repeat its first tests, and has no taint yet
    rebooted: bool = False  # since the state was stored

    def encoded(self, clock: SteadyClock, boot_id: str) -> dict[str, bytes]:
        """The values for the journal, by key."""
        values = {
            FINDINGS: self.tracker,
            CHECKS: self.memory,
            "release": self.release,
            "preflight_due": self.preflight_due,
            "written": clock.instant(boot_id),
        } | ({"kmsg": self.position} if self.position else {})
        return {key: msgspec.json.encode(value) for key, value in values.items()}


def journal_for_writing(settings: JournalSettings) -> Journal:
    """The node's journal, opened for writing. Raises JournalError."""
    return Journal(settings.path, settings.retention, settings.max_entries)


def open_journal(settings: JournalSettings) -> Journal | None:
    """The node's journal; None if it is unavailable, which is logged.

    A journal on a full or read-only disk is still read: earlier findings must not be lost. JournalWriter opens it for
    writing as soon as that is possible.
    """
    try:
        journal = journal_for_writing(settings)
    except JournalError as error:
        log.error("journal cannot be written: findings do not survive a restart until it can", error=str(error))  # noqa: TRY400 - one sentence
        with contextlib.suppress(JournalError):
            return Journal(settings.path, settings.retention, settings.max_entries, read_only=True)
        return None
    if journal.set_aside:
        log.error("damaged journal set aside", file=str(journal.set_aside))
    return journal


def restore(journal: Journal | None, clock: SteadyClock, boot_id: str) -> AgentState:
    """The state stored by an earlier agent on this node."""
    state = AgentState()
    if journal is None:
        return state
    written: Instant | None = None
    try:
        state.tracker = _stored(journal, FINDINGS, TrackerState) or state.tracker
        if not state.tracker.is_sound():
            log.error("stored findings discarded: times without a time zone, or of another age")
            state.tracker = TrackerState()
        state.memory = _stored(journal, CHECKS, Memory, decode_memory) or state.memory
        state.position = _stored(journal, "kmsg", Position)
        state.preflight_due = _stored(journal, "preflight_due", bool) or False
        written = _stored(journal, "written", Instant)
        if written is not None and not written.is_sound():
            log.error("stored time discarded: not one of this clock")
            written = None
        state.rebooted = written is not None and written.boot_id != boot_id and bool(written.boot_id and boot_id)
        if written and written.boot_id == boot_id:  # a reboot ends every release
            state.release = _stored(journal, "release", Release | None)
    except JournalError as error:
        log.error("journal partly unreadable", error=str(error))  # noqa: TRY400 - no traceback needed
        return state
    if written and (seconds := clock.set_since(written, boot_id)):
        log.warning("clock stepped while no agent ran", seconds=round(seconds))
        state.tracker.shift(seconds)
        state.memory.history.shift(seconds)
        if state.release is not None:
            state.release = state.release.shifted(seconds)
    return state


def _stored(
    journal: Journal, key: str, kind: type[_T] | UnionType, decode: Callable[[bytes], Any] | None = None
) -> _T | None:
    """The stored value of a key; None if it cannot be read, which is logged."""
    try:
        value = journal.stored(key)
    except DamagedValueError as error:
        log.error("stored state discarded: unreadable", key=key, error=str(error))  # noqa: TRY400
        return None
    if value is None:
        if key == FINDINGS:
            log.info("no stored findings", why="the node is new to gpuhealth, or its journal was lost")
        return None
    try:
        decoded: _T = decode(value) if decode else msgspec.json.decode(value, type=kind)
    except JSON_ERRORS as error:
        log.error("stored state discarded: unreadable", key=key, error=str(error))  # noqa: TRY400
        return None
    return decoded
