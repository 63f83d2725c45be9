"""Puts back marks of ours that a program has removed from the Node: after a delay, and only so often.

A node pool's controller that restores its own list of taints, an upgrade that uncordons the node, or a client that
writes an old copy of the Node makes no statement about the node's health. The delay lets that client finish first, and
the limit bounds what two clients that disagree cost the API server. A person who removes a mark ends the quarantine
instead (`marks.ended_by_person`).
"""

from __future__ import annotations

import asyncio
import enum
from collections import Counter, deque
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from gpuhealth.kube.client import Object
from gpuhealth.model.time import format_time
from gpuhealth.quarantine.marks import is_out, marks_removed, removers, taint_removed
from gpuhealth.quarantine.slots.holder import Blocked
from gpuhealth.runtime.settings import Quarantine

MARKS_REMOVED = "marks_removed"
"""What blocks a node whose marks another program removes, in place of a budget's limit."""
_HOUR = 3600.0
_MANAGER_LIMIT = 100  # characters; the API server allows 128


class Remover(enum.StrEnum):
    """Who removed a mark: the values of a metric's label."""

    PERSON = "person"
    PROGRAM = "program"


class RemovedMarks:
    """The removals of our Node's marks, over the passes of its writer."""

    def __init__(
        self,
        limits: Quarantine,
        node: str,
        *,
        warn: Callable[[str, str], None],
        now: Callable[[], datetime],
    ) -> None:
        """`warn` records an Event of type Warning, given its reason and message."""
        self.counts: Counter[Remover] = Counter(dict.fromkeys(Remover, 0))  # removals since the agent started
        self.blocked: Blocked | None = None  # why the node is in service, without its mark
        self._delay, self._per_hour = limits.put_back_after, limits.put_back_per_hour
        self._node = node
        self._warn = warn
        self._now = now
        self._due_at: float | None = None  # by the event loop's clock; None while no mark is missing
        self._put_back: deque[float] = deque(maxlen=self._per_hour)  # when that was done last

    @property
    def due_at(self) -> float | None:
        """When marks are put back, by the event loop's clock; None if none are missing."""
        return self._due_at

    def none_missing(self) -> None:
        """The marks are on the Node, or are not wanted any more."""
        self.blocked = self._due_at = None

    def may_put_back(self, node: Object, code: str) -> bool:
        """Whether marks that a program has removed are put back now; if not, `blocked` has the reason."""
        if not marks_removed(node):
            self.none_missing()
            return True
        if self._due_at is None:
            self._due_at = self._count(node, code)
        return asyncio.get_running_loop().time() >= self._due_at

    def was_put_back(self) -> None:
        """The Node shows the marks again."""
        self._put_back.append(asyncio.get_running_loop().time())
        self.none_missing()

    def _count(self, node: Object, code: str) -> float:
        """Count and report a removal. Return when the marks are put back."""
        time = asyncio.get_running_loop().time()
        wait, often = self._delay, ""
        if len(self._put_back) == self._per_hour and self._put_back[0] + _HOUR > time + wait:
            wait = self._put_back[0] + _HOUR - time
            often = f", after {self._per_hour} times within an hour"
        what = "the taint" if taint_removed(node) else "the cordon"
        when = format_time(self._now() + timedelta(seconds=wait))
        reason = f"{_named(removers(node))} removed {what}, which is put back at {when}{often}"
        self.counts[Remover.PROGRAM] += 1
        self.blocked = None if is_out(node) else Blocked(code, "", MARKS_REMOVED, reason)
        self._warn("MarksRemoved", f"{reason}; to return the node to service: gpuhealth restore {self._node}")
        return time + wait


def _named(managers: Sequence[str]) -> str:
    """The clients, by their field managers."""
    return " and ".join(manager[:_MANAGER_LIMIT] for manager in managers[:2]) or "a client that left no trace"
