"""What the checks remember between rounds: counters as changes over time, event times, and the node's baseline.

Pure data: it is given the time, it survives a restart as JSON, and it is bounded by what the checks ask of it.
"""

from __future__ import annotations

import msgspec


class Increase(msgspec.Struct, frozen=True):
    """How much a counter grew within a window."""

    amount: int
    seconds: float  # the part of the window that has been observed


class _Counter(msgspec.Struct):
    began: float  # of observation, seconds since the epoch
    last: int
    steps: list[tuple[float, int]] = []  # (time, increase), oldest first


class Baseline(msgspec.Struct):
    """What the node had when it was last seen whole."""

    gpus: dict[str, str] = {}  # uuid -> PCI address
    active_links: dict[str, list[int]] = {}  # uuid -> NVLinks that have been active
    ecc: dict[str, bool] = {}  # uuid -> ECC was on
    models: dict[str, str] = {}  # uuid -> name


class History(msgspec.Struct):
    """The memory of one node."""

    baseline: Baseline = msgspec.field(default_factory=Baseline)
    counters: dict[str, _Counter] = {}
    marks: dict[str, list[tuple[float, str]]] = {}  # event key -> (time, detail), oldest first

    def increase(self, key: str, value: int, now: float, window: float) -> Increase:
        """Takes a counter's value at `now` and says how much it grew in the last `window` seconds.

        The first value ever says nothing about growth: `seconds` is then 0. A value below the last one is a counter
        that began again at 0 (driver reload, reset), as Prometheus' rate() has it.
        """
        counter = self.counters.get(key)
        if counter is None:
            self.counters[key] = _Counter(began=now, last=value)
            return Increase(0, 0.0)
        grown = value - counter.last if value >= counter.last else value
        if grown:
            counter.steps.append((now, grown))
            counter.last = value
        elif value != counter.last:
            counter.last = value
        oldest = now - window
        while counter.steps and counter.steps[0][0] < oldest:
            counter.steps.pop(0)
        return Increase(sum(amount for _, amount in counter.steps), min(window, max(0.0, now - counter.began)))

    def mark(self, key: str, now: float, window: float, detail: str = "", keep: int = 64) -> list[tuple[float, str]]:
        """Notes an event and returns those of the last `window` seconds, at most the `keep` newest."""
        marks = self.recent(key, now, window)
        marks.append((now, detail))
        del marks[:-keep]
        self.marks[key] = marks
        return marks

    def recent(self, key: str, now: float, window: float) -> list[tuple[float, str]]:
        """The events of the last `window` seconds, oldest first."""
        return [mark for mark in self.marks.get(key, []) if now - window <= mark[0] <= now]
