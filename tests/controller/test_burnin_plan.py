"""The choice of nodes for the next burn-ins."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from gpuhealth.api.report import BurninReason
from gpuhealth.controller.burnin_plan import BurninCandidate, BurninCapacity, by_urgency

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def candidate(node: str, days_ago: float | None = None, pool: str = "p", **other: object) -> BurninCandidate:
    """A candidate that was tested so many days ago, or never."""
    tested_at = None if days_ago is None else NOW - timedelta(days=days_ago)
    fields = {"node": node, "pool": pool, "reason": BurninReason.PERIODIC, "tested_at": tested_at, **other}
    return BurninCandidate(**fields)  # type: ignore[arg-type]


def test_order_of_candidates() -> None:
    """Before return first, then never tested, then the oldest test; ties are ordered by name."""
    given_ = [
        candidate("b", 8),
        candidate("a", 8),
        candidate("c", 30),
        candidate("new"),
        candidate("r", 1, reason=BurninReason.RETURN),
    ]
    assert [each.node for each in by_urgency(given_)] == ["r", "new", "c", "a", "b"]


def test_capacity_of_a_pool() -> None:
    """Running burn-ins count, in their own pool only."""
    room = BurninCapacity({"p": 2, "q": 1}, {}, [candidate("running")])
    assert room.take(candidate("a"))
    assert not room.take(candidate("b"))
    assert room.take(candidate("c", pool="q"))
    assert not room.has(candidate("d", pool="unheard of"))


def test_a_test_counts_in_a_budget_as_if_it_failed() -> None:
    """With one free slot one node is tested; a node that is out of service holds its slot already."""
    room = BurninCapacity({"p": 9}, {"rack": 1, "all": 5}, [])
    assert room.take(candidate("a", budgets=("rack", "all")))
    assert not room.take(candidate("b", budgets=("rack", "all")))
    assert room.take(candidate("c", budgets=("all",)))
    assert room.take(candidate("d", reason=BurninReason.RETURN, budgets=("rack",)))
    full = BurninCapacity({"p": 9}, {"rack": 1}, [candidate("x", budgets=("rack",))])
    assert not full.has(candidate("y", budgets=("rack",)))


@given(
    st.lists(st.tuples(st.sampled_from("pq"), st.sets(st.sampled_from("bcd")), st.booleans()), max_size=40),
    st.dictionaries(st.sampled_from("pq"), st.integers(0, 6)),
    st.dictionaries(st.sampled_from("bcd"), st.integers(0, 6)),
)
def test_no_limit_is_exceeded(
    drawn: list[tuple[str, set[str], bool]], pools: dict[str, int], places: dict[str, int]
) -> None:
    """With any candidates, neither a pool nor a budget has more burn-ins than its limit."""
    room = BurninCapacity(pools, places, [])
    asking = [
        candidate(
            str(number),
            pool=pool,
            budgets=tuple(budgets),
            reason=BurninReason.RETURN if back else BurninReason.PERIODIC,
        )
        for number, (pool, budgets, back) in enumerate(drawn)
    ]
    begun = [each for each in asking if room.take(each)]
    for pool in "pq":
        assert sum(each.pool == pool for each in begun) <= pools.get(pool, 0)
    for budget in "bcd":
        assert sum(budget in each.budgets and each.reason == BurninReason.PERIODIC for each in begun) <= places.get(
            budget, 0
        )
