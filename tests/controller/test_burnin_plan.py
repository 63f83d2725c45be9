"""Which nodes are tested next."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from gpuhealth.controller.burnin_plan import PERIODIC, RETURN, BurninCandidate, BurninCapacity, by_urgency

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def candidate(node: str, days_ago: float | None = None, pool: str = "p", **other: object) -> BurninCandidate:
    """One that was tested so long ago, or never."""
    tested_at = None if days_ago is None else NOW - timedelta(days=days_ago)
    fields = {"node": node, "pool": pool, "reason": PERIODIC, "tested_at": tested_at, **other}
    return BurninCandidate(**fields)  # type: ignore[arg-type]


def test_who_waits_to_return_is_first_and_then_the_longest_untested() -> None:
    """Return before never tested before longest ago; a draw is settled by name."""
    given_ = [
        candidate("b", 8),
        candidate("a", 8),
        candidate("c", 30),
        candidate("new"),
        candidate("r", 1, reason=RETURN),
    ]
    assert [each.node for each in by_urgency(given_)] == ["r", "new", "c", "a", "b"]


def test_a_pool_has_room_for_so_many() -> None:
    """What is under way counts, in its own pool only."""
    room = BurninCapacity({"p": 2, "q": 1}, {}, [candidate("running")])
    assert room.take(candidate("a"))
    assert not room.take(candidate("b"))
    assert room.take(candidate("c", pool="q"))
    assert not room.has(candidate("d", pool="unheard of"))


def test_a_test_counts_in_a_budget_as_if_it_failed() -> None:
    """With one free place one node is tested; one that is out already has its place."""
    room = BurninCapacity({"p": 9}, {"rack": 1, "all": 5}, [])
    assert room.take(candidate("a", budgets=("rack", "all")))
    assert not room.take(candidate("b", budgets=("rack", "all")))
    assert room.take(candidate("c", budgets=("all",)))
    assert room.take(candidate("d", reason=RETURN, budgets=("rack",)))
    full = BurninCapacity({"p": 9}, {"rack": 1}, [candidate("x", budgets=("rack",))])
    assert not full.has(candidate("y", budgets=("rack",)))


@given(
    st.lists(st.tuples(st.sampled_from("pq"), st.sets(st.sampled_from("bcd")), st.booleans()), max_size=40),
    st.dictionaries(st.sampled_from("pq"), st.integers(0, 6)),
    st.dictionaries(st.sampled_from("bcd"), st.integers(0, 6)),
)
def test_no_draw_goes_over_a_limit(
    drawn: list[tuple[str, set[str], bool]], pools: dict[str, int], places: dict[str, int]
) -> None:
    """Whatever asks, no pool has more tests and no budget more of them than it may."""
    room = BurninCapacity(pools, places, [])
    asking = [
        candidate(str(number), pool=pool, budgets=tuple(budgets), reason=RETURN if back else PERIODIC)
        for number, (pool, budgets, back) in enumerate(drawn)
    ]
    begun = [each for each in asking if room.take(each)]
    for pool in "pq":
        assert sum(each.pool == pool for each in begun) <= pools.get(pool, 0)
    for budget in "bcd":
        assert sum(budget in each.budgets and each.reason == PERIODIC for each in begun) <= places.get(budget, 0)
