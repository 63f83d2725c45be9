"""Events, as `kubectl describe` shows them: repeated ones are counted, and there is a limit for each object.

Events are for people, and best effort. One that the API server refuses is counted and dropped. While the API server is
away the agent's Events wait, up to MAX_WAITING, and the controller's are dropped.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import NamedTuple

import msgspec
import structlog

from gpuhealth.kube.client import Client, Object
from gpuhealth.kube.errors import AlreadyExistsError, ApiError, NotFoundError, TooManyRequestsError, UnavailableError
from gpuhealth.kube.kinds import EVENTS
from gpuhealth.model.time import format_time
from gpuhealth.runtime.rate_limiter import RateLimiter
from gpuhealth.runtime.supervisor import raise_if_cancelled

log = structlog.get_logger()

NAMESPACE = "default"
"""Namespace of the Events about objects that have none."""
MESSAGE_LIMIT = 1024  # bytes; what events.k8s.io allows, and what the event store of many clusters is made for
REPEAT_SECONDS = 600.0  # within which the same Event is counted rather than created again
BURST = 20  # Events about one object at once
REFILL_SECONDS = 60.0  # until one more is allowed
MAX_WAITING = 100


class Subject(msgspec.Struct, frozen=True):
    """The object that an Event is about."""

    kind: str
    name: str
    uid: str
    namespace: str = ""


def node_subject(name: str) -> Subject:
    """A Node. Its uid is its name, as kubelet has it: every kubectl finds those, and only newer ones the real uid."""
    return Subject("Node", name, name)


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened to an object."""

    subject: Subject
    reason: str
    message: str
    warning: bool
    time: datetime


class EventKey(NamedTuple):
    """What makes two Events the same."""

    uid: str
    reason: str
    message: str


class _Posted(msgspec.Struct, frozen=True):
    name: str
    count: int
    at: float  # by the recorder's clock


class EventRecorder:
    """Posts the Events of one component: at once, or when `flush` is called."""

    def __init__(
        self,
        client: Client,
        component: str,
        instance: str,
        *,
        now: Callable[[], datetime],
        host: str = "",
        counts_repeats: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`instance` names this process, `host` the node it reports from. Without `counts_repeats`, which takes the
        right to patch Events, the same Event is not posted again within REPEAT_SECONDS."""
        self.dropped = 0  # refused by the API server, or more than the limits
        self._client = client
        self._source = {"component": component} | ({"host": host} if host else {})
        self._instance = instance
        self._now = now
        self._counts_repeats = counts_repeats
        self._clock = clock
        self._waiting: deque[tuple[Event, float]] = deque(maxlen=MAX_WAITING)
        self._posted: dict[EventKey, _Posted] = {}  # within REPEAT_SECONDS, the oldest first
        self._limits: dict[str, RateLimiter] = {}  # by uid, the one that was used longest ago first

    def queue(self, subject: Subject, reason: str, message: str, *, warning: bool = False) -> None:
        """Post an Event with the next flush(). Beyond MAX_WAITING the oldest one is dropped."""
        if self._is_allowed(subject):
            if len(self._waiting) == MAX_WAITING:
                self.dropped += 1
            self._waiting.append((self._event(subject, reason, message, warning), self._clock()))

    async def flush(self) -> list[Event]:
        """Post what waits and return it.

        Raises UnavailableError and TooManyRequestsError, and keeps the Events that were not posted.
        """
        posted = []
        while self._waiting:
            event, at = self._waiting[0]
            try:
                await self._post(event, at)
                posted.append(event)
            except (UnavailableError, TooManyRequestsError):
                raise
            except ApiError as error:
                self._drop(event, error)
            self._waiting.popleft()
        return posted

    async def post(self, subject: Subject, reason: str, message: str, *, warning: bool = False) -> None:
        """Post an Event at once; drop it where that fails."""
        if self._is_allowed(subject):
            event = self._event(subject, reason, message, warning)
            try:
                await self._post(event, self._clock())
            except ApiError as error:
                self._drop(event, error)

    def _event(self, subject: Subject, reason: str, message: str, warning: bool) -> Event:
        return Event(subject=subject, reason=reason, message=message, warning=warning, time=self._now())

    def _drop(self, event: Event, error: ApiError) -> None:
        raise_if_cancelled()
        self.dropped += 1
        # Such as a namespace that is being deleted, or no right to write Events.
        log.warning("Event write failed", reason=event.reason, about=event.subject.name, error=str(error))

    def _is_allowed(self, subject: Subject) -> bool:
        """Whether the rate limit of the object allows another Event; one that it does not is dropped."""
        now = self._clock()
        limit = self._limits.pop(subject.uid, None) or RateLimiter(1.0 / REFILL_SECONDS, BURST)
        self._limits[subject.uid] = limit
        allowed = limit.try_take(now)
        if not allowed:
            self.dropped += 1
        while self._limits and (oldest := next(iter(self._limits.items())))[1].is_rested(now):
            del self._limits[oldest[0]]
        return allowed

    async def _post(self, event: Event, at: float) -> None:
        """Create an Event that happened `at` this time of the recorder's clock, or count it as a repeated one."""
        key = EventKey(event.subject.uid, event.reason, event.message)
        known = self._posted.get(key)
        if known is None or at - known.at >= REPEAT_SECONDS:
            posted = await self._create(event, at)
        elif self._counts_repeats:
            posted = await self._count(known, event, at)
        else:
            return
        self._posted.pop(key, None)
        self._posted[key] = posted
        while (oldest := next(iter(self._posted.items())))[1].at <= at - REPEAT_SECONDS:
            del self._posted[oldest[0]]

    async def _count(self, known: _Posted, event: Event, at: float) -> _Posted:
        body = {"count": known.count + 1, "lastTimestamp": format_time(event.time)}
        try:
            await self._client.patch(EVENTS, known.name, body, event.subject.namespace or NAMESPACE)
        except NotFoundError:  # the server forgets Events after a while
            return await self._create(event, at)
        return _Posted(known.name, known.count + 1, at)

    async def _create(self, event: Event, at: float) -> _Posted:
        subject = event.subject
        identity = f"{subject.uid}\0{event.reason}\0{event.message}\0{event.time.isoformat()}"
        name = f"{subject.name}.{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
        with suppress(AlreadyExistsError):  # the response to an earlier attempt was lost
            await self._client.create(EVENTS, self._body(name, event), subject.namespace or NAMESPACE)
        return _Posted(name, 1, at)

    def _body(self, name: str, event: Event) -> Object:
        subject, time_text = event.subject, format_time(event.time)
        involved = {"apiVersion": "v1", "kind": subject.kind, "name": subject.name, "uid": subject.uid}
        if subject.namespace:
            involved["namespace"] = subject.namespace
        message = event.message
        if len(message.encode()) > MESSAGE_LIMIT:
            message = message.encode()[: MESSAGE_LIMIT - 30].decode(errors="ignore") + " ... see kubectl get ghr"
        return {
            "metadata": {"name": name, "namespace": subject.namespace or NAMESPACE},
            "involvedObject": involved,
            "type": "Warning" if event.warning else "Normal",
            "reason": event.reason,
            "message": message,
            "count": 1,
            "firstTimestamp": time_text,
            "lastTimestamp": time_text,
            "source": self._source,
            "reportingComponent": self._source["component"],
            "reportingInstance": self._instance,
        }
