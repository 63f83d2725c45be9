"""Which checks could be made in the last rounds, and when each was last made."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from gpuhealth.model.codes import CODES
from gpuhealth.model.component import Component
from gpuhealth.model.finding import NotChecked, Outcome
from gpuhealth.model.missing import Missing, MissingReason
from gpuhealth.model.verdict import Coverage, NotCovered

Key = tuple[str, Component]
"""Finding code and component."""


class CoverageTracker:
    """The coverage of one node. Each monitor has its own rounds, and new outcomes replace those of its last round."""

    def __init__(self, last_complete: dict[str, datetime] | None = None) -> None:
        """`last_complete` is when an earlier agent had last made every essential check, by source."""
        self.last_complete = dict(last_complete or {})
        self._before = dict(self.last_complete)
        self._last: dict[Key, datetime] = {}
        self._unmeasured: dict[Key, Missing] = {}
        self._checked: dict[str, set[str]] = {}  # by source
        self._rounds: dict[str, set[Key]] = {}  # by source

    def shift(self, step: timedelta) -> None:
        """Shifts every time after the wall clock was set."""
        self.last_complete = {source: when + step for source, when in self.last_complete.items()}
        self._before = {source: when + step for source, when in self._before.items()}
        self._last = {key: when + step for key, when in self._last.items()}

    def begin_round(self, source: str, outcomes: Sequence[Outcome], now: datetime) -> None:
        """Starts a source's new round: anything without an outcome in it is no longer covered by this source."""
        for key in self._rounds.get(source, set()):
            self._unmeasured.pop(key, None)
        self._rounds[source] = {(outcome.code, outcome.component) for outcome in outcomes}
        self._checked[source] = {outcome.code for outcome in outcomes if not isinstance(outcome, NotChecked)}
        if not any(isinstance(outcome, NotChecked) and CODES.get(outcome.code).essential for outcome in outcomes):
            self.last_complete[source] = now

    def add(self, outcome: Outcome, now: datetime) -> None:
        """Records whether the check behind an outcome could be made."""
        key = (outcome.code, outcome.component)
        if isinstance(outcome, NotChecked):
            self._unmeasured[key] = outcome.reason
            return
        self._last[key] = now
        self._unmeasured.pop(key, None)

    @property
    def unmeasured(self) -> dict[Key, Missing]:
        """Checks that could not be made in the last rounds, and why."""
        return dict(self._unmeasured)

    def last_measured(self) -> dict[str, datetime]:
        """By code, the time of the last measurement on the component measured longest ago."""
        oldest: dict[str, datetime] = {}
        for keys in self._rounds.values():
            for key in keys & self._last.keys():
                oldest[key[0]] = min(self._last[key], oldest.get(key[0], self._last[key]))
        return oldest

    def components(self) -> set[Component]:
        """Components with any outcome in the last rounds."""
        return {component for keys in self._rounds.values() for _, component in keys}

    def is_looked_for(self, key: Key) -> bool:
        """Whether the last rounds had any outcome for the key; true for every key before the first round."""
        return not self._rounds or any(key in keys for keys in self._rounds.values())

    def unknown(self, now: datetime, patience_seconds: float, excused: MissingReason | None) -> set[Component]:
        """Components with an essential check that has not been made for too long, or never.

        A missing check with an excused reason, such as a driver released on request, makes nothing unknown.
        """
        patience = timedelta(seconds=patience_seconds)
        before = {key: self._before.get(source) for source, keys in self._rounds.items() for key in keys}

        def is_overdue(key: Key) -> bool:
            last = self._last.get(key, before.get(key))
            return last is None or now - last >= patience

        return {
            component
            for (code, component), missing in self._unmeasured.items()
            if CODES.get(code).essential and missing.reason is not excused and is_overdue((code, component))
        }

    def coverage(self) -> Coverage:
        """Checks that were made in the last rounds, and those that could not be."""
        return Coverage(
            checked=tuple(sorted(set().union(*self._checked.values()))),
            not_checked=tuple(
                NotCovered(code, component, missing.reason, missing.detail)
                for (code, component), missing in sorted(self._unmeasured.items())
            ),
        )
