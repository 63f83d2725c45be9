"""A rate limit: actions per second on average, with a burst."""

from __future__ import annotations

import asyncio


class RateLimiter:
    """Computes when the next actions are allowed, or whether one is allowed now."""

    def __init__(self, per_second: float, burst: int) -> None:
        """`burst` actions are allowed at once after a pause of `burst / per_second` seconds."""
        self._seconds = 1.0 / per_second  # for one action
        self._ahead = (burst - 1) * self._seconds  # by which the plan may be ahead of the clock
        self._planned = 0.0  # time of the next action without a burst

    async def take(self, count: int = 1) -> None:
        """Wait until `count` actions are allowed at once. A cancelled waiter has used up its turns."""
        wait = self.reserve(asyncio.get_running_loop().time(), count)
        if wait > 0:
            await asyncio.sleep(wait)

    def reserve(self, now: float, count: int = 1) -> float:
        """Reserve the next turns; returns the seconds until they come, zero or less if they are allowed now."""
        self._planned = max(self._planned, now)
        wait = self._planned - self._ahead - now
        self._planned += count * self._seconds
        return wait

    def try_take(self, now: float) -> bool:
        """Take a turn if one is allowed now."""
        if max(self._planned, now) - self._ahead > now:
            return False
        self.reserve(now)
        return True

    def is_rested(self, now: float) -> bool:
        """Whether a whole burst is allowed, as by a new limiter."""
        return self._planned <= now
