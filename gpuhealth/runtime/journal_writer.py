"""Writing to the journal in the background, through failures of its disk, and how often recurring events enter it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime

import msgspec
import structlog

from gpuhealth.runtime.journal import Entry, Journal, JournalError

log = structlog.get_logger()

_RETRY_SECONDS = 5.0
_MAX_UNWRITTEN = 10_000  # entries held while the disk refuses them
_FIRST_REPEAT = 60.0
_LONGEST_REPEAT = 3600.0
_MAX_REPEATS = 1000  # distinct kinds of events


class _Repeat(msgspec.Struct):
    noted: float
    seconds: float  # until the next may pass
    passed: int = 0


class RepeatFilter:
    """Thins out recurring events: one passes at once, then one after a minute, two, four … an hour."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], _Repeat] = {}

    def suppressed(self, key: tuple[str, str], at: float) -> int | None:
        """How many were suppressed since the last one that passed; None if this one is suppressed, too.

        `at` is in seconds of a monotonic clock.
        """
        known = self._known.get(key)
        if known is not None and at - known.noted < known.seconds:
            known.passed += 1
            return None
        if known is None and len(self._known) >= _MAX_REPEATS:
            del self._known[next(iter(self._known))]  # the one that passed longest ago
        goes_on = known is not None and at - known.noted < 2 * known.seconds
        seconds = min(_LONGEST_REPEAT, 2 * known.seconds) if known is not None and goes_on else _FIRST_REPEAT
        self._known.pop(key, None)  # the order of the table is that of the last pass
        self._known[key] = _Repeat(at, seconds)
        return known.passed if known is not None else 0


class JournalWriter:
    """Writes in the background: the disk may be slow, full or gone, and must not delay the rounds.

    After a failed write, and where the file was deleted or replaced, the journal is opened again for each attempt: what
    was opened on a full or read-only disk can never be written to. The first write that succeeds stores the whole
    state, whatever was lost before.
    """

    def __init__(
        self,
        journal: Journal | None,
        state: Callable[[], dict[str, bytes]],
        now: Callable[[], datetime],
        reopen: Callable[[], Journal],
    ) -> None:
        """`state` returns the values to store along with the entries. `reopen` opens the journal for writing, and is
        used at once where there is none or it is read-only; it raises JournalError."""
        self._journal = journal
        self._state = state
        self._now = now
        self._reopen = reopen
        self._unwritten: list[Entry] = []
        self._wanted = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "journal")
        self._writing: tuple[list[Entry], Future[JournalError | None]] | None = None
        self._problem = ""  # the error of the last write
        self.errors = 0

    def append(self, *entries: Entry) -> None:
        """Schedules a write of the entries and the present state."""
        self._unwritten += entries
        del self._unwritten[:-_MAX_UNWRITTEN]
        self._wanted.set()

    async def run_once(self) -> None:
        """Waits until there is something to write, and writes it; after a failure it is kept and retried."""
        await self._wanted.wait()
        self._wanted.clear()
        entries, self._unwritten = self._unwritten, []
        future = self._thread.submit(self._write, entries, self._state(), self._now())
        self._writing = entries, future
        await asyncio.wait([asyncio.wrap_future(future)])  # on cancellation the thread continues; close() waits for it
        error = self._outcome()
        self._log(str(error) if error else "")
        if error:
            self.errors += 1
            await asyncio.sleep(_RETRY_SECONDS)
            self._wanted.set()

    def _log(self, problem: str) -> None:
        """Logs an error once and not with every attempt, and its end."""
        if problem and problem != self._problem:
            log.error("journal write failed", error=problem)
        elif self._problem and not problem:
            log.info("journal written again", after=self._problem)
        self._problem = problem

    def _write(self, entries: list[Entry], state: dict[str, bytes], now: datetime) -> JournalError | None:
        """Runs in the thread; returns the error, if any."""
        try:
            journal = self._writable()
            journal.write(entries, state)
        except JournalError as error:
            self._drop()
            return error
        try:
            journal.prune(now)
        except JournalError as error:  # the next cleanup may succeed
            log.error("journal cleanup failed", error=str(error))  # noqa: TRY400 - no traceback needed
        return None

    def _writable(self) -> Journal:
        """The journal, opened for writing. Raises JournalError."""
        if self._journal is not None and not self._journal.read_only:
            if self._journal.is_in_place():
                return self._journal
            log.error("journal was deleted or replaced: opening it again", file=str(self._journal.path))
        self._drop()
        self._journal = self._reopen()
        if self._journal.set_aside:
            log.error("damaged journal set aside", file=str(self._journal.set_aside))
        return self._journal

    def _drop(self) -> None:
        journal, self._journal = self._journal, None
        if journal is not None:
            journal.close()

    def _outcome(self) -> JournalError | None:
        """The error of the last write, if any; its entries are then queued again."""
        if self._writing is None:
            return None
        (entries, future), self._writing = self._writing, None
        if error := future.result():
            self._unwritten = [*entries, *self._unwritten][-_MAX_UNWRITTEN:]
        return error

    def close(self) -> None:
        """Writes the remaining entries and the state, and closes the journal."""
        self._thread.shutdown()  # after the running write
        self._outcome()
        try:
            self._writable().write(self._unwritten, self._state())
        except JournalError as error:
            log.error("journal entries lost", error=str(error))  # noqa: TRY400 - no traceback needed
        self._drop()
