"""Time as the agent counts it."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import msgspec

Now = Callable[[], datetime]
"""Something that tells the time, aware and in UTC."""

_SET_SECONDS = 5.0  # a wall clock that is so far off has been set; a leap second has not


def wall_clock() -> datetime:
    """The wall clock, which may step."""
    return datetime.now(UTC)


class Instant(msgspec.Struct, frozen=True):
    """A moment as both clocks told it: by it a later process sees that the wall clock was set in between."""

    boot_id: str
    time: datetime
    monotonic_seconds: float  # since boot, the same for every process


class SteadyClock:
    """Wall-clock time that never steps unnoticed: what it said at the start, and the monotonic time since.

    Where the wall clock has been set, `catch_up` takes that over and says by how much, so that whoever has noted times
    can move them along: what has lasted for a minute then still has lasted for a minute.
    """

    def __init__(self, wall: Now = wall_clock) -> None:
        self._read_wall = wall
        self._wall = wall()
        self._monotonic = time.monotonic()

    def __call__(self) -> datetime:
        """Now, in UTC."""
        return self._wall + timedelta(seconds=time.monotonic() - self._monotonic)

    def catch_up(self) -> float:
        """By how many seconds the wall clock was set since the last time; 0 where it was not."""
        seconds = (self._read_wall() - self()).total_seconds()
        if abs(seconds) < _SET_SECONDS:
            return 0.0
        self._wall += timedelta(seconds=seconds)
        return seconds

    def instant(self, boot_id: str) -> Instant:
        """Now, to be remembered."""
        return Instant(boot_id, self(), time.monotonic())

    def set_since(self, then: Instant, boot_id: str) -> float:
        """By how many seconds the wall clock was set since an instant that was remembered.

        Over a reboot nothing tells how long it took, only that time has not gone back.
        """
        same_boot = then.boot_id == boot_id
        passed = time.monotonic() - then.monotonic_seconds if same_boot else 0.0
        seconds = (self() - then.time).total_seconds() - passed
        return seconds if seconds < -_SET_SECONDS or (same_boot and seconds > _SET_SECONDS) else 0.0
