"""What the checks could measure, and when last: what they could not makes unknown, and is listed with the reason."""

from __future__ import annotations

from datetime import datetime, timedelta

from gpuhealth import checks
from gpuhealth.model import Coverage, Missing, MissingReason, NotChecked, NotCovered, Outcome

Key = tuple[str, str]
"""Code and component."""


class Measured:
    """Of one node, since `started`."""

    def __init__(self, started: datetime) -> None:
        self._started = started
        self._last: dict[Key, datetime] = {}
        self._unmeasured: dict[Key, Missing] = {}
        self._checked: set[str] = set()

    def shift(self, step: timedelta) -> None:
        """The clock was set by so much."""
        self._started += step
        self._last = {key: when + step for key, when in self._last.items()}

    def begin_round(self) -> None:
        """What the round that follows does not measure is no longer covered."""
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
        for (code, _), when in self._last.items():
            oldest[code] = min(when, oldest.get(code, when))
        return oldest

    def unknown(self, now: datetime, patience_seconds: float, excused: MissingReason | None) -> set[str]:
        """Components with an essential check that has not been measured for too long, for any but one reason."""
        return {
            component
            for (code, component), missing in self._unmeasured.items()
            if checks.code(code).essential
            and missing.reason is not excused
            and (now - self._last.get((code, component), self._started)).total_seconds() >= patience_seconds
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
