"""Time as the agent counts it."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

Now = Callable[[], datetime]
"""Something that tells the time, aware and in UTC."""


def wall_clock() -> datetime:
    """The wall clock, which may step."""
    return datetime.now(UTC)


class SteadyClock:
    """Wall-clock time that never steps: what it said at the start, and the monotonic time since."""

    def __init__(self) -> None:
        self._wall = datetime.now(UTC)
        self._monotonic = time.monotonic()

    def __call__(self) -> datetime:
        """Now, in UTC."""
        return self._wall + timedelta(seconds=time.monotonic() - self._monotonic)
