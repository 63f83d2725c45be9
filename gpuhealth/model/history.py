"""State that checks keep between rounds: increases of counters, times of events, and how long conditions have held.

Pure data: callers pass the time, state survives a restart as JSON, and entries unused for long are dropped. The wall
clock may step, so a time in the future is ignored.
"""

from __future__ import annotations

import math
from typing import NewType

import msgspec

from gpuhealth.model.component import Component

KEEP_SECONDS = 7 * 86400.0
"""Entries that no check has used for this long are dropped: their mount, interface or pod is gone. Longer if the
settings have a longer window."""

Key = NewType("Key", str)
"""Names one counter, event or condition: see `key`."""


def key(what: str, component: Component, part: object = "") -> Key:
    """The key of an entry: what is counted, on which component, and on which part of it (a link, a cause)."""
    return Key(f"{what}/{component.id}/{part}" if part != "" else f"{what}/{component.id}")


class Increase(msgspec.Struct, frozen=True):
    """How much a counter grew within a window."""

    amount: int
    seconds: float  # the part of the window that has been observed


class _Counter(msgspec.Struct):
    began: float  # of observation, seconds since the epoch
    seen: float  # when the last value was taken
    last: int
    steps: list[tuple[float, int]] = []  # (time, increase), oldest first


class _Condition(msgspec.Struct):
    began: float | None  # when it began to hold; None while it does not
    seen: float  # when it was last checked


class History(msgspec.Struct):
    """State that the checks of one node keep between rounds."""

    counters: dict[str, _Counter] = {}
    events: dict[str, list[tuple[float, str]]] = {}  # by key: (time, detail), oldest first
    conditions: dict[str, _Condition] = {}

    def counter_increase(self, key: Key, value: int, now: float, window: float, first: int | None = None) -> Increase:
        """Takes a counter's value at `now`; returns how much it grew in the last `window` seconds.

        The first value shows no growth (`seconds` is then 0) unless `first` is the value to compare a new counter with.
        A value below the last one means that the counter restarted at 0 (driver reload, reset), as in Prometheus'
        rate(). Growth over a pause in observation longer than the window counts by the window's share of it, rounded
        up.
        """
        counter = self.counters.get(key)
        if counter is None:
            counter = self.counters[key] = _Counter(now, now, value if first is None else first)
        pause = now - counter.seen
        if value == counter.last and not counter.steps and pause >= 0:  # the usual case
            counter.seen = now
            return Increase(0, min(window, now - counter.began))
        grown = value - counter.last if value >= counter.last else value
        if pause > window:
            grown = math.ceil(grown * window / pause)
        if grown:
            counter.steps.append((now, grown))
        if counter.steps:
            counter.steps = [step for step in counter.steps if now - window < step[0] <= now]
        counter.began, counter.seen, counter.last = min(counter.began, now), now, value
        return Increase(sum(amount for _, amount in counter.steps), min(window, now - counter.began))

    def held_for(self, key: Key, holds: bool, now: float, seconds: float) -> bool:
        """Records whether a condition holds at `now`; returns whether it has held for `seconds` without a break.

        A condition that holds at the first observation counts as having held before: there is no contrary evidence, and
        a single round must be able to judge.
        """
        condition = self.conditions.get(key)
        if condition is None:
            condition = self.conditions[key] = _Condition(0.0 if holds else None, now)
        if not holds:
            condition.began = None
        elif condition.began is None:
            condition.began = now
        else:
            condition.began = min(now, condition.began)
        condition.seen = now
        return condition.began is not None and now - condition.began >= seconds

    def record_event(
        self, key: Key, now: float, window: float, detail: str = "", keep: int = 64
    ) -> list[tuple[float, str]]:
        """Adds an event; returns those of the last `window` seconds, at most the `keep` newest, oldest first."""
        events = self.events_within(key, now, window)
        events.append((now, detail))
        del events[:-keep]
        self.events[key] = events
        return events

    def events_within(self, key: Key, now: float, window: float) -> list[tuple[float, str]]:
        """The events of the last `window` seconds, oldest first."""
        return [event for event in self.events.get(key, []) if now - window < event[0] <= now]

    def forget_events_since(self, start: float) -> None:
        """Drops events from `start` on (seconds since the epoch), so that re-reading a log counts none twice."""
        self.events = {key: [event for event in events if event[0] < start] for key, events in self.events.items()}

    def prune(self, now: float, longest_window: float = 0.0) -> None:
        """Drops entries unused for KEEP_SECONDS and older than the longest window of any check."""
        oldest = now - max(KEEP_SECONDS, longest_window)
        self.counters = {key: counter for key, counter in self.counters.items() if counter.seen >= oldest}
        self.conditions = {key: condition for key, condition in self.conditions.items() if condition.seen >= oldest}
        self.events = {key: events for key, events in self.events.items() if events and events[-1][0] >= oldest}

    def shift(self, seconds: float) -> None:
        """Shifts every time by the seconds by which the wall clock was set."""
        for counter in self.counters.values():
            counter.began += seconds
            counter.seen += seconds
            counter.steps = [(when + seconds, amount) for when, amount in counter.steps]
        self.events = {key: [(when + seconds, text) for when, text in events] for key, events in self.events.items()}
        for condition in self.conditions.values():
            condition.seen += seconds
            if condition.began is not None:
                condition.began += seconds
