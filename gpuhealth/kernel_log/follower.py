"""Follows the node's kernel log: parses its events immediately, and reports how completely it was read."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Protocol

import structlog

from gpuhealth.kernel_log.boot_log import BootLog, EarlierFault
from gpuhealth.kernel_log.kmsg import KmsgError, KmsgReader, Position
from gpuhealth.kernel_log.parser import KernelLogParser
from gpuhealth.model.kernel_event import KernelEvent, KernelLogStatus, KernelRecord
from gpuhealth.model.missing import Missing, MissingReason, Reading
from gpuhealth.runtime.clock import Now

log = structlog.get_logger()

_RETRY_SECONDS = 60.0  # between two attempts to open an unreadable log


class FallbackEvents(Protocol):
    """Another source of XID events, for nodes whose kernel log cannot be read."""

    def want_events(self, on_event: Callable[[KernelEvent], None]) -> None:
        """Starts the reporting of events."""

    @property
    def events_missing(self) -> Missing | None:
        """Why the source reports no events, if it does not."""


class KernelLogFollower:
    """One task follows the log; any task may read the counters. `on_events` is called after `position` has moved."""

    def __init__(
        self,
        parser: KernelLogParser,
        fallback: FallbackEvents,
        on_events: Callable[[list[KernelEvent]], None],
        on_earlier: Callable[[list[EarlierFault]], None],
        on_caught_up: Callable[[], None],
        *,
        boot_id: str,
        position: Position | None,
        now: Now,
    ) -> None:
        """`position` is that of the last record handled by this or an earlier agent; None at the very first start.

        `on_caught_up` is called when all records from before the start were handled, or when the log cannot be read.
        """
        self.position = position
        self.caught_up = False
        self.records = 0
        self.lost_records = 0
        self.lag_seconds = 0.0
        self._parser = parser
        self._fallback = fallback
        self._on_events = on_events
        self._on_earlier = on_earlier
        self._on_caught_up = on_caught_up
        self._boot_id = boot_id
        self._now = now
        self._reader: KmsgReader | None = None
        self._problem = Missing(MissingReason.ERROR, "the kernel log has not been opened yet")
        self._uses_fallback = False

    def set_driver_branch(self, branch: int) -> None:
        """Sets the branch of the NVIDIA driver (570, 575 …), on which the meaning of some lines depends."""
        self._parser.driver_branch = branch

    async def follow(
        self,
        kmsg: Path,
        lookback: float,
        after: asyncio.Event,
        since_boot: bool = False,
        *,
        accept_user_records: bool = False,
    ) -> None:
        """Opens the log at once and reads it continuously once `after` is set; returns when it should be called again.

        At the very first start it begins with the records of the last `lookback` seconds. With `since_boot`, it then
        also looks in all older ones for faults that only a reset or a reboot ends. Records that programs have written
        to /dev/kmsg count only with `accept_user_records`. Raises KmsgError when reading fails.
        """
        whole = since_boot and self.position is None
        reader = KmsgReader(
            kmsg,
            self._boot_id,
            self.position,
            math.inf if whole else lookback,
            self._now,
            accept_user_records=accept_user_records,
        )
        problem = reader.open()
        if problem is not None:
            if self._problem != problem:
                log.warning("kernel log unreadable: XIDs come from NVML, without their text", reason=str(problem))
            self._problem, self._uses_fallback = problem, True
            self._fallback.want_events(lambda event: self._on_events([event]))
            self._has_caught_up()
            await asyncio.sleep(_RETRY_SECONDS)
            return
        self._reader = reader
        try:
            await after.wait()
            if whole:
                await self._take_boot(reader, lookback)
            else:
                async for records in _backlog(reader):
                    self._take_records(records, reader.position)
            self._has_caught_up()
            async for records in reader:
                self._take_records(records, reader.position)
        except KmsgError as error:
            self._problem = error.missing
            self._has_caught_up()
            raise
        finally:
            self._reader = None
            reader.close()

    def _has_caught_up(self) -> None:
        if not self.caught_up:
            self.caught_up = True
            self._on_caught_up()

    def take_status(self) -> Reading[KernelLogStatus]:
        """How completely the log was read since the last call."""
        lost = self._reader.take_lost_records() if self._reader else 0
        self.lost_records += lost
        return self._status(lost)

    def _status(self, lost: int) -> Reading[KernelLogStatus]:
        if self._reader is None:
            return self._fallback_status() if self._uses_fallback else self._problem
        self.lag_seconds = self._reader.lag_seconds
        return KernelLogStatus("kmsg", self._reader.records, lost, self._reader.lag_seconds)

    def _fallback_status(self) -> Reading[KernelLogStatus]:
        missing = self._fallback.events_missing
        if missing is None or missing.reason is MissingReason.RELEASED:
            return missing or KernelLogStatus("nvml")
        detail = f"{self._problem.detail}; NVML does not report XIDs either: {missing.detail}"
        return Missing(self._problem.reason, detail)

    async def _take_boot(self, reader: KmsgReader, lookback: float) -> None:
        """Takes all records of this boot: a fault is over where a later record says so."""
        log_of_boot = BootLog(self._parser, self._now() - timedelta(seconds=lookback))
        async for records in _backlog(reader):
            log_of_boot.add(records)
            self.records += len(records)
        self.position = reader.position
        if reader.begins:
            log.warning("kernel log incomplete: earlier records of this boot are gone", begins=str(reader.begins))
        if log_of_boot.earlier:
            self._on_earlier(log_of_boot.earlier)
        if log_of_boot.recent:
            self._on_events(log_of_boot.recent)

    def _take_records(self, records: Sequence[KernelRecord], position: Position | None) -> None:
        self.records += len(records)
        events = [event for record in records if (event := self._parser.feed(record))]
        self.position = position
        if events:
            self._on_events(events)


async def _backlog(reader: KmsgReader) -> AsyncIterator[list[KernelRecord]]:
    """The records from before now, also where new ones come faster than they are read. Raises KmsgError."""
    began = time.monotonic()
    async for records in reader.available():
        yield records
        if reader.lag_seconds < time.monotonic() - began:
            return
