"""Changes over time: counters, conditions and events."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from testing.findings import GPU

from gpuhealth.model.component import gpu
from gpuhealth.model.history import KEEP_SECONDS, History, Increase, key

K = key("crc", GPU)


def remembering(now: float) -> History:
    """A memory in which something of every sort was last seen at this time."""
    history = History()
    history.counter_increase(K, 1, now - 1.0, 60.0)
    history.counter_increase(K, 2, now, 60.0)
    history.record_event(K, now, 60.0, "detail")
    history.held_for(K, False, now, 1.0)
    return history


def test_first_value_says_nothing() -> None:
    """The first value of a counter is no growth, and no time has been observed."""
    assert Increase(0, 0.0) == History().counter_increase(K, 1000, 0.0, 60.0)


def test_first_value_against_a_known_beginning() -> None:
    """A counter that begins at 0 has grown by all of its first value."""
    assert Increase(7, 0.0) == History().counter_increase(K, 7, 0.0, 60.0, first=0)


def test_growth_within_the_window() -> None:
    """Growth counts for exactly one window."""
    history = History()
    history.counter_increase(K, 0, 0.0, 60.0)
    assert Increase(5, 10.0) == history.counter_increase(K, 5, 10.0, 60.0)
    assert Increase(5, 60.0) == history.counter_increase(K, 5, 69.0, 60.0)
    assert Increase(0, 60.0) == history.counter_increase(K, 5, 70.0, 60.0)


def test_reset_counts_from_zero() -> None:
    """A counter below its last value has begun again at 0."""
    history = History()
    history.counter_increase(K, 100, 0.0, 60.0)
    assert history.counter_increase(K, 3, 10.0, 60.0).amount == 3


def test_pause_is_not_a_burst() -> None:
    """Growth over an hour without a look is not taken for growth of the last minute."""
    history = History()
    history.counter_increase(K, 0, 0.0, 60.0)
    assert history.counter_increase(K, 100, 3600.0, 60.0).amount == 2


def test_clock_steps_back() -> None:
    """After a step back of the clock the counter is observed on, and what lies in the future is forgotten."""
    history = History()
    history.counter_increase(K, 0, 10_000.0, 60.0)
    history.counter_increase(K, 50, 10_010.0, 60.0)
    assert history.counter_increase(K, 50, 5_000.0, 60.0).amount == 0
    assert Increase(1, 10.0) == history.counter_increase(K, 51, 5_010.0, 60.0)


@given(st.lists(st.tuples(st.integers(0, 10**6), st.floats(-100, 1000)), min_size=1, max_size=30))
def test_growth_is_never_negative(steps: list[tuple[int, float]]) -> None:
    """Whatever counter and clock do, growth and observed time are within their bounds."""
    history, now = History(), 1e9
    for value, seconds in steps:
        now += seconds
        grown = history.counter_increase(K, value, now, 60.0)
        assert grown.amount >= 0
        assert 0.0 <= grown.seconds <= 60.0


def test_condition_lasts() -> None:
    """A condition lasts from when it began to hold, and begins again after a break."""
    history = History()
    assert not history.held_for(K, False, 0.0, 30.0)
    assert [history.held_for(K, True, now, 30.0) for now in (10.0, 39.0, 40.0)] == [False, False, True]
    assert not history.held_for(K, False, 50.0, 30.0)
    assert not history.held_for(K, True, 60.0, 30.0)


def test_condition_at_the_first_look() -> None:
    """What holds at the very first look has held: one look must be able to judge."""
    assert History().held_for(K, True, 1e9, 30.0)


def test_events_within_the_window() -> None:
    """An event counts for exactly one window, with its detail; of many the newest are kept, and of the future none."""
    history = History()
    for now in (0.0, 10.0, 20.0):
        history.record_event(K, now, 15.0, f"at {now:g}")
    assert history.events_within(K, 24.0, 15.0) == [(10.0, "at 10"), (20.0, "at 20")]
    assert history.events_within(K, 25.0, 15.0) == [(20.0, "at 20")]
    assert history.events_within(K, 19.0, 15.0) == [(10.0, "at 10")]
    assert history.events_within(key("other", GPU), 24.0, 15.0) == []
    assert [history.record_event(K, now, 100.0, keep=2)[0][0] for now in (30.0, 40.0)] == [20.0, 30.0]


def test_survives_as_json() -> None:
    """The memory is the same after a restart."""
    history = remembering(1.0)
    history.held_for(K, True, 5.0, 1.0)
    again = msgspec.json.decode(msgspec.json.encode(history), type=History)
    assert history == again
    assert again.counter_increase(K, 2, 2.0, 60.0).amount == 1


def test_the_clock_was_set() -> None:
    """What has lasted or happened so long ago still has, whatever the wall clock was set to."""
    history = remembering(1.0)
    assert not history.held_for(K, True, 1.0, 30.0)
    for step in (1e8, -2e8):
        history.shift(step)
    now = 1.0 - 1e8
    assert history.counter_increase(K, 2, now + 1.0, 60.0).amount == 1
    assert history.events_within(K, now + 59.0, 60.0) == [(now, "detail")]
    assert [history.held_for(K, True, now + seconds, 30.0) for seconds in (29.0, 30.0)] == [False, True]


def test_what_no_check_uses_any_more_is_dropped() -> None:
    """After KEEP_SECONDS: a mount or an interface that is gone must not grow the journal for ever."""
    history = remembering(1.0)
    history.prune(1.0 + KEEP_SECONDS)
    assert (len(history.counters), len(history.events), len(history.conditions)) == (1, 1, 1)
    history.prune(1.1 + KEEP_SECONDS)
    assert history == History()


def test_what_is_in_use_is_not_dropped() -> None:
    """However seldom it changes: a counter that stands still and a condition are in use at every look."""
    history = remembering(1.0)
    again = key("again", GPU)
    for day in range(1, 30):
        now = day * 86400.0
        history.counter_increase(K, 2, now, 60.0)
        history.held_for(K, False, now, 30.0)
        history.record_event(again, now, 60.0)
        history.prune(now)
    assert (list(history.counters), list(history.conditions)) == ([K], [K])
    assert list(history.events) == [again], "that of the first day has not come again"
    assert not history.held_for(K, True, 29 * 86400.0 + 29.0, 30.0), "it has been seen not to hold"


def test_what_is_dropped_begins_anew() -> None:
    """A counter that comes back after it was dropped has shown no growth yet, and no event of then counts."""
    history = remembering(1.0)
    back = 2.0 + 2 * KEEP_SECONDS
    history.prune(back)
    assert Increase(0, 0.0) == history.counter_increase(K, 1000, back, 60.0)
    assert history.events_within(K, back, 60.0 + back) == []


def test_a_log_that_is_read_again_counts_nothing_twice() -> None:
    """Events from the time on at which reading begins are forgotten, whatever the key, and those before it are kept."""
    history = History()
    others = key("other", GPU)
    for now in (10.0, 20.0, 30.0):
        history.record_event(K, now, 100.0)
        history.record_event(others, now, 100.0, "detail")
    counted = history.counter_increase(K, 5, 30.0, 60.0)
    history.forget_events_since(20.0)
    assert history.events_within(K, 40.0, 100.0) == [(10.0, "")]
    assert history.events_within(others, 40.0, 100.0) == [(10.0, "detail")]
    assert history.counter_increase(K, 5, 30.0, 60.0) == counted, "counters are read, not counted"


@given(st.lists(st.floats(0, 100), max_size=20), st.floats(-10, 110))
def test_reading_again_from_anywhere(times: list[float], start: float) -> None:
    """Forgetting from some time on and recording the same events once more leaves exactly what there was."""
    times.sort()
    history = History()
    for now in times:
        history.record_event(K, now, 1000.0)
    before = history.events_within(K, 100.0, 1000.0)
    history.forget_events_since(start)
    for now in times:
        if now >= start:
            history.record_event(K, now, 1000.0)
    assert history.events_within(K, 100.0, 1000.0) == before


def test_keys() -> None:
    """What is counted, the component and the part of it make different keys; a part that is 0 is a part."""
    other = gpu("GPU-2")
    keys = [
        key("xid", GPU),
        key("xid", other),
        key("aer", GPU),
        key("crc", GPU, 0),
        key("crc", GPU, 1),
        key("crc", GPU),
    ]
    assert len(set(keys)) == len(keys)
    assert key("crc", GPU, 0) == key("crc", GPU, "0")
