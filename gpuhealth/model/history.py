"""What the checks remember between rounds: counters as changes over time, event times, and the node's baseline.

Pure data: it is given the time, it survives a restart as JSON, and it is bounded by what the checks ask of it.
The clock may step: nothing that lies in the future is believed.
"""

from __future__ import annotations

import math

import msgspec


class Increase(msgspec.Struct, frozen=True):
    """How much a counter grew within a window."""

    amount: int
    seconds: float  # the part of the window that has been observed


class _Counter(msgspec.Struct):
    began: float  # of observation, seconds since the epoch
    seen: float  # when the last value was taken
    last: int
    steps: list[tuple[float, int]] = []  # (time, increase), oldest first


class Baseline(msgspec.Struct):
    """What the node had when it was last seen whole."""

    gpus: dict[str, str] = {}  # uuid -> PCI address
    counted: int = 0  # GPUs that NVML has listed at once, those among them that never told their uuid
    active_links: dict[str, list[int]] = {}  # uuid -> NVLinks that have been active
    ecc: dict[str, bool] = {}  # uuid -> ECC was on
    models: dict[str, str] = {}  # uuid -> name


class History(msgspec.Struct):
    """The memory of one node."""

    baseline: Baseline = msgspec.field(default_factory=Baseline)
    counters: dict[str, _Counter] = {}
    marks: dict[str, list[tuple[float, str]]] = {}  # event key -> (time, detail), oldest first
    since: dict[str, float | None] = {}  # condition -> when it began to hold, None while it does not

    def increase(self, key: str, value: int, now: float, window: float, first: int | None = None) -> Increase:
        """Takes a counter's value at `now` and says how much it grew in the last `window` seconds.

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

    def lasts(self, key: str, holds: bool, now: float, seconds: float) -> bool:
        """Takes whether a condition holds at `now` and says whether it has for `seconds` without a break.

        One that holds when it is looked at for the first time ever is taken to have held before: there is nothing to
        tell otherwise, and a single look must be able to judge.
        """
        began = self.since.get(key, 0.0) if holds else None
        if holds:
            began = now if began is None else min(now, began)
        self.since[key] = began
        return began is not None and now - began >= seconds

    def mark(self, key: str, now: float, window: float, detail: str = "", keep: int = 64) -> list[tuple[float, str]]:
        """Notes an event and returns those of the last `window` seconds, at most the `keep` newest."""
        marks = self.recent(key, now, window)
        marks.append((now, detail))
        del marks[:-keep]
        self.marks[key] = marks
        return marks

    def recent(self, key: str, now: float, window: float) -> list[tuple[float, str]]:
        """The events of the last `window` seconds, oldest first."""
        return [mark for mark in self.marks.get(key, []) if now - window < mark[0] <= now]

    def shift(self, seconds: float) -> None:
        """The clock was set: moves every time along."""
        for counter in self.counters.values():
            counter.began += seconds
            counter.seen += seconds
            counter.steps = [(when + seconds, amount) for when, amount in counter.steps]
        self.marks = {key: [(when + seconds, text) for when, text in marks] for key, marks in self.marks.items()}
        self.since = {key: began and began + seconds for key, began in self.since.items()}
