"""Wall-clock time that follows steps, as used by the agent."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import msgspec

from gpuhealth.model.time import is_usable

Now = Callable[[], datetime]
"""Source of the current time, with a zone, in UTC."""

_SET_SECONDS = 5.0  # a larger offset is a step of the wall clock; a leap second is not
_LONGEST_BOOT_SECONDS = 100 * 365 * 86400.0


def wall_clock() -> datetime:
    """The system's wall clock, which may step."""
    return datetime.now(UTC)


class Instant(msgspec.Struct, frozen=True):
    """A moment on both clocks: a later process can detect that the wall clock was set in between."""

    boot_id: str
    time: datetime
    monotonic_seconds: float  # since boot, the same for every process

    def is_sound(self) -> bool:
        """Whether it can be calculated with, unlike one from a journal edited by hand."""
        return is_usable(self.time) and 0.0 <= self.monotonic_seconds <= _LONGEST_BOOT_SECONDS


class SteadyClock:
    """Wall-clock time that never steps unnoticed: the wall clock at the start plus the monotonic time since then.

    If the wall clock has been set, `catch_up` follows it and returns the offset, so that callers can shift stored
    times: a condition that has lasted for a minute then still has lasted for a minute.
    """

    def __init__(self, wall: Now = wall_clock) -> None:
        self._read_wall = wall
        self._wall = wall()
        self._monotonic = time.monotonic()

    def __call__(self) -> datetime:
        """The current time, in UTC."""
        return self._wall + timedelta(seconds=time.monotonic() - self._monotonic)

    def catch_up(self) -> float:
        """The seconds by which the wall clock was set since the last call; 0 if it was not."""
        seconds = (self._read_wall() - self()).total_seconds()
        if abs(seconds) < _SET_SECONDS:
            return 0.0
        self._wall += timedelta(seconds=seconds)
        return seconds

    def instant(self, boot_id: str) -> Instant:
        """The current moment, for storing."""
        return Instant(boot_id, self(), time.monotonic())

    def set_since(self, then: Instant, boot_id: str) -> float:
        """The seconds by which the wall clock was set since a stored moment.

        After a reboot the duration is unknown; the only certainty is that time has not gone back.
        """
        same_boot = then.boot_id == boot_id
        passed = time.monotonic() - then.monotonic_seconds if same_boot else 0.0
        seconds = (self() - then.time).total_seconds() - passed
        return seconds if seconds < -_SET_SECONDS or (same_boot and seconds > _SET_SECONDS) else 0.0
