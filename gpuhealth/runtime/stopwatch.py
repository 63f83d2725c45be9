"""Counts the seconds while this process runs, and not while it is frozen."""

from __future__ import annotations

import asyncio
import time

_TICK_SECONDS = 1.0
_LONGEST_STEP_SECONDS = 5.0


class Stopwatch:
    """Seconds since the start, without the time in which the event loop did not run.

    SIGSTOP, the cgroup freezer and a paused virtual machine stop us and the process we wait for alike, so that time
    does not count as waiting. A step of the loop that takes longer than 5 s counts as 1 s.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._seconds = 0.0
        self._last = time.monotonic()
        self._timer = loop.call_later(_TICK_SECONDS, self._tick)

    def seconds(self) -> float:
        """Seconds that the stopwatch has run."""
        now = time.monotonic()
        step = now - self._last
        self._seconds += step if step <= _LONGEST_STEP_SECONDS else _TICK_SECONDS
        self._last = now
        return self._seconds

    def stop(self) -> None:
        """Stops the ticking task; call it once the stopwatch is no longer needed."""
        self._timer.cancel()

    def _tick(self) -> None:
        self.seconds()
        self._timer = self._loop.call_later(_TICK_SECONDS, self._tick)
