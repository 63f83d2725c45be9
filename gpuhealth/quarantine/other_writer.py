"""Notices that another client writes our condition again and again: a second agent works on this Node.

Two agents that share the folder of the journal exclude each other by a lock (`runtime.single_instance`). Others, such
as an agent of a second installation with another folder, are seen only by what they write.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from datetime import datetime, timedelta

from gpuhealth.api.names import CONDITION, ConditionReason
from gpuhealth.kube.client import Object

_WRITES, _WITHIN = 3, timedelta(minutes=10)
_SILENCE = timedelta(hours=1)  # between two Events
_SENT = 4  # of our own conditions whose answer may have been lost


class OtherWriter:
    """Compares the condition on the Node with what we have sent."""

    def __init__(self, warn: Callable[[str, str], None], kind: str = CONDITION) -> None:
        """`warn` records an Event of type Warning, given its reason and message; `kind` is the condition's type."""
        self._warn = warn
        self._kind = kind
        self._known: deque[tuple[object, ...]] = deque(maxlen=_SENT)
        self._writes: deque[datetime] = deque(maxlen=_WRITES)  # by another client
        self._warned: datetime | None = None

    def sending(self, condition: Object) -> None:
        """Record a condition before it is sent."""
        self._known.append(_key(condition))

    def see(self, condition: Object | None, now: datetime) -> None:
        """Look at the condition on the Node. The first one is an earlier agent's; the controller's is no agent's."""
        if condition is None or condition.get("reason") == ConditionReason.AGENT_SILENT:
            return
        key, is_first = _key(condition), not self._known
        if key in self._known:
            return
        self._known.append(key)
        if is_first:
            return
        self._writes.append(now)
        often = len(self._writes) == _WRITES and timedelta(0) <= now - self._writes[0] < _WITHIN
        if often and (self._warned is None or not timedelta(0) <= now - self._warned < _SILENCE):
            self._warned = now
            is_ours = self._kind == CONDITION
            advice = (
                "if gpuhealth is installed twice, remove one installation"
                if is_ours
                else "remove it from the setting conditions, or that program"
            )
            self._warn(
                "SecondAgent" if is_ours else "SecondWriter",
                f"another client has written the condition {self._kind} of this Node {_WRITES} times within"
                f" {_WITHIN.total_seconds() / 60:.0f} min: {advice}",
            )


def _key(condition: Object) -> tuple[object, ...]:
    return tuple(condition.get(field) for field in ("status", "reason", "message", "lastHeartbeatTime"))
