"""What is remembered of a node's findings between rounds and over a restart of its agent."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

import msgspec

from gpuhealth.model import causes
from gpuhealth.model.causes import Cause, Ended
from gpuhealth.model.finding import Finding

MOST_ENDED = 256
"""Findings that are over, of which the newest are remembered: a Node that cannot be written to still names them."""


class Tracked(msgspec.Struct):
    """One finding on its way from seen to cleared."""

    finding: Finding
    raised: bool
    boot_id: str
    clean_since: datetime | None = None
    recovery_seen: bool = False
    recalled: bool = False  # from the Node's record: nobody remembers what was seen


class Ledger(msgspec.Struct):
    """What is remembered between rounds and over a restart; `Findings` works on it."""

    tracked: list[Tracked] = []
    restored: datetime | None = None  # when a person last declared the node well
    measured: datetime | None = None  # when every essential check last was
    ended: list[Ended] = []  # the newest last

    def is_sound(self) -> bool:
        """Whether its times can be compared with others: a journal that was edited may have some without a zone."""
        times = [self.restored, self.measured, *(each.time for each in self.ended)]
        for tracked in self.tracked:
            times += [tracked.finding.first_seen, tracked.finding.last_seen, tracked.clean_since]
        return all(time is None or time.tzinfo is not None for time in times)

    def shift(self, seconds: float) -> None:
        """The clock was set: moves every time along, so that what has lasted has lasted as long as before."""
        step = timedelta(seconds=seconds)
        for tracked in self.tracked:
            found = tracked.finding
            tracked.finding = msgspec.structs.replace(
                found, first_seen=found.first_seen + step, last_seen=found.last_seen + step
            )
            tracked.clean_since = tracked.clean_since and tracked.clean_since + step
        self.measured = self.measured and self.measured + step
        self.ended[:] = [msgspec.structs.replace(each, time=each.time + step) for each in self.ended]


def note_end(ended: list[Ended], finding: Finding, now: datetime) -> None:
    """Remembers that a finding is over, and what it stood for."""
    over = {(code, finding.gpu) for code in causes.named(finding)}
    kept = [each for each in ended if (each.code, each.gpu) not in over]
    ended[:] = [*kept, *(Ended(code, gpu, now) for code, gpu in sorted(over))][-MOST_ENDED:]


def is_remembered(cause: Cause, tracked: Iterable[Tracked], out: Iterable[Finding], ended: Iterable[Ended]) -> bool:
    """Whether it is known what became of a cause: it is tracked since then, found again, or over.

    Found again is what keeps the node out of service, as `out` does: a reading that has become harmless because what
    it is compared with was forgotten does not explain it.
    """
    known = any(
        each.raised
        and causes.is_same(cause, each.finding)
        and each.finding.first_seen.replace(microsecond=0) <= cause.since
        for each in tracked
    )
    again = any(causes.is_same(cause, finding) for finding in out)
    over = any(each.code == cause.code and cause.gpu in ("", each.gpu) and each.time >= cause.since for each in ended)
    return known or again or over
