"""Changes over time: counters, conditions and events."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from gpuhealth.model.history import History, Increase


def test_first_value_says_nothing() -> None:
    """The first value of a counter is no growth, and no time has been observed."""
    assert Increase(0, 0.0) == History().increase("k", 1000, 0.0, 60.0)


def test_first_value_against_a_known_beginning() -> None:
    """A counter that begins at 0 has grown by all of its first value."""
    assert Increase(7, 0.0) == History().increase("k", 7, 0.0, 60.0, first=0)


def test_growth_within_the_window() -> None:
    """Growth counts for exactly one window."""
    history = History()
    history.increase("k", 0, 0.0, 60.0)
    assert Increase(5, 10.0) == history.increase("k", 5, 10.0, 60.0)
    assert Increase(5, 60.0) == history.increase("k", 5, 69.0, 60.0)
    assert Increase(0, 60.0) == history.increase("k", 5, 70.0, 60.0)


def test_reset_counts_from_zero() -> None:
    """A counter below its last value has begun again at 0."""
    history = History()
    history.increase("k", 100, 0.0, 60.0)
    assert history.increase("k", 3, 10.0, 60.0).amount == 3


def test_pause_is_not_a_burst() -> None:
    """Growth over an hour without a look is not taken for growth of the last minute."""
    history = History()
    history.increase("k", 0, 0.0, 60.0)
    assert history.increase("k", 100, 3600.0, 60.0).amount == 2


def test_clock_steps_back() -> None:
    """After a step back of the clock the counter is observed on, and what lies in the future is forgotten."""
    history = History()
    history.increase("k", 0, 10_000.0, 60.0)
    history.increase("k", 50, 10_010.0, 60.0)
    assert history.increase("k", 50, 5_000.0, 60.0).amount == 0
    assert Increase(1, 10.0) == history.increase("k", 51, 5_010.0, 60.0)


@given(st.lists(st.tuples(st.integers(0, 10**6), st.floats(-100, 1000)), min_size=1, max_size=30))
def test_growth_is_never_negative(steps: list[tuple[int, float]]) -> None:
    """Whatever counter and clock do, growth and observed time are within their bounds."""
    history, now = History(), 1e9
    for value, seconds in steps:
        now += seconds
        grown = history.increase("k", value, now, 60.0)
        assert grown.amount >= 0
        assert 0.0 <= grown.seconds <= 60.0


def test_condition_lasts() -> None:
    """A condition lasts from when it began to hold, and begins again after a break."""
    history = History()
    assert not history.lasts("k", False, 0.0, 30.0)
    assert [history.lasts("k", True, now, 30.0) for now in (10.0, 39.0, 40.0)] == [False, False, True]
    assert not history.lasts("k", False, 50.0, 30.0)
    assert not history.lasts("k", True, 60.0, 30.0)


def test_condition_at_the_first_look() -> None:
    """What holds at the very first look has held: one look must be able to judge."""
    assert History().lasts("k", True, 1e9, 30.0)


def test_survives_as_json() -> None:
    """The memory is the same after a restart."""
    history = History()
    history.increase("k", 1, 0.0, 60.0)
    history.increase("k", 2, 1.0, 60.0)
    history.mark("m", 1.0, 60.0, "detail")
    history.lasts("s", True, 5.0, 1.0)
    history.baseline.gpus["GPU-0"] = "0000:01:00.0"
    again = msgspec.json.decode(msgspec.json.encode(history), type=History)
    assert history == again
    assert again.increase("k", 2, 2.0, 60.0).amount == 1
