"""A rate limit: so many a second, after a first burst."""

from __future__ import annotations

import asyncio


class RateLimiter:
    """What may be done next, and when. Who is cancelled while waiting has used its turn."""

    def __init__(self, per_second: float, burst: int) -> None:
        self._seconds = 1.0 / per_second  # for each
        self._ahead = (burst - 1) * self._seconds  # how far the plan may run ahead of the clock
        self._planned = 0.0

    async def take(self, count: int = 1) -> None:
        """Returns when that many may be done; they may be done together."""
        wait = self.plan(asyncio.get_running_loop().time(), count)
        if wait > 0:
            await asyncio.sleep(wait)

    def plan(self, now: float, count: int = 1) -> float:
        """Takes the next turns; seconds until they come, not above zero where they are there already."""
        self._planned = max(self._planned, now)
        wait = self._planned - self._ahead - now
        self._planned += count * self._seconds
        return wait
