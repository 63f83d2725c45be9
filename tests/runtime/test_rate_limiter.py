"""The rate limiter: bursts, turns, and actions that are allowed now or not at all."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gpuhealth.runtime.rate_limiter import RateLimiter


def test_turns() -> None:
    """After the burst each waits for its turn; what comes together takes as many; idle time fills the burst again."""
    limiter = RateLimiter(4, 3)
    assert [limiter.reserve(100.0) <= 0 for _ in range(3)] == [True, True, True]
    assert [limiter.reserve(100.0), limiter.reserve(100.0, 2), limiter.reserve(100.0)] == [0.25, 0.5, 1.0]
    assert limiter.reserve(101.0) == 0.25
    assert [limiter.reserve(200.0) <= 0 for _ in range(4)] == [True, True, True, False]


def test_what_is_not_allowed_now_costs_nothing() -> None:
    """A refusal is no turn: the next one comes as if nobody had asked."""
    limiter = RateLimiter(1, 2)
    assert [limiter.try_take(100.0) for _ in range(4)] == [True, True, False, False]
    assert [limiter.try_take(101.0) for _ in range(2)] == [True, False]
    assert [limiter.try_take(200.0) for _ in range(3)] == [True, True, False]


@given(st.lists(st.integers(0, 40), max_size=60))
def test_never_more_than_the_rate(steps: list[int]) -> None:
    """In no interval more than the burst and what the rate allows; a rested limiter is as good as a new one."""
    limiter, now, taken = RateLimiter(0.25, 3), 0.0, []
    for step in steps:
        now += step / 4
        if limiter.is_rested(now):
            limiter = RateLimiter(0.25, 3)
        if limiter.try_take(now):
            taken.append(now)
    for index, first in enumerate(taken):
        for count, last in enumerate(taken[index:], 1):
            assert count <= 3 + (last - first) * 0.25
