"""Decides when our node requests, checks and releases its budget slots, and whether it may go out of service.

Errors are contained here: they are logged, the request is tried again later, and the reason why the node is in service
appears in condition, Event, report and metric. A fault that cannot be acted on must be visible all the same.
"""

from __future__ import annotations

import asyncio
import enum
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import structlog

from gpuhealth.api.names import MANUAL, STATE_LABEL
from gpuhealth.kube.client import backoff, retry_delay
from gpuhealth.kube.errors import ApiError
from gpuhealth.quarantine.slots.holder import ERROR, NO_BUDGET, AcquireResult, Admitted, Blocked, SlotCheck, SlotHolder

log = structlog.get_logger()

REQUEST_TIMEOUT = 20.0
"""Seconds for all requests of one operation on slots: a finding must not wait longer for condition and report."""
FIRST_RETRY = 2.0
LONGEST_RETRY = 60.0
"""Seconds until a blocked node tries again, at first and at most. It polls: a watch of the budgets by every blocked
node would have the API server send each change of a status to all of them, most of all when thousands are blocked."""
LATE_SECONDS = 30.0
"""After which no request of an agent that was killed is done any more: until the first check of the slots."""
CHECK_SECONDS = 60.0
"""Between checks by a node that is out, on average: two or three reads, and no write."""
_MIN_CHECK_SECONDS = 5.0  # between checks, however often the node's labels change
_ERROR_LIMIT = 500  # characters

Record = Callable[[str, str, str], None]
"""Records an action: its kind, target and detail."""


class RetriedOperation:
    """An operation that may fail again and again: its last error, and when it is tried again."""

    def __init__(self, failure_event: str) -> None:
        """`failure_event` is the log event of a failure; the same error is logged once."""
        self.error: str = ""  # of the last try; empty after one that succeeded
        self.retry_at = 0.0  # by the event loop's clock
        self._failure_event = failure_event
        self._failures = 0

    @property
    def is_due(self) -> bool:
        """Whether it may be tried now."""
        return not self.error or asyncio.get_running_loop().time() >= self.retry_at

    def reset(self) -> None:
        """Forget the failures: it has succeeded, or is not needed any more."""
        self.error, self._failures = "", 0

    @asynccontextmanager
    async def attempt(self) -> AsyncIterator[None]:
        """Run the body within REQUEST_TIMEOUT. Its errors end in `error`, except for cancellation."""
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT):
                yield
        except TimeoutError:
            self._failed(f"no answer within {REQUEST_TIMEOUT:g} s")
        except ApiError as error:
            self._failed(f"{type(error).__name__.removesuffix('Error')}: {error}", error)
        except Exception as error:  # noqa: BLE001 - a bug of ours must not hide the node's fault; logged with its trace
            self._failed(f"unexpected {error!r}", error)
        else:
            self.reset()

    def _failed(self, text: str, error: Exception | None = None) -> None:
        known, self.error = self.error, text[:_ERROR_LIMIT]
        self._failures += 1
        expected = error is None or isinstance(error, ApiError)
        if isinstance(error, ApiError):
            wait = retry_delay(error, self._failures, LONGEST_RETRY)
        else:
            wait = backoff(self._failures, LONGEST_RETRY)
        self.retry_at = asyncio.get_running_loop().time() + wait
        if known != self.error:
            exc_info = None if expected else error
            log.warning(self._failure_event, error=self.error, retry_in=round(wait, 1), exc_info=exc_info)


class Phase(enum.Enum):
    """State of our node with regard to its slots."""

    IN_SERVICE = "in_service"
    BLOCKED = "blocked"  # to be quarantined, but without slots
    OUT = "out"


