"""/dev/kmsg: reads every record of the kernel log once, without a thread and without blocking the event loop.

The device returns one record for each read. A slow reader gets EPIPE and continues with the oldest remaining record;
overwritten records show as a gap in the sequence numbers and are counted.

Reading starts after the last record handled, if that was in this boot; at the first record of this boot, if it was in
another; with the records of the last `lookback` seconds, if none was ever handled.

Only the kernel writes records of facility 0 (kern). The device gives a record that a program writes to it the facility
1 (user), or another one that the program names, but never 0 (devkmsg_write in the kernel's kernel/printk/printk.c).
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import time
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path

import msgspec

from gpuhealth.kernel_log.escapes import unescape
from gpuhealth.model.kernel_event import KernelRecord
from gpuhealth.model.missing import Missing, MissingReason
from gpuhealth.runtime.clock import Now, wall_clock

_READ_BYTES = 16384  # a record is at most 8 KiB: the device refuses smaller buffers with EINVAL
_BATCH = 256  # records between two steps of the loop: some milliseconds
_MOST_OTHER_BYTES = 1 << 20  # without a single record in them: what is read is no kernel log
_POLL_SECONDS = 0.2  # for files that epoll does not support: a plain file in place of the device
_KERN, _USER = 0, 1  # facilities
_PREFIX = re.compile(rb"(\d{1,4}),(\d{1,20}),(\d{1,20}),[^;\n]*;", re.ASCII)


class Position(msgspec.Struct, frozen=True):
    """Position of the last record that was handled."""

    boot_id: str
    sequence: int


class KmsgError(Exception):
    """The kernel log cannot be opened or read; `missing` has the reason."""

    def __init__(self, missing: Missing) -> None:
        super().__init__(str(missing))
        self.missing = missing


class KmsgReader:
    """Reads batches of records forever: `async for batch in reader`. One task reads, any may look at the counters."""

    def __init__(
        self,
        path: Path,
        boot_id: str,
        after: Position | None,
        lookback: float,
        now: Now = wall_clock,
        *,
        accept_user_records: bool = False,
    ) -> None:
        """With `accept_user_records`, records of the facility user are returned, too."""
        self._facilities = (_KERN, _USER) if accept_user_records else (_KERN,)
        self._path = path
        self._now = now
        self._boot_id = boot_id
        self._fd = -1
        self._rest = b""
        self._other_bytes = 0  # since the last record
        self._last = after.sequence if after is not None and after.boot_id == boot_id else None
        # At the very first start, the time since boot from which records count; None if all do.
        self._since = time.monotonic() - lookback if after is None else None
        self._lost = 0
        self._first_seen = False
        self.begins: datetime | None = None  # time of the oldest record, if earlier ones of this boot are gone
        self.records = 0
        self.lag_seconds = 0.0  # the age of the newest record when it was read

    def open(self) -> Missing | None:
        """Opens the log; returns the obstacle if it cannot."""
        if self._fd >= 0:
            return None
        try:
            self._fd = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            return _missing(self._path, error)
        return None

    def close(self) -> None:
        """Closes the log, if it is open."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    @property
    def position(self) -> Position | None:
        """Position of the last record returned or skipped, for storing; None before the first."""
        return None if self._last is None else Position(self._boot_id, self._last)

    def take_lost_records(self) -> int:
        """Number of records that were overwritten unread since the last call."""
        lost, self._lost = self._lost, 0
        return lost

    async def __aiter__(self) -> AsyncIterator[list[KernelRecord]]:
        """Batches of records as they arrive. Raises KmsgError when the log cannot be read (any more)."""
        while True:
            async for batch in self.available():
                yield batch
            await self._readable()

    async def available(self) -> AsyncIterator[list[KernelRecord]]:
        """Batches of the records available now. Raises KmsgError as well."""
        if missing := self.open():
            raise KmsgError(missing)
        more = True
        while more:
            batch, more = self._read_batch()
            if batch:
                yield batch
            await asyncio.sleep(0)  # a burst must not block other tasks

    def _read_batch(self) -> tuple[list[KernelRecord], bool]:
        """The next records, and whether more may be available at once."""
        batch: list[KernelRecord] = []
        clock = time.monotonic()
        now = self._now()
        for _ in range(_BATCH):
            try:
                chunk = os.read(self._fd, _READ_BYTES)
            except BlockingIOError:
                return batch, False
            except OSError as error:
                if error.errno == errno.EPIPE:  # overwritten; the next read returns the oldest remaining record
                    continue
                raise KmsgError(_missing(self._path, error)) from error
            if not chunk:  # the end of a plain file
                return batch, False
            self._other_bytes += len(chunk)
            batch += filter(None, (self._record(raw, clock, now) for raw in self._split(chunk)))
            if self._other_bytes > _MOST_OTHER_BYTES:
                raise KmsgError(Missing(MissingReason.ERROR, f"{self._path} is no kernel log: it has no records"))
        return batch, True

    def _split(self, chunk: bytes) -> list[bytes]:
        """The complete records in a chunk: always one from the device, any number from a file or pipe."""
        lines = (self._rest + chunk).split(b"\n")
        self._rest = lines.pop()[-_READ_BYTES:]
        return [line for line in lines if not line.startswith(b" ")]  # tags of a record, such as " SUBSYSTEM=pci"

    def _record(self, raw: bytes, clock: float, now: datetime) -> KernelRecord | None:
        match = _PREFIX.match(raw)
        if match is None:
            return None
        self._other_bytes = 0
        sequence, stamp = int(match[2]), int(match[3]) / 1e6
        age = clock - stamp
        # The kernel's timestamp is time since boot. Current wall-clock time minus the record's age is correct even if
        # the wall clock was set since boot.
        when = now - timedelta(seconds=min(max(age, 0.0), clock))
        if not self._first_seen:
            self._first_seen = True
            self.begins = when if sequence else None
        if self._skips(sequence, stamp):
            return None
        facility, level = divmod(int(match[1]), 8)
        self.records += 1
        self.lag_seconds = max(0.0, age)
        if facility not in self._facilities:
            return None
        text = raw[match.end() :].decode("utf-8", "replace")
        if "\\x" in text:
            text = unescape(text)
        return KernelRecord(text, when, sequence, level)

    def _skips(self, sequence: int, stamp: float) -> bool:
        """Whether a record was handled before, or is too old to count at the very first start."""
        if self._since is not None:
            if stamp < self._since:
                self._last = sequence
                return True
            self._since = None  # from here on all records count
        if self._last is not None:
            if sequence <= self._last:
                return True
            self._lost += sequence - self._last - 1
        # Records overwritten before the first one of a boot that we handle are not counted as lost.
        self._last = sequence
        return False

    async def _readable(self) -> None:
        """Waits until the log is readable."""
        loop = asyncio.get_running_loop()
        ready = loop.create_future()
        try:
            loop.add_reader(self._fd, _set, ready)
        except PermissionError:  # epoll does not take plain files
            await asyncio.sleep(_POLL_SECONDS)
            return
        try:
            await ready
        finally:
            loop.remove_reader(self._fd)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _missing(path: Path, error: OSError) -> Missing:
    reason = {
        errno.ENOENT: MissingReason.NOT_INSTALLED,
        errno.ENXIO: MissingReason.NOT_INSTALLED,
        errno.ENODEV: MissingReason.NOT_INSTALLED,
        errno.EPERM: MissingReason.NO_PERMISSION,
        errno.EACCES: MissingReason.NO_PERMISSION,
    }.get(error.errno or 0, MissingReason.ERROR)
    return Missing(reason, f"{path}: {os.strerror(error.errno) if error.errno else error}")
