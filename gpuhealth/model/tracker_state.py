"""What the tracker remembers of findings, between rounds and over a restart of the agent."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

import msgspec

from gpuhealth.model import causes
from gpuhealth.model.causes import Cause, Ended
from gpuhealth.model.finding import Finding

MAX_ENDED = 256
"""Findings that are over, of which the newest are remembered: a Node that cannot be written to still names them."""


class TrackedFinding(msgspec.Struct):
    """One finding on its way from seen to cleared."""

    finding: Finding
    raised: bool
    boot_id: str
    clean_since: datetime | None = None
    recovery_seen: bool = False
    recalled: bool = False  # from the Node's record: nobody remembers what was seen


class TrackerState(msgspec.Struct):
    """What is remembered between rounds and over a restart; `FindingTracker` works on it."""

    tracked: list[TrackedFinding] = []
    restored: datetime | None = None  # when a person last ran `gpuhealth restore` for the node
    last_complete: dict[str, datetime] = {}  # by monitor, when all of its essential checks were last made
    ended: list[Ended] = []  # the newest last

    def is_sound(self) -> bool:
        """Whether all its times have a zone: a journal that was edited by hand may have some without."""
        times = [self.restored, *self.last_complete.values(), *(ended.time for ended in self.ended)]
        for tracked in self.tracked:
            times += [tracked.finding.first_seen, tracked.finding.last_seen, tracked.clean_since]
        return all(time is None or time.tzinfo is not None for time in times)

    def shift(self, seconds: float) -> None:
        """Moves every time along after the wall clock was set, so that what has lasted has lasted as long as before."""
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
    """Remembers that a finding is over, and every code that it stood for."""
    over = {(code, finding.component) for code in causes.codes_of(finding)}
    kept = [earlier for earlier in ended if (earlier.code, earlier.component) not in over]
    ended[:] = [*kept, *(Ended(code, component, now) for code, component in sorted(over))][-MAX_ENDED:]


def is_remembered(
    cause: Cause, tracked: Iterable[TrackedFinding], out: Iterable[Finding], ended: Iterable[Ended]
) -> bool:
    """Whether it is known what became of a cause: it is tracked since then, found again, or over.

    Found again is what keeps the node out of service, as `out` does: a reading that has become harmless because what
    it is compared with was forgotten does not explain it.
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
