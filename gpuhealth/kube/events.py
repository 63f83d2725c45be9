"""Events on our own Node, as `kubectl describe node` shows them: repeated ones are counted, and there is a limit.

An Event tells people what happened; nothing depends on it. So one that cannot be sent because the API server is away
waits here, the oldest is dropped when too many do, and one that is refused is counted and forgotten.
"""

from __future__ import annotations

import hashlib
from collections import deque
from contextlib import suppress
from datetime import datetime

import msgspec

from gpuhealth.api.names import AGENT
from gpuhealth.kube.client import Client, Object
from gpuhealth.kube.errors import AlreadyExistsError, ApiError, NotFoundError, TooManyRequestsError, UnavailableError
from gpuhealth.kube.kinds import EVENTS
from gpuhealth.quarantine.marks import written_time
from gpuhealth.runtime.supervisor import raise_if_cancelled

NAMESPACE = "default"
"""Where Events about objects without a namespace have to be."""
MESSAGE_LIMIT = 1024  # what events.k8s.io allows, and what the event store of many clusters is made for
SAME_SECONDS = 600.0  # within which the same is counted up rather than written again
BURST = 20
REFILL_SECONDS = 60.0
WAITING = 100


class Note(msgspec.Struct, frozen=True):
    """Something that happened, to be told."""

    reason: str
    message: str
    time: datetime
    warning: bool = True


class _Known(msgspec.Struct, frozen=True):
    name: str
    times: int
    last: datetime


class Events:
    """The Events of one node."""

    def __init__(self, client: Client, node: str) -> None:
        self._client = client
        self._node = node
        self._waiting: deque[Note] = deque(maxlen=WAITING)
        self._known: dict[tuple[str, str], _Known] = {}
        self._tokens = float(BURST)
        self._refilled: datetime | None = None
        self.dropped = 0  # refused, or more than the limit

    def add(self, note: Note) -> None:
        """Tell it with the next flush()."""
        if len(self._waiting) == WAITING:
            self.dropped += 1
        self._waiting.append(note)

    async def flush(self) -> list[Note]:
        """Send what waits and return it; raises UnavailableError when the API server is away, and keeps the rest."""
        sent = []
        while self._waiting:
            note = self._waiting[0]
            if self._may_send(note.time):
                try:
                    await self._send(note)
                    sent.append(note)
                except (UnavailableError, TooManyRequestsError):
                    self._tokens += 1.0  # of what was not sent
                    raise
                except ApiError:  # such as no right to write Events: that must not keep a taint from being reported
                    raise_if_cancelled()
                    self.dropped += 1
            else:
                self.dropped += 1
            self._waiting.popleft()
        return sent

    def _may_send(self, time: datetime) -> bool:
        if self._refilled is not None:
            elapsed = max(0.0, (time - self._refilled).total_seconds())
            self._tokens = min(float(BURST), self._tokens + elapsed / REFILL_SECONDS)
        self._refilled = time
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    async def _send(self, note: Note) -> None:
        key = (note.reason, note.message)
        known = self._known.get(key)
        if known is not None and (note.time - known.last).total_seconds() < SAME_SECONDS:
            again = _Known(known.name, known.times + 1, note.time)
            body = {"count": again.times, "lastTimestamp": written_time(note.time)}
            try:
                await self._client.patch(EVENTS, known.name, body, NAMESPACE)
            except NotFoundError:  # the server forgets Events after a while
                again = await self._create(note)
        else:
            again = await self._create(note)
        self._known = {k: v for k, v in self._known.items() if (note.time - v.last).total_seconds() < SAME_SECONDS}
        self._known[key] = again

    async def _create(self, note: Note) -> _Known:
        digest = hashlib.sha256(f"{note.reason}\0{note.message}\0{note.time.isoformat()}".encode()).hexdigest()[:16]
        name = f"{self._node}.{digest}"
        with suppress(AlreadyExistsError):  # the answer to an earlier attempt was lost
            await self._client.create(EVENTS, self._body(name, note), NAMESPACE)
        return _Known(name, 1, note.time)

    def _body(self, name: str, note: Note) -> Object:
        time = written_time(note.time)
        # The uid is the Node's name, as kubelet has it: every kubectl finds those, and only newer ones the real uid.
        involved = {"apiVersion": "v1", "kind": "Node", "name": self._node, "uid": self._node}
        message = note.message
        if len(message.encode()) > MESSAGE_LIMIT:
            message = message.encode()[: MESSAGE_LIMIT - 30].decode(errors="ignore") + " ... see kubectl get ghr"
        return {
            "metadata": {"name": name, "namespace": NAMESPACE},
            "involvedObject": involved,
            "type": "Warning" if note.warning else "Normal",
            "reason": note.reason,
            "message": message,
            "count": 1,
            "firstTimestamp": time,
            "lastTimestamp": time,
            "source": {"component": AGENT, "host": self._node},
            "reportingComponent": AGENT,
            "reportingInstance": self._node,
        }