class SlotManager:
    """The budget slots of our node, over the passes of its writer."""

    def __init__(self, holder: SlotHolder, record: Record, warn: Callable[[str, str], None]) -> None:
        """`warn` records an Event of type Warning, given its reason and message."""
        self.missing: tuple[str, ...] = ()  # of a node that is out: why it holds no slot, for each budget without one
        self.blocked: Blocked | None = None  # why the node stays in service although it should be out
        self._holder = holder
        self._record = record
        self._warn = warn
        self._phase = Phase.IN_SERVICE
        self._tries = 0
        self._retry_at = 0.0  # for a blocked node, by the event loop's clock
        self._check_at = 0.0  # for a node that is out; 0: at once
        self._checked_at = 0.0
        self._checked_labels: dict[str, str] = {}
        self._requesting = RetriedOperation("budget slot request failed")
        self._checking = RetriedOperation("budget slot check failed")
        self._releasing = RetriedOperation("budget slot release failed")

    @property
    def slots(self) -> tuple[str, ...]:
        """The slots that the node is known to hold."""
        return self._holder.known

    @property
    def has_failed(self) -> bool:
        """Whether slots could not be checked or released the last time."""
        return bool(self._checking.error or self._releasing.error)

    @property
    def due_at(self) -> float | None:
        """When something has to be done, by the event loop's clock; None if nothing has."""
        if self._phase is Phase.OUT:
            return max(self._check_at, self._checking.retry_at) if self._checking.error else self._check_at
        due = [self._retry_at] if self._phase is Phase.BLOCKED else []
        due += [self._releasing.retry_at] if self._releasing.error else []
        return min(due, default=None)

    def set_in_service(self) -> None:
        """The node is in service, and no finding requires a quarantine."""
        self._phase, self.blocked, self.missing, self._check_at = Phase.IN_SERVICE, None, (), 0.0

    def suspend(self) -> None:
        """The node must not be changed: nothing is due."""
        self.set_in_service()
        self._releasing.reset()

    async def request(self, labels: dict[str, str], code: str) -> bool:
        """Whether the node may go out for a finding; then it holds its slots."""
        loop, relevant = asyncio.get_running_loop(), _relevant(labels)
        is_same = self.blocked is not None and self.blocked.code == code and relevant == self._checked_labels
        if is_same and loop.time() < self._retry_at:
            return False
        self._checked_labels = relevant
        result: AcquireResult = Blocked(code, "", ERROR, "")
        async with self._requesting.attempt():
            result = await self._holder.acquire(labels, code)
        if self._requesting.error:
            result = Blocked(code, "", ERROR, f"no budget slot can be requested: {self._requesting.error}")
        if code == MANUAL and isinstance(result, Blocked):
            result = Admitted((), ())  # a manual quarantine is not limited by budgets; it takes a slot if one is free
        if isinstance(result, Blocked):
            self._block(result)
            return False
        self.blocked, self._phase, self._tries = None, Phase.OUT, 0
        self._check_at = _after(LATE_SECONDS)
        if result.taken:
            self._record("slot_taken", code, " ".join(result.taken))
        return True

    def _block(self, blocked: Blocked) -> None:
        before, self.blocked, self._phase = self.blocked, blocked, Phase.BLOCKED
        if before is None or (_cause(before), before.code) != (_cause(blocked), blocked.code):
            self._tries = 0
            self._record("blocked", blocked.budget, blocked.reason)
            self._warn("QuarantineBlocked", f"{blocked.code}: stays in service: {blocked.reason}")
        self._tries += 1
        wait = backoff(self._tries - 1, LONGEST_RETRY, first=FIRST_RETRY)
        self._retry_at = asyncio.get_running_loop().time() + wait
        if blocked.limit == ERROR:  # which may be over in a moment
            self._retry_at = self._requesting.retry_at

    async def check(self, labels: dict[str, str]) -> None:
        """For a node that is out: have it hold a slot of every budget that selects it now, checked now and then."""
        loop, relevant = asyncio.get_running_loop(), _relevant(labels)
        self.blocked, self._phase = None, Phase.OUT
        if relevant != self._checked_labels:
            self._check_at = min(self._check_at, self._checked_at + _MIN_CHECK_SECONDS)
        if loop.time() < self._check_at or not self._checking.is_due:
            return
        checked = SlotCheck(missing=self.missing)
        async with self._checking.attempt():
            checked = await self._holder.check(labels)
        if self._checking.error:
            return
        self._check_at, self._checked_at, self._checked_labels = _after(CHECK_SECONDS), loop.time(), relevant
        if checked.taken:
            self._record("slot_taken", "kept", " ".join(checked.taken))
        for name in checked.released:
            self._record("slot_released", name, "")
        if checked.missing != self.missing:
            for reason in checked.missing:
                log.warning("node out of service without a budget slot", reason=reason)
            self.missing = checked.missing

    async def has_releasable(self) -> bool:
        """Whether the node, which is not out, holds slots that it has to release; False while that is not known."""
        names: tuple[str, ...] = ()
        if self._releasing.is_due:
            async with self._releasing.attempt():
                names = await self._holder.releasable()
        return bool(names)

    async def release(self) -> None:
        """Release the slots of a node that is not out."""
        names: tuple[str, ...] = ()
        async with self._releasing.attempt():
            names = await self._holder.release()
        for name in names:
            self._record("slot_released", name, "")


def _after(seconds: float) -> float:
    """A time on the event loop's clock after that many seconds, at random so that agents do not check in lockstep."""
    later = seconds * random.uniform(0.75, 1.25)  # noqa: S311 - no secret
    return asyncio.get_running_loop().time() + later


def _cause(blocked: Blocked) -> str:
    """What blocks a node; all limits of budgets are one cause, since they may alternate."""
    return blocked.limit if blocked.limit in (ERROR, NO_BUDGET) else "limit"


def _relevant(labels: dict[str, str]) -> dict[str, str]:
    """The labels by which budgets select, without our own, which changes with the node's state."""
    return {key: value for key, value in labels.items() if key != STATE_LABEL}
