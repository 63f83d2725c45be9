"""Findings as the tracker stores them, between rounds and across restarts of the agent."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

import msgspec

from gpuhealth.model import causes
from gpuhealth.model.causes import Cause, Ended
from gpuhealth.model.finding import Finding
from gpuhealth.model.time import is_usable

MAX_ENDED = 256
"""Number of ended findings kept, the newest ones: a Node that cannot be written to may still name them."""


class TrackedFinding(msgspec.Struct):
    """One finding from first sight to clearing."""

    finding: Finding
    raised: bool
    boot_id: str
    clean_since: datetime | None = None
    recovery_seen: bool = False
    recalled: bool = False  # from the Node's record, not from an observation of this agent


class TrackerState(msgspec.Struct):
    """Stored between rounds and across restarts; `FindingTracker` works on it."""

    tracked: list[TrackedFinding] = []
    restored: datetime | None = None  # when a person last ran `gpuhealth restore` for the node
    last_complete: dict[str, datetime] = {}  # by monitor, when all of its essential checks were last made
    ended: list[Ended] = []  # newest last

    def is_sound(self) -> bool:
        """Whether all its times have a zone and can be calculated with, unlike those of a journal edited by hand."""
        times = [self.restored, *self.last_complete.values(), *(ended.time for ended in self.ended)]
        for tracked in self.tracked:
            times += [tracked.finding.first_seen, tracked.finding.last_seen, tracked.clean_since]
        return all(time is None or is_usable(time) for time in times)

    def shift(self, seconds: float) -> None:
        """Shifts every time after the wall clock was set, so that durations stay the same."""
        step = timedelta(seconds=seconds)
        for tracked in self.tracked:
            finding = tracked.finding
            tracked.finding = msgspec.structs.replace(
                finding, first_seen=finding.first_seen + step, last_seen=finding.last_seen + step
            )
            if tracked.clean_since is not None:
                tracked.clean_since += step
        self.last_complete = {monitor: when + step for monitor, when in self.last_complete.items()}
        self.ended[:] = [msgspec.structs.replace(ended, time=ended.time + step) for ended in self.ended]


def add_ended(ended: list[Ended], finding: Finding, now: datetime) -> None:
    """Stores that a finding has ended, and every code that it stood for."""
    over = {(code, finding.component) for code in causes.codes_of(finding)}
    kept = [earlier for earlier in ended if (earlier.code, earlier.component) not in over]
    ended[:] = [*kept, *(Ended(code, component, now) for code, component in sorted(over))][-MAX_ENDED:]


def is_remembered(
    cause: Cause, tracked: Iterable[TrackedFinding], out: Iterable[Finding], ended: Iterable[Ended]
) -> bool:
    """Whether the fate of a cause is known: tracked since then, found again, or ended.

    Only a finding in `out`, which keeps the node out of service, counts as found again. A reading that is harmless only
    because its baseline was lost is not an explanation.
    """
    known = any(
        finding.raised
        and causes.is_same(cause, finding.finding)
        and finding.finding.first_seen.replace(microsecond=0) <= cause.since
        for finding in tracked
    )
    again = any(causes.is_same(cause, finding) for finding in out)
    over = any(
        past.code == cause.code and causes.concerns(cause, past.component) and past.time >= cause.since
        for past in ended
    )
    return known or again or over
