"""Whether our node may go out of service, and its budget slots while it is out.

Whatever fails here stays here: it is logged, it is tried again, and it is a reason why the node is in service that
condition, Event, report and metric can give. A fault that cannot be acted on has to be seen all the same.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime

import structlog

from gpuhealth.api.names import MANUAL, STATE_LABEL
from gpuhealth.kube.client import backoff, patience
from gpuhealth.kube.errors import ApiError
from gpuhealth.kube.events import Note
from gpuhealth.quarantine.marks import Act
from gpuhealth.quarantine.slot_holder import Kept, Places
from gpuhealth.quarantine.slots import ERROR, NO_BUDGET, Admitted, Held, NoBudget, Outcome

log = structlog.get_logger()

SLOT_SECONDS = 20.0
"""For everything that has to do with slots in one go: what was found must not wait for longer to be told."""
FIRST_HELD = 2.0
LONGEST_HELD = 60.0
"""Seconds until a node that is held tries again, at first and at the most. It polls: a watch of the budgets by every
held node would have the API server send each change of a status to all of them, most of all when thousands are held."""
LATE_SECONDS = 30.0
"""After which no request of an agent that was killed is done any more: until the slots are looked at again."""
KEEP_SECONDS = 60.0
"""Between looks of a node that is out at the budgets, on average: two or three reads, and no write."""
_SOON = 5.0  # between looks at the most, however often its labels change
_TEXT_LIMIT = 500  # of an error

Did = Callable[[Act], None]


class Trouble:
    """Something that fails again and again: when it is tried again, and whether that is news."""

    def __init__(self, what: str) -> None:
        self.error: str = ""  # of the last try; empty after one that succeeded
        self.retry_at = 0.0  # by the event loop's clock
        self._what = what
        self._failures = 0

    @property
    def due(self) -> bool:
        """Whether it may be tried now."""
        return not self.error or asyncio.get_running_loop().time() >= self.retry_at

    def forget(self) -> None:
        """It is not tried any more."""
        self.error, self._failures = "", 0

    @asynccontextmanager
    async def noted(self) -> AsyncIterator[None]:
        """Tries, and takes what goes wrong: `error` says it."""
        try:
            async with asyncio.timeout(SLOT_SECONDS):
                yield
        except TimeoutError:
            self._failed(f"no answer within {SLOT_SECONDS:g} s")
        except ApiError as error:
            self._failed(f"{type(error).__name__.removesuffix('Error')}: {error}", error)
        except Exception as error:  # noqa: BLE001 - a fault of ours must not hide the node's; it is logged with its trace
            self._failed(f"unexpected {error!r}", error)
        else:
            self.forget()

    def _failed(self, text: str, error: Exception | None = None) -> None:
        known, self.error = self.error, text[:_TEXT_LIMIT]
        self._failures += 1
        expected = error is None or isinstance(error, ApiError)
        if isinstance(error, ApiError):
            wait = patience(error, self._failures, LONGEST_HELD)
        else:
            wait = backoff(self._failures, LONGEST_HELD)
        self.retry_at = asyncio.get_running_loop().time() + wait
        if known != self.error:  # once, not at every try
            log.warning(self._what, error=self.error, retry_in=round(wait, 1), exc_info=None if expected else error)


class Admission:
    """The budgets' word on one node."""

    def __init__(self, places: Places, note: Callable[[Note], None], now: Callable[[], datetime]) -> None:
        """`note` takes Events."""
        self.held: tuple[Held, str] | None = None  # what keeps the node in service, and the code that wants it out
        self.lacking: tuple[str, ...] = ()  # of which budgets a node that is out holds no slot, and why
        self._places = places
        self._note = note
        self._now = now
        self._tries = 0
        self._retry_at = 0.0
        self._out = False
        self._keep_at: float | None = None  # when a node that is out looks at its slots; None: at once
        self._kept_at = 0.0
        self._kept_labels: dict[str, str] = {}
        self._seeking = Trouble("budget slot request failed")
        self._keeping = Trouble("budget slot check failed")
        self._returning = Trouble("budget slot release failed")

    @property
    def places(self) -> tuple[str, ...]:
        """The slots that the node is known to hold."""
        return self._places.held or ()

    @property
    def troubled(self) -> bool:
        """Whether something about slots could not be done."""
        return bool(self._keeping.error or self._returning.error)

    @property
    def due_at(self) -> float | None:
        """When something is to be done, by the event loop's clock; None if nothing is."""
        if self._out:
            keep_at = self._keep_at or 0.0
            return max(keep_at, self._keeping.retry_at) if self._keeping.error else keep_at
        due = [self._retry_at] if self.held else []
        due += [self._returning.retry_at] if self._returning.error else []
        return min(due, default=None)

    def in_service(self) -> None:
        """Nothing wants the node out."""
        self.held, self._out, self._keep_at, self.lacking = None, False, None, ()

    def rest(self) -> None:
        """The node is not to be touched."""
        self.in_service()
        self._returning.forget()

    async def admit(self, labels: dict[str, str], code: str, did: Did) -> bool:
        """Whether the node may go out for a finding; then it holds its slots."""
        loop = asyncio.get_running_loop()
        if self.held is not None and self.held[1] == code and loop.time() < self._retry_at:
            return False
        outcome: Outcome = Held("", ERROR, "")
        async with self._seeking.noted():
            outcome = await self._places.acquire(labels, code)
        if isinstance(outcome, NoBudget):
            outcome = Held("", NO_BUDGET, "no QuarantineBudget selects this node")
        elif self._seeking.error:
            outcome = Held("", ERROR, f"no budget slot can be sought: {self._seeking.error}")
        if code == MANUAL and isinstance(outcome, Held):
            outcome = Admitted((), ())  # budgets bound what we do by ourselves; a person's wish counts where it can
        if isinstance(outcome, Admitted):
            self.held, self._out, self._tries = None, True, 0
            self._keep_at = self._next(LATE_SECONDS)
            self._kept_labels = _relevant(labels)
            if outcome.taken:
                did(Act("slot", code, " ".join(outcome.taken), self._now()))
            return True
        self._hold(outcome, code, did)
        return False

    def _hold(self, held: Held, code: str, did: Did) -> None:
        self._out = False
        before, self.held = self.held, (held, code)
        if before is None or (_sort(before[0]), before[1]) != (_sort(held), code):
            self._tries = 0
            did(Act("blocked", held.budget, held.reason, self._now()))
            self._note(Note("QuarantineBlocked", f"{code}: stays in service: {held.reason}", self._now()))
        self._tries += 1
        wait = backoff(self._tries - 1, LONGEST_HELD, first=FIRST_HELD)
        self._retry_at = asyncio.get_running_loop().time() + wait
        if held.limit == ERROR:  # which may be over in a moment
            self._retry_at = self._seeking.retry_at

    async def keep(self, labels: dict[str, str], did: Did) -> None:
        """For a node that is out: has it hold a slot of every budget that selects it now, looked at now and then."""
        loop, relevant = asyncio.get_running_loop(), _relevant(labels)
        self.held, self._out = None, True
        due = self._keep_at is None or loop.time() >= self._keep_at
        if relevant != self._kept_labels and loop.time() >= self._kept_at + _SOON:
            due = True
        elif relevant != self._kept_labels:
            self._keep_at = min(self._keep_at or 0.0, self._kept_at + _SOON)
        if not due or not self._keeping.due:
            return
        kept = Kept(lacking=self.lacking)
        async with self._keeping.noted():
            kept = await self._places.keep(labels)
        if self._keeping.error:
            return
        self._keep_at, self._kept_at, self._kept_labels = self._next(KEEP_SECONDS), loop.time(), relevant
        if kept.taken:
            did(Act("slot", "kept", " ".join(kept.taken), self._now()))
        for name in kept.returned:
            did(Act("give_back", name, "", self._now()))
        if kept.lacking != self.lacking:
            for why in kept.lacking:
                log.warning("node out of service without a budget slot", reason=why)
            self.lacking = kept.lacking

    def _next(self, seconds: float) -> float:
        """When it is looked at again: a fleet does not march."""
        later = seconds * random.uniform(0.75, 1.25)  # noqa: S311 - no secret
        return asyncio.get_running_loop().time() + later

    async def to_return(self) -> bool:
        """Whether the node, which is not out, holds slots that it has to give back; not while that is not known."""
        names: tuple[str, ...] = ()
        if self._returning.due:
            async with self._returning.noted():
                names = await self._places.to_return()
        return bool(names)

    async def give_back(self, did: Did) -> None:
        """Gives back the slots of a node that is not out."""
        names: tuple[str, ...] = ()
        async with self._returning.noted():
            names = await self._places.release()
        for name in names:
            did(Act("give_back", name, "", self._now()))


def _sort(held: Held) -> str:
    """What kind of thing holds a node: of the limits of its budgets now this and now that one may."""
    return held.limit if held.limit in (ERROR, NO_BUDGET) else "limit"


def _relevant(labels: dict[str, str]) -> dict[str, str]:
    """The labels by which budgets select; our own changes with the node's state."""
    return {key: value for key, value in labels.items() if key != STATE_LABEL}
