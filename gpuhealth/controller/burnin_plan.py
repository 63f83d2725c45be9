"""Which nodes are to be tested next. Pure: what is known of the fleet comes in, names come out.

A node that waits for a test before it goes back into service comes first, then those never tested, then the one whose
last test is the longest ago. A test must never be what takes a pool out: in a budget it counts as if it failed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime

import msgspec

from gpuhealth.api.report import BurninReason


class Candidate(msgspec.Struct, frozen=True):
    """A node that could be tested now."""

    node: str
    pool: str
    reason: str
    tested: datetime | None = None  # when the GPU was that has waited longest; never, if there is one that never was
    budgets: tuple[str, ...] = ()  # that select it


def in_order(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Whom to test first."""

    def urgency(candidate: Candidate) -> tuple[bool, float, str]:
        tested = candidate.tested.timestamp() if candidate.tested else 0.0
        return candidate.reason != BurninReason.RETURN, tested, candidate.node

    return sorted(candidates, key=urgency)


class Room:
    """What may still be begun: so many at once in a pool, and in a budget no more than it has places."""

    def __init__(self, pools: Mapping[str, int], budgets: Mapping[str, int], under_way: Iterable[Candidate]) -> None:
        """How many may be tested at once in each pool, the free places of each budget, and what is tested now."""
        self._pools = Counter(pools)
        self._budgets = Counter(budgets)
        for candidate in under_way:
            self._take(candidate)

    def take(self, candidate: Candidate) -> bool:
        """Whether there is room for it; it is taken then."""
        if not self.has(candidate):
            return False
        self._take(candidate)
        return True

    def has(self, candidate: Candidate) -> bool:
        """Whether there is room for it."""
        if self._pools[candidate.pool] <= 0:
            return False
        # One that is out already has its places.
        return candidate.reason == BurninReason.RETURN or all(self._budgets[name] > 0 for name in candidate.budgets)

    def _take(self, candidate: Candidate) -> None:
        self._pools[candidate.pool] -= 1
        if candidate.reason != BurninReason.RETURN:
            self._budgets.subtract(candidate.budgets)
