"""What checks remember between rounds: increases of counters, times of events, and how long conditions have held.

Pure data: the time is given, it survives a restart as JSON, and entries that no check has used for long are dropped.
The wall clock may step: a time in the future is not believed.
"""

from __future__ import annotations

import math
from typing import NewType

import msgspec

from gpuhealth.model.component import Component

KEEP_SECONDS = 7 * 86400.0
"""An entry that no check has used for so long is dropped: the mount, interface or pod that it was about is gone."""

Key = NewType("Key", str)
"""Names one counter, event or condition: see `key`."""


def key(what: str, component: Component, part: object = "") -> Key:
    """The key of a check's memory: what is counted, on which component, and of which part of it (a link, a cause)."""
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
    seen: float  # when it was last looked at


class History(msgspec.Struct):
    """What the checks of one node remember."""

    counters: dict[str, _Counter] = {}
    events: dict[str, list[tuple[float, str]]] = {}  # by key: (time, detail), oldest first
    conditions: dict[str, _Condition] = {}

    def counter_increase(self, key: Key, value: int, now: float, window: float, first: int | None = None) -> Increase:
        """Takes a counter's value at `now`; returns how much it grew in the last `window` seconds.

        The first value ever says nothing about growth (`seconds` is then 0), unless `first` names the value that a
        counter nobody has looked at yet is to be compared with. A value below the last one is a counter that began
        again at 0 (driver reload, reset), as Prometheus' rate() has it. Growth over a pause in observation that is
        longer than the window counts by the window's share of it, rounded up.
        """
        counter = self.counters.get(key)
        if counter is None:
            counter = self.counters[key] = _Counter(now, now, value if first is None else first)
        pause = now - counter.seen
        if value == counter.last and not counter.steps and pause >= 0:  # as nearly always
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
        """Takes whether a condition holds at `now`; returns whether it has held for `seconds` without a break.

        One that holds when it is looked at for the first time ever counts as having held before: nothing shows
        otherwise, and a single look must be able to judge.
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
        """Drops events from `start` on (seconds since the epoch), so that reading a log again counts none twice."""
        self.events = {key: [event for event in events if event[0] < start] for key, events in self.events.items()}

    def prune(self, now: float) -> None:
        """Drops what no check has used for KEEP_SECONDS."""
        oldest = now - KEEP_SECONDS
        self.counters = {key: counter for key, counter in self.counters.items() if counter.seen >= oldest}
        self.conditions = {key: condition for key, condition in self.conditions.items() if condition.seen >= oldest}
        self.events = {key: events for key, events in self.events.items() if events and events[-1][0] >= oldest}

    def shift(self, seconds: float) -> None:
        """Moves every time along after the wall clock was set by so many seconds."""
        for counter in self.counters.values():
            counter.began += seconds
            counter.seen += seconds
            counter.steps = [(when + seconds, amount) for when, amount in counter.steps]
        self.events = {key: [(when + seconds, text) for when, text in events] for key, events in self.events.items()}
        for condition in self.conditions.values():
            condition.seen += seconds
            if condition.began is not None:
                condition.began += seconds
