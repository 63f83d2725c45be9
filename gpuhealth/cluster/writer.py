"""What the agent wants of the cluster, made so: level-triggered, in one order, and only as many writes as are needed.

`apply` looks at the Node as it is and at what should be, and writes the difference: a place in the budget, then taint,
cordon and label in one request, then the condition, Events and the report. If the API server is away it raises, and
the caller calls again later with what is wanted then; what was done already is found done. At steady state the watch
of our own Node (`own_node`) is all the traffic there is.

The taint is what keeps work off a bad node; the rest tells of it. When many nodes fail at once, the telling of the
first would hold up the taints of the last: a `patient` writer tells later, the longer the slower the API server is.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from gpuhealth.checks.burnin import REQUIRED
from gpuhealth.cluster.budget import Admitted, Held, NoBudget, Outcome, Places
from gpuhealth.cluster.client import STRATEGIC_MERGE_PATCH, Client, Object, backoff
from gpuhealth.cluster.errors import ConflictError, UnavailableError
from gpuhealth.cluster.events import Events, Note
from gpuhealth.cluster.kinds import NODES
from gpuhealth.cluster.node import (
    BY_PERSON,
    MESSAGE_LIMIT,
    Act,
    Desired,
    Marks,
    Override,
    Patches,
    all_codes,
    condition,
    ended_by_person,
    has_taint,
    labels,
    out_of_service,
    override,
    patches,
    record,
    released,
    state_label,
    summary,
    wanted_codes,
)
from gpuhealth.cluster.own_node import OwnNode
from gpuhealth.cluster.report import Facts, Quarantine, Report, status_of
from gpuhealth.config import Settings
from gpuhealth.model import State

CONFLICTS = 5
DEADLINE = 60.0
FIRST_HELD = 2.0
LONGEST_HELD = 60.0
"""Seconds until a node that is held tries again, at first and at the most. It polls: a watch of the budgets by every
held node would have the API server send each change of a status to all of them, most of all when thousands are held."""
PATIENCE = 2.0
LONGEST_PATIENCE = 30.0
"""A writer that has marked its Node tells of it within this many times the time that the marking took, in seconds at
the most: twenty milliseconds on a server that has nothing else to do."""


def _nothing(_: Act) -> None:
    pass


class Sent(msgspec.Struct, frozen=True):
    """A request that was sent to the Node."""

    changes: Patches
    marks: Marks
    ended_by_person: bool


class NodeWriter:
    """The one who writes about our node."""

    def __init__(
        self,
        client: Client,
        settings: Settings,
        node_name: str,
        *,
        dry_run: bool = False,
        on_act: Callable[[Act], None] = _nothing,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.node = OwnNode(client, node_name)
        self._client = client
        self._mode = settings.mode
        self._preflight_taint = settings.preflight.taint
        self._dry_run = dry_run
        self._on_act = on_act
        self._now = now
        self._lock = asyncio.Lock()
        self._places = Places(client, settings.kubernetes.namespace, node_name)
        self._events = Events(client, node_name)
        self._report = Report(client, node_name)
        self._outcome: Outcome | None = None  # of the last try to get a place that failed
        self._held_code = ""
        self._held_tries = 0
        self._retry_at = 0.0
        self._tell_at = 0.0
        self._untold = False
        self._unsure: Sent | None = None  # whether it was done is not known
        self._would: list[tuple[str, str, str]] = []

    @property
    def held(self) -> tuple[Held, str] | None:
        """What keeps our node in service although it should be out, and the finding's code."""
        return (self._outcome, self._held_code) if isinstance(self._outcome, Held) else None

    @property
    def retry_in(self) -> float | None:
        """Seconds until it is worth calling apply() again, to tell what was done or for a place; None if it is not."""
        due = [self._tell_at] if self._untold else []
        due += [self._retry_at] if self._outcome is not None else []
        return max(0.0, min(due) - asyncio.get_running_loop().time()) if due else None

    # --- what is made so ----------------------------------------------------------------------------------------------

    async def apply(self, desired: Desired, facts: Facts | None = None, *, patient: bool = False) -> list[Act]:
        """Make the cluster say what is desired: what was done, or in mode observe and dry run, what would have been.

        Raises UnavailableError (or another ApiError) when it could not be done in full; call again. A `patient` one may
        leave condition, Events and report for later; `retry_in` says when.
        """
        async with self._lock:
            try:
                async with asyncio.timeout(DEADLINE):
                    return await self._apply(desired, facts or Facts(), patient=patient)
            except TimeoutError:
                raise UnavailableError(f"the API server took more than {DEADLINE:g} s in all") from None

    async def _apply(self, desired: Desired, facts: Facts, *, patient: bool) -> list[Act]:
        acts: list[Act] = []
        self._untold = False
        node = await self.node.current()
        if override(node) is Override.UNMANAGED:
            self._outcome = None
            await self._write_report(node, desired, facts, acts)
        elif self._dry_run or self._mode == "observe":
            acts = self._observed(node, desired)
            if not self._dry_run:
                await self._write_report(node, desired, facts, acts)
        else:
            loop = asyncio.get_running_loop()
            began = loop.time()
            node = await self._mark(node, desired, acts)
            node = await self._settle(node, desired, acts)
            if acts:  # else nothing was marked
                longest = min(LONGEST_PATIENCE, PATIENCE * (loop.time() - began))
                self._tell_at = loop.time() + random.uniform(0.0, longest)  # noqa: S311 - no secret
            self._untold = patient and loop.time() < self._tell_at
            if not self._untold:
                await self._tell(node, desired, facts, acts)
        return acts

    async def _mark(self, node: Object, desired: Desired, acts: list[Act]) -> Object:
        """Write what the Node lacks; read it again when somebody else was quicker."""
        for attempt in range(CONFLICTS):
            self._confirm(node, acts)
            marks = await self._marks(node, desired, acts)
            changes = patches(node, marks, self._now())
            try:
                return await self._write(node, changes, marks, acts)
            except ConflictError:
                if attempt == CONFLICTS - 1:
                    raise
                node = await self.node.read()
        raise AssertionError("the last attempt returns or raises")

    async def _marks(self, node: Object, desired: Desired, acts: list[Act]) -> Marks:
        """What the Node should carry; takes a place in the budget if it is to be taken out."""
        marks, out = self._without_budget(node, desired)
        if marks.taint is None:
            self._outcome = None
        elif out:
            await self._keep_place(node, marks.taint)
            for name in await self._places.drop_surplus():
                self._did(acts, Act("give_back", name, "", self._now()))
        elif not await self._admitted(node, marks.taint, acts):
            return self._labelled(node, msgspec.structs.replace(marks, taint=None, cordon=False), desired)
        return marks

    def _without_budget(self, node: Object, desired: Desired) -> tuple[Marks, bool]:
        """The marks if every budget had room, and whether the node is out by our hand already."""
        person = override(node)
        codes, freed = wanted_codes(node, desired)
        ours = record(node)
        out = ours is not None and not ended_by_person(node)
        if ours is not None and ours.code == BY_PERSON and BY_PERSON not in codes:
            out = False  # it was out by a person's wish: what is left to keep it out needs places like any other
        if person is Override.HEALTHY or (ours is None and has_taint(node)):  # the latter: out, but not by our hand
            codes = ()
        elif ours is not None and out and not codes and desired.verdict.verdict is State.UNKNOWN:
            codes = (ours.code,)  # silence is no evidence that the fault is gone
        taint = codes[0] if codes else None
        status, reason, message = summary(desired.verdict, person, desired.release)
        if taint == BY_PERSON:
            reason = "OutOfService" if status == "True" else reason
            message = f"out of service by a person's wish: {out_of_service(node)}; {message}"[:MESSAGE_LIMIT]
        preflight = self._preflight_taint if desired.preflight and person is None else None
        marks = Marks(
            status, reason, message, "", taint, taint is not None and self._mode == "cordon", freed, preflight
        )
        return self._labelled(node, marks, desired), out

    def _labelled(self, node: Object, marks: Marks, desired: Desired) -> Marks:
        preflight = marks.preflight is not None or has_taint(node, self._preflight_taint)
        out = marks.taint is not None
        by_person = override(node)
        state = state_label(node, desired.verdict, quarantined=out, by_person=by_person, preflight=preflight)
        return msgspec.structs.replace(marks, state=state)

    async def _admitted(self, node: Object, code: str, acts: list[Act]) -> bool:
        loop = asyncio.get_running_loop()
        if self._outcome is not None and self._held_code == code and loop.time() < self._retry_at:
            return False
        outcome = await self._places.acquire(labels(node), code)
        if code == BY_PERSON and isinstance(outcome, Held | NoBudget):
            outcome = Admitted((), ())  # budgets bound what we do by ourselves; a person's wish counts where it can
        if not isinstance(outcome, Held | NoBudget):
            self._outcome = None
            self._held_tries = 0
            if outcome.taken:
                self._did(acts, Act("place", code, " ".join(outcome.taken), self._now()))
            return True
        if type(outcome) is not type(self._outcome) or self._held_code != code:
            why = outcome.reason if isinstance(outcome, Held) else "no QuarantineBudget selects this node"
            self._held_tries = 0
            self._did(acts, Act("held", outcome.budget if isinstance(outcome, Held) else "", why, self._now()))
            self._events.add(Note("QuarantineHeld", f"{code}: stays in service: {why}", self._now()))
        self._outcome, self._held_code = outcome, code
        self._held_tries += 1
        self._retry_at = loop.time() + backoff(self._held_tries - 1, LONGEST_HELD, first=FIRST_HELD)
        return False

    async def _keep_place(self, node: Object, code: str) -> None:
        """A node that is out holds its places: taken again if they are found gone at the start."""
        if self._places.held is None and not await self._places.recall():
            await self._places.acquire(labels(node), code)

    async def _write(self, node: Object, changes: Patches, marks: Marks, acts: list[Act]) -> Object:
        if changes.node is not None:
            self._unsure = Sent(changes, marks, ended_by_person(node))
            node = await self._client.patch(NODES, self.node.name, changes.node)
            self.node.see(node)
            self._confirm(node, acts)
        return node

    async def _tell(self, node: Object, desired: Desired, facts: Facts, acts: list[Act]) -> None:
        """Condition, Events and report."""
        marks, _ = self._without_budget(node, desired)  # the condition says what was found, whatever a budget allows
        changes = patches(node, marks, self._now())
        if changes.status is not None:
            before = (condition(node) or {}).get("status", "True")
            node = await self._client.patch(
                NODES, self.node.name, changes.status, content_type=STRATEGIC_MERGE_PATCH, subresource="status"
            )
            self.node.see(node)
            self._did(acts, changes.acts[-1])
            if before != marks.status and record(node) is None:  # of a node that is out, an Event has the same message
                self._events.add(Note(marks.reason, marks.message, self._now(), warning=marks.status != "True"))
        for note in await self._events.flush():
            self._did(acts, Act("event", note.reason, note.message, self._now()))
        await self._write_report(node, desired, facts, acts)

    def _confirm(self, node: Object, acts: list[Act]) -> None:
        """Tell what the last request to the Node did, once the Node shows it: its answer may have been lost."""
        sent, self._unsure = self._unsure, None
        if sent is None or patches(node, sent.marks, self._now()).node is not None:
            return
        done = [act for act in sent.changes.acts if act.kind != "condition"]
        for act in done:
            self._did(acts, act)
        kinds = {act.kind for act in done}
        if "preflight" in kinds:
            self._events.add(
                Note("Preflight", "rebooted: to be tested before work may come", self._now(), warning=False)
            )
        if "taint" in kinds:
            self._events.add(Note("Quarantined", f"taken out of service: {sent.marks.message}", self._now()))
        elif sent.ended_by_person:
            codes = ", ".join(sent.marks.released)
            text = f"ended by hand; not again for {codes} until it has cleared"
            self._events.add(Note("QuarantineEnded", text, self._now(), warning=False))
        elif "untaint" in kinds:
            self._events.add(Note("QuarantineEnded", "back in service", self._now(), warning=False))

    async def _settle(self, node: Object, desired: Desired, acts: list[Act]) -> Object:
        """A node that is not out by our hand holds no places; also those that a crash left behind.

        What we know of the Node may be old, if the watch broke unnoticed and the answer to our taint was lost: so it
        is read again before its place goes to another node.
        """
        if record(node) is not None or not await self._places.to_return():
            return node
        node = await self._mark(await self.node.read(), desired, acts)
        if record(node) is None:
            for name in await self._places.release():
                self._did(acts, Act("give_back", name, "", self._now()))
        return node

    async def _write_report(self, node: Object, desired: Desired, facts: Facts, acts: list[Act]) -> None:
        would = tuple(f"{act.kind} {act.target} {act.detail}".strip() for act in acts if not act.done)
        status = status_of(desired.verdict, self._standing(node, desired), facts, would, desired.release)
        if await self._report.write(node, status, self._now()):
            self._did(acts, Act("report", self.node.name, str(desired.verdict.verdict), self._now()))

    def _standing(self, node: Object, desired: Desired) -> Quarantine:
        ours = record(node)
        wanted = all_codes(node, desired)
        freed = sorted(set(released(node)) & set(wanted))
        if ours is not None and not ended_by_person(node):
            places = self._places.held or ()
            why = out_of_service(node) if ours.code == BY_PERSON else ""
            state = "awaiting_test" if ours.code == REQUIRED.name else "quarantined"
            return Quarantine(state, ours.code, ours.since, drain=desired.drain, reason=why, places=places)
        if isinstance(self._outcome, Held):
            by = self._outcome
            return Quarantine("held", self._held_code, budget=by.budget, limit=by.limit, reason=by.reason)
        if isinstance(self._outcome, NoBudget):
            return Quarantine("held", self._held_code, reason="no QuarantineBudget selects this node")
        if freed:
            return Quarantine("released", freed[0], reason="a person took the taint or the cordon away")
        if wanted and self._mode == "observe":
            return Quarantine("observed", wanted[0], reason="mode observe marks nothing")
        return Quarantine()

    def _observed(self, node: Object, desired: Desired) -> list[Act]:
        """What would be done, given room in the budgets; recorded once, not in every round."""
        marks, _ = self._without_budget(node, desired)
        acts = [
            Act(act.kind, act.target, act.detail, act.time, done=False)
            for act in patches(node, marks, self._now()).acts
        ]
        would = [(act.kind, act.target, act.detail) for act in acts]
        if would != self._would:
            self._would = would
            for act in acts:
                self._on_act(act)
        return acts

    def _did(self, acts: list[Act], act: Act) -> None:
        """Told at once: what was done is on record even if the next request fails."""
        acts.append(act)
        self._on_act(act)
