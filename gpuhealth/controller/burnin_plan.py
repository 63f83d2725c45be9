"""Decides which nodes are tested next. Pure: views of the fleet in, candidates in order out.

A node that waits for a test before it returns to service comes first, then nodes that were never tested, then the node
whose last test is the oldest. A burn-in counts against the budgets of its node as if the node failed it: a test must
never be what takes a pool below its limit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime

import msgspec

from gpuhealth.api.report import BurninReason


class BurninCandidate(msgspec.Struct, frozen=True, kw_only=True):
    """A node that could be tested now."""

    node: str
    pool: str
    reason: str
    tested_at: datetime | None = None  # oldest burn-in among its GPUs; None where one GPU was never tested
    budgets: tuple[str, ...] = ()  # that select it


def by_urgency(candidates: Iterable[BurninCandidate]) -> list[BurninCandidate]:
    """Return the candidates, the most urgent first."""

    def urgency(candidate: BurninCandidate) -> tuple[bool, float, str]:
        tested_at = candidate.tested_at.timestamp() if candidate.tested_at else 0.0
        return candidate.reason != BurninReason.RETURN, tested_at, candidate.node

    return sorted(candidates, key=urgency)


class BurninCapacity:
    """How many more burn-ins may start, by pool and by the free slots of budgets."""

    def __init__(
        self, pools: Mapping[str, int], budgets: Mapping[str, int], running: Iterable[BurninCandidate]
    ) -> None:
        """`pools`: burn-ins allowed at a time in each; `budgets`: free slots of each; `running`: burn-ins that use
        them already."""
        self._pools = Counter(pools)
        self._budgets = Counter(budgets)
        for candidate in running:
            self._take(candidate)

    def take(self, candidate: BurninCandidate) -> bool:
        """Take capacity for the candidate if there is enough; return whether there was."""
        if not self.has(candidate):
            return False
        self._take(candidate)
        return True

    def has(self, candidate: BurninCandidate) -> bool:
        """Whether there is enough capacity for the candidate."""
        if self._pools[candidate.pool] <= 0:
            return False
        # A node that is out already holds its slots.
        return candidate.reason == BurninReason.RETURN or all(self._budgets[name] > 0 for name in candidate.budgets)

    def _take(self, candidate: BurninCandidate) -> None:
        self._pools[candidate.pool] -= 1
        if candidate.reason != BurninReason.RETURN:
            self._budgets.subtract(candidate.budgets)
