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

from gpuhealth.api.names import MANUAL, QUARANTINE, ConditionReason, Override
from gpuhealth.api.report import Quarantine, QuarantineState
from gpuhealth.kube.client import STRATEGIC_MERGE_PATCH, Client, Object
from gpuhealth.kube.errors import ConflictError, UnavailableError
from gpuhealth.kube.events import Events, Note
from gpuhealth.kube.kinds import NODES
from gpuhealth.model.verdict import State
from gpuhealth.monitors.burnin_results.checks import REQUIRED
from gpuhealth.quarantine.admission import Admission
from gpuhealth.quarantine.marks import (
    MESSAGE_LIMIT,
    Act,
    Desired,
    Marks,
    Patches,
    all_codes,
    condition,
    ended_by_person,
    has_taint,
    is_out,
    labels,
    notes,
    out_of_service,
    override,
    patches,
    record,
    released,
    state_label,
    summary,
    unknown_record,
    wanted_codes,
)
from gpuhealth.quarantine.own_node import OwnNode
from gpuhealth.quarantine.report import Facts, Report, status_of
from gpuhealth.quarantine.slot_holder import Places
from gpuhealth.quarantine.slots import Held
from gpuhealth.runtime.settings import Settings

CONFLICTS = 5
DEADLINE = 60.0
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
        self._events = Events(client, node_name)
        places = Places(client, settings.kubernetes.namespace, node_name)
        self._admission = Admission(places, self._events.add, now)
        self._report = Report(client, node_name)
        self._tell_at = 0.0
        self._untold = False
        self._unsure: Sent | None = None  # whether it was done is not known
        self._sent_record = ""  # that we wrote last, whether or not there was an answer
        self._judged = ""  # the Node's record, of which whoever wants something knows
        self._would: list[tuple[str, str, str]] = []

    @property
    def held(self) -> tuple[Held, str] | None:
        """What keeps our node in service although it should be out, and the finding's code."""
        return self._admission.held

    @property
    def unreadable(self) -> dict[str, int]:
        """How many objects of the API server could not be read, by kind."""
        return dict(self._client.unreadable.counts)

    @property
    def done(self) -> bool:
        """Whether all that was wanted is done and told: a node that is out looks at its slots now and then, no more."""
        return not self._untold and self.held is None and not self._admission.troubled

    @property
    def retry_in(self) -> float | None:
        """Seconds until it is worth calling apply() again, to tell what was done or for slots; None if it is not."""
        due = [self._tell_at] if self._untold else []
        due += [] if self._admission.due_at is None else [self._admission.due_at]
        return max(0.0, min(due) - asyncio.get_running_loop().time()) if due else None

    # --- what is made so ----------------------------------------------------------------------------------------------

    async def apply(
        self, desired: Desired, facts: Facts | None = None, *, node: Object | None = None, patient: bool = False
    ) -> list[Act]:
        """Make the cluster say what is desired: what was done, or in mode observe and dry run, what would have been.

        `node` is our Node as it was when that was decided; without it, it is asked for. Raises UnavailableError (or
        another ApiError) when it could not be done in full; call again. What a budget does not allow, and slots that
        cannot be sought, are no error: condition, Event and report say so, and `retry_in` when it is tried again. A
        `patient` one may leave condition, Events and report for later; `retry_in` says when.
        """
        async with self._lock:
            try:
                async with asyncio.timeout(DEADLINE):
                    node = await self.node.current() if node is None else node
                    self._judged = notes(node).get(QUARANTINE, "")
                    return await self._apply(node, desired, facts or Facts(), patient=patient)
            except TimeoutError:
                raise UnavailableError(f"the API server took more than {DEADLINE:g} s in all") from None

    async def _apply(self, node: Object, desired: Desired, facts: Facts, *, patient: bool) -> list[Act]:
        acts: list[Act] = []
        self._untold = False
        if override(node) is Override.UNMANAGED:
            self._admission.rest()
            await self._write_report(node, desired, facts, acts)
        elif self._dry_run or self._mode == "observe":
            self._admission.rest()
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
            # What nothing is done about is told at once.
            self._untold = patient and self.held is None and loop.time() < self._tell_at
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
        """What the Node should carry; takes a budget slot if it is to be taken out."""
        marks, out = self._without_budget(node, desired)
        if marks.taint is None:
            self._check_record(node)
            self._admission.in_service()
        elif out:
            await self._admission.keep(labels(node), lambda act: self._did(acts, act))
        elif not await self._admission.admit(labels(node), marks.taint, lambda act: self._did(acts, act)):
            return self._labelled(node, msgspec.structs.replace(marks, taint=None, cordon=False), desired)
        return marks

    def _check_record(self, node: Object) -> None:
        """A record that came after it was decided that nothing wants the node out may tell why something does."""
        ours = notes(node).get(QUARANTINE, "")
        if is_out(node) and ours not in (self._judged, self._sent_record):
            raise ConflictError("the Node's record is another than the one that was judged")

    def _without_budget(self, node: Object, desired: Desired) -> tuple[Marks, bool]:
        """The marks if every budget had room, and whether the node is out by our hand already."""
        person = override(node)
        codes, freed = wanted_codes(node, desired)
        ours = record(node)
        out = ours is not None and not ended_by_person(node)
        if ours is not None and ours.code == MANUAL and MANUAL not in codes:
            out = False  # it was out by a person's wish: what is left to keep it out needs places like any other
        if person is Override.HEALTHY or (ours is None and has_taint(node)):  # the latter: out, but not by our hand
            codes = ()
        elif ours is not None and out and not codes and desired.verdict.verdict is State.UNKNOWN:
            codes = (ours.code,)  # silence is no evidence that the fault is gone
        taint = codes[0] if codes else None
        status, reason, message = summary(desired.verdict, person, desired.release)
        if taint == MANUAL:
            reason = ConditionReason.OUT_OF_SERVICE if status == "True" else reason
            message = f"out of service by a person's wish: {out_of_service(node)}; {message}"[:MESSAGE_LIMIT]
        preflight = self._preflight_taint if desired.preflight and person is None else None
        silent = ours is not None and not desired.quarantine and desired.verdict.verdict is State.UNKNOWN
        causes = ours.causes if ours is not None and silent else desired.causes
        cordon = taint is not None and self._mode == "cordon"
        marks = Marks(status, reason, message, "", taint, cordon, freed, preflight, causes)
        return self._labelled(node, marks, desired), out

    def _labelled(self, node: Object, marks: Marks, desired: Desired) -> Marks:
        preflight = marks.preflight is not None or has_taint(node, self._preflight_taint)
        out = marks.taint is not None
        by_person = override(node)
        state = state_label(node, desired.verdict, quarantined=out, by_person=by_person, preflight=preflight)
        return msgspec.structs.replace(marks, state=state)

    async def _write(self, node: Object, changes: Patches, marks: Marks, acts: list[Act]) -> Object:
        if changes.node is not None:
            self._unsure = Sent(changes, marks, ended_by_person(node))
            annotations = changes.node["metadata"].get("annotations") or {}
            self._sent_record = annotations.get(QUARANTINE) or self._sent_record
            node = await self._client.patch(NODES, self.node.name, changes.node)
            self.node.see(node)
            self._confirm(node, acts)
        return node

    async def _tell(self, node: Object, desired: Desired, facts: Facts, acts: list[Act]) -> None:
        """Condition, Events and report."""
        marks, _ = self._without_budget(node, desired)  # the condition says what was found, whatever a budget allows
        if self.held is not None:
            message = f"{marks.message}; stays in service: {self.held[0].reason}"[:MESSAGE_LIMIT]
            marks = msgspec.structs.replace(marks, message=message)
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
        if _is_marked(node) or not await self._admission.to_return():
            return node
        node = await self._mark(await self.node.read(), desired, acts)
        if not _is_marked(node):
            await self._admission.give_back(lambda act: self._did(acts, act))
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
            why = [out_of_service(node)] if ours.code == MANUAL else []
            reason = "; ".join([*why, *self._admission.lacking])
            state = QuarantineState.AWAITING_TEST if ours.code == REQUIRED.name else QuarantineState.QUARANTINED
            return Quarantine(
                state=state,
                code=ours.code,
                since=ours.since,
                drain=desired.drain,
                reason=reason,
                slots=self._admission.places,
            )
        if self.held is not None:
            by, code = self.held
            return Quarantine(
                state=QuarantineState.BLOCKED, code=code, budget=by.budget, limit=by.limit, reason=by.reason
            )
        if freed:
            reason = "a person took the taint or the cordon away"
            return Quarantine(state=QuarantineState.DISMISSED, code=freed[0], reason=reason)
        if wanted and self._mode == "observe":
            reason = "mode observe marks nothing"
            return Quarantine(state=QuarantineState.WOULD_QUARANTINE, code=wanted[0], reason=reason)
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


def _is_marked(node: Object) -> bool:
    """Whether it is out by our hand, or may be: somebody has written in the record that says so."""
    return record(node) is not None or (bool(unknown_record(node)) and has_taint(node))
