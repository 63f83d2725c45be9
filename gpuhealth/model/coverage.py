"""What the checks could measure, and when last: what they could not makes unknown, and is listed with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from gpuhealth import monitors as checks
from gpuhealth.model.finding import NotChecked, Outcome
from gpuhealth.model.missing import Missing, MissingReason
from gpuhealth.model.verdict import Coverage, NotCovered

Key = tuple[str, str]
"""Code and component."""


class Measured:
    """Of one node; `whole` is when every essential check last was measured, by us or by an agent before us."""

    def __init__(self, whole: datetime | None = None) -> None:
        self.whole = self._before = whole
        self._last: dict[Key, datetime] = {}
        self._unmeasured: dict[Key, Missing] = {}
        self._checked: set[str] = set()
        self._round: set[Key] = set()

    def shift(self, step: timedelta) -> None:
        """The clock was set by so much."""
        self.whole = self.whole and self.whole + step
        self._before = self._before and self._before + step
        self._last = {key: when + step for key, when in self._last.items()}

    def begin_round(self, outcomes: Sequence[Outcome], now: datetime) -> None:
        """What these outcomes of a whole round do not tell of is no longer covered."""
        if not any(isinstance(each, NotChecked) and checks.code(each.code).essential for each in outcomes):
            self.whole = now
        self._round = {(outcome.code, outcome.component) for outcome in outcomes}
        self._checked.clear()
        self._unmeasured.clear()

    def take(self, outcome: Outcome, now: datetime) -> None:
        """Notes whether it was measured."""
        key = (outcome.code, outcome.component)
        if isinstance(outcome, NotChecked):
            self._unmeasured[key] = outcome.reason
            return
        self._last[key] = now
        self._checked.add(outcome.code)
        self._unmeasured.pop(key, None)

    @property
    def unmeasured(self) -> dict[Key, Missing]:
        """What could not be checked in the last round, and why."""
        return dict(self._unmeasured)

    def last_measured(self) -> dict[str, datetime]:
        """By code, when it was last measured on the component that has waited longest."""
        oldest: dict[str, datetime] = {}
        for key in self._round & self._last.keys():
            oldest[key[0]] = min(self._last[key], oldest.get(key[0], self._last[key]))
        return oldest

    def is_looked_for(self, key: Key) -> bool:
        """Whether the last whole round had any outcome for it; before the first one everything is."""
        return key in self._round or not self._round

    def unknown(self, now: datetime, patience_seconds: float, excused: MissingReason | None) -> set[str]:
        """Components with an essential check that has not been measured for too long, or never, for any reason but
        one that is excused."""
        patience = timedelta(seconds=patience_seconds)

        def waited(key: Key) -> bool:
            last = self._last.get(key, self._before)
            return last is None or now - last >= patience

        return {
            component
            for (code, component), missing in self._unmeasured.items()
            if checks.code(code).essential and missing.reason is not excused and waited((code, component))
        }

    def coverage(self) -> Coverage:
        """What the last round has checked and what not, with the components that a reason is common to."""
        components: dict[tuple[str, str], list[str]] = {}
        for (code, component), reason in self._unmeasured.items():
            components.setdefault((code, str(reason)), []).append(component)
        return Coverage(
            checked=tuple(sorted(self._checked)),
            not_checked=tuple(
                NotCovered(code, f"{reason} ({', '.join(sorted(where))})")
                for (code, reason), where in sorted(components.items())
            ),
        )
