"""Applies the desired marks to our Node: level-triggered, in one order, and with only as many writes as are needed.

`apply` compares the Node as it is with how it should look, and writes the difference: budget slots, then taint, cordon
and label in one request, then condition, Events and report. If the API server is away it raises, and the caller calls
again later with the marks desired then; completed steps are recognised. In a steady state the watch of our own Node
(`own_node`) is the only traffic.

Taint or cordon keeps work off a bad node; the rest is informational. When many nodes fail at once, status writes for
the first ones would delay the marks of the last: with `defer_status` they come later, the later the slower the API
server is.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

import msgspec

from gpuhealth.api.names import AGENT, CONDITION, MANUAL, QUARANTINE, Override
from gpuhealth.api.report import Quarantine, QuarantineMark, QuarantineState
from gpuhealth.kube.client import STRATEGIC_MERGE_PATCH, Client, Object
from gpuhealth.kube.errors import ConflictError, UnavailableError
from gpuhealth.kube.event_recorder import EventRecorder, node_subject
from gpuhealth.kube.kinds import NODES
from gpuhealth.model.out_of_service import BURNIN_REQUIRED
from gpuhealth.monitors.settings import Settings
from gpuhealth.quarantine.condition import MESSAGE_LIMIT, STAYS_IN_SERVICE, Summary, condition_patch, is_due
from gpuhealth.quarantine.marks import (
    annotations_of,
    condition,
    dismissed_codes,
    ended_by_person,
    has_taint,
    is_out,
    labels,
    marks_removed,
    may_be_out,
    out_of_service,
    override,
    record,
)
from gpuhealth.quarantine.mirrors import MirrorConditions
from gpuhealth.quarantine.other_writer import OtherWriter
from gpuhealth.quarantine.own_node import OwnNode
from gpuhealth.quarantine.removed_marks import RemovedMarks, Remover
from gpuhealth.quarantine.report import Facts, Report, status_of
from gpuhealth.quarantine.slots.holder import Blocked, SlotHolder
from gpuhealth.quarantine.slots.manager import SlotManager
from gpuhealth.quarantine.target import (
    Action,
    Desired,
    NodeChange,
    NodeMarks,
    cordoning,
    is_admitted,
    marks_in_service,
    marks_kept_off,
    node_change,
    requested_codes,
    target_marks,
)

MAX_CONFLICTS = 5
DEADLINE = 60.0
"""Seconds for all requests of one pass."""
DEFERRAL_FACTOR = 2.0
MAX_DEFERRAL = 30.0
"""Condition, Events and report may be written within this many times the time that marking the Node took, in seconds at
most: twenty milliseconds on a server that has nothing else to do."""


class AppliedAction(msgspec.Struct, frozen=True, kw_only=True):
    """One action of a pass."""

    kind: str  # as of an Action
    target: str
    detail: str
    time: datetime
    done: bool = True  # False in mode observe and in a dry run: it would have been done


class PendingPatch(msgspec.Struct, frozen=True):
    """A patch of the Node that was sent, and whose answer has not been seen yet."""

    change: NodeChange
    marks: NodeMarks
    goes_out: bool  # the node is taken out of service, or out of it by another mark or code
    ends: bool  # the node goes back into service
    dismisses: bool  # a person has removed our marks
    puts_back: bool  # a program has removed them


class NodeWriter:
    """Writes our Node's taint, cordon, label, condition, Events and report. One pass at a time."""

    def __init__(
        self,
        client: Client,
        settings: Settings,
        node: OwnNode,
        *,
        dry_run: bool = False,
        on_action: Callable[[AppliedAction], None] = lambda _: None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`on_action` is called for each action when it is done, even if a later request of the pass fails."""
        self.node = node
        self._client = client
        self._mode = settings.mode
        self._settings = settings
        self._preflight_taint = settings.preflight.taint
        self._people = settings.quarantine.people
        self._dry_run = dry_run
        self._on_action = on_action
        self._now = now
        self._lock = asyncio.Lock()
        self._events = EventRecorder(client, AGENT, node.name, host=node.name, now=now)
        holder = SlotHolder(client, settings.kubernetes.namespace, node.name)
        self._slots = SlotManager(holder, self._record, self._queue_event)
        self._removed = RemovedMarks(settings.quarantine, node.name, warn=self._queue_event, now=now)
        self._other_writer = OtherWriter(self._queue_event)
        self._mirrors = MirrorConditions(client, node, settings.conditions, warn=self._queue_event, now=now)
        self._report = Report(client, node.name)
        self._actions: list[AppliedAction] = []  # of this pass
        self._status_due_at = 0.0  # by the event loop's clock
        self._status_pending = False
        self._pending: PendingPatch | None = None
        self._written_record = ""  # that we wrote last, whether or not there was an answer
        self._known_record = ""  # the Node's record when it was decided what is desired
        self._observed: list[Action] = []  # that would have been done in the last pass

    @property
    def blocked(self) -> Blocked | None:
        """Why our node stays in service although it should be out."""
        return self._removed.blocked or self._slots.blocked

    @property
    def marks_removed(self) -> dict[str, int]:
        """How often another client has removed our marks, by who that was."""
        return {str(remover): count for remover, count in self._removed.counts.items()}

    @property
    def is_settled(self) -> bool:
        """Whether everything desired is written; a node that is out still checks its slots now and then."""
        return not self._status_pending and self.blocked is None and not self._slots.has_failed

    @property
    def retry_in(self) -> float | None:
        """Seconds until apply() has something to do again, for the status or for slots; None if nothing is due."""
        due = [self._status_due_at] if self._status_pending else []
        due += [at for at in (self._slots.due_at, self._removed.due_at) if at is not None]
        return max(0.0, min(due) - asyncio.get_running_loop().time()) if due else None

    # --- a pass -------------------------------------------------------------------------------------------------------

    async def apply(
        self, desired: Desired, facts: Facts | None = None, *, node: Object | None = None, defer_status: bool = False
    ) -> list[AppliedAction]:
        """Write the differences from the desired state; returns the actions, hypothetical in mode observe and dry run.

        `node` is our Node as it was when that was decided; without it, it is read. Raises UnavailableError (or another
        ApiError) when not everything could be done; call again. A blocking budget, or a failed request for slots, is no
        error: it appears in condition, Event and report, and `retry_in` is the time until the next attempt. With
        `defer_status` condition, Events and report may be left for later, after `retry_in`.
        """
        async with self._lock:
            self._actions = []
            try:
                async with asyncio.timeout(DEADLINE):
                    node = await self.node.current() if node is None else node
                    self._known_record = annotations_of(node).get(QUARANTINE, "")
                    await self._apply(node, desired, facts or Facts(), defer_status=defer_status)
            except TimeoutError:
                raise UnavailableError(f"the API server took more than {DEADLINE:g} s in all") from None
            return self._actions

    async def _apply(self, node: Object, desired: Desired, facts: Facts, *, defer_status: bool) -> None:
        self._status_pending = False
        if override(node) is Override.UNMANAGED:
            self._suspend()
            await self._write_report(node, desired, facts)
        elif self._dry_run or self._mode == "observe":
            self._suspend()
            self._observe(node, desired)
            if not self._dry_run:
                await self._write_report(node, desired, facts)
        else:
            loop = asyncio.get_running_loop()
            began = loop.time()
            node, target = await self._mark(node, desired)
            node, target = await self._release_slots(node, target, desired)
            if self._actions:  # else nothing was marked
                longest = min(MAX_DEFERRAL, DEFERRAL_FACTOR * (loop.time() - began))
                self._status_due_at = loop.time() + random.uniform(0.0, longest)  # noqa: S311 - no secret
            # The status of a blocked node is never deferred.
            self._status_pending = defer_status and self.blocked is None and loop.time() < self._status_due_at
            if not self._status_pending:
                await self._write_status(node, target)
                await self._write_report(node, desired, facts)

    def _suspend(self) -> None:
        """Nothing of the Node is changed: neither slots nor marks are due."""
        self._slots.suspend()
        self._removed.none_missing()

    def _record(self, kind: str, target: str, detail: str) -> None:
        """Report an action that was done: the one way in which actions leave the writer."""
        action = AppliedAction(kind=kind, target=target, detail=detail, time=self._now())
        self._actions.append(action)
        self._on_action(action)

    def _observe(self, node: Object, desired: Desired) -> None:
        """Report what would be done if every budget had a slot; to `on_action` once, not in every pass."""
        target = self._target(node, desired)
        planned = [*node_change(node, target, self._now()).actions]
        if is_due(node, target.condition, self._now()):
            planned.append(_condition_action(target.condition))
        would = [
            AppliedAction(kind=kind, target=name, detail=detail, time=self._now(), done=False)
            for kind, name, detail in planned
        ]
        self._actions += would
        if planned != self._observed:
            self._observed = planned
            for action in would:
                self._on_action(action)

    # --- taint, cordon and label --------------------------------------------------------------------------------------

    def _target(self, node: Object, desired: Desired) -> NodeMarks:
        return target_marks(
            node,
            desired,
            cordons=cordoning(self._settings, labels(node)),
            preflight_taint=self._preflight_taint,
            people=self._people,
            reason_key=self._settings.quarantine.cordon_reason,
        )

    async def _mark(self, node: Object, desired: Desired) -> tuple[Object, NodeMarks]:
        """Write the missing marks; after a conflict read the Node again and start over.

        Returns the Node after that, and its target marks if every budget had a slot for it.
        """
        for attempt in range(MAX_CONFLICTS):
            self._confirm(node)
            target = self._target(node, desired)
            marks = await self._allowed(node, target, desired)
            try:
                return await self._write(node, marks), target
            except ConflictError:
                if attempt == MAX_CONFLICTS - 1:
                    raise
                node = await self.node.read()
        raise AssertionError("the last attempt returns or raises")

    async def _allowed(self, node: Object, target: NodeMarks, desired: Desired) -> NodeMarks:
        """The marks that the budgets allow. Takes slots for a node that goes out, checks those of one that is out."""
        if target.code is None:
            self._check_record(node)
            self._slots.set_in_service()
            self._removed.none_missing()
        elif is_admitted(node, desired, self._people):
            await self._slots.check(labels(node))
            if not self._removed.may_put_back(node, target.code):
                return marks_kept_off(node, target, desired, preflight_taint=self._preflight_taint)
        elif not await self._slots.request(labels(node), target.code):
            return marks_in_service(node, target, desired, preflight_taint=self._preflight_taint)
        return target

    def _check_record(self, node: Object) -> None:
        """Raise ConflictError if a record has appeared since it was decided that no finding requires a quarantine.

        Such a record may name causes that the decision has to take into account.
        """
        known = annotations_of(node).get(QUARANTINE, "")
        if is_out(node) and known not in (self._known_record, self._written_record):
            raise ConflictError("the Node's record is not the one that the decision was based on")

    async def _write(self, node: Object, marks: NodeMarks) -> Object:
        change = node_change(node, marks, self._now())
        if change.body is not None:
            dismisses = ended_by_person(node, self._people)
            changed = {action.kind for action in change.actions} & {"taint", "cordon"}
            self._pending = PendingPatch(
                change,
                marks,
                goes_out=marks.code is not None and (record(node) is None or bool(changed)),
                ends=marks.code is None and record(node) is not None and not marks.keeps_record,
                dismisses=dismisses,
                puts_back=marks_removed(node) and marks.code is not None and not dismisses,
            )
            new = change.body["metadata"].get("annotations") or {}
            self._written_record = new.get(QUARANTINE) or self._written_record
            node = await self._client.patch(NODES, self.node.name, change.body)
            self.node.see(node)
            self._confirm(node)
        return node

    def _confirm(self, node: Object) -> None:
        """Report what the last patch of the Node did, once the Node shows it: its answer may have been lost."""
        sent, self._pending = self._pending, None
        if sent is None or node_change(node, sent.marks, self._now()).body is not None:
            return
        for action in sent.change.actions:
            self._record(*action)
        kinds = {action.kind for action in sent.change.actions}
        if sent.puts_back:
            self._removed.was_put_back()
        if "preflight" in kinds:
            self._queue_event("Preflight", "rebooted: to be tested before work may come", warning=False)
        if sent.goes_out:
            self._queue_event("Quarantined", f"taken out of service: {sent.marks.condition.message}")
        elif sent.dismisses:
            self._removed.counts[Remover.PERSON] += 1
            codes = ", ".join(sent.marks.dismissed)
            text = f"ended manually; not again for {codes} until it has cleared"
            self._queue_event("QuarantineEnded", text, warning=False)
        elif sent.ends:
            self._queue_event("QuarantineEnded", "back in service", warning=False)

    def _queue_event(self, reason: str, message: str, *, warning: bool = True) -> None:
        self._events.queue(node_subject(self.node.name), reason, message, warning=warning)

    async def _release_slots(self, node: Object, target: NodeMarks, desired: Desired) -> tuple[Object, NodeMarks]:
        """Release the slots of a node that is not out by our action, those that a crash left behind included.

        The cached Node may be outdated, if the watch broke unnoticed and the answer to our taint was lost: so the Node
        is read again before its slot goes to another node.
        """
        if _keeps_slots(node) or not await self._slots.has_releasable():
            return node, target
        node, target = await self._mark(await self.node.read(), desired)
        if not _keeps_slots(node):
            await self._slots.release()
        return node, target

    # --- condition, Events and report ---------------------------------------------------------------------------------

    async def _write_status(self, node: Object, target: NodeMarks) -> None:
        """Write condition and Events; they show the findings, regardless of budgets."""
        wanted = target.condition
        self._other_writer.see(condition(node), self._now())
        if self.blocked is not None:
            message = f"{wanted.message}{STAYS_IN_SERVICE}{self.blocked.reason}"[:MESSAGE_LIMIT]
            wanted = Summary(wanted.status, wanted.reason, message)
        if is_due(node, wanted, self._now()):
            before = (condition(node) or {}).get("status", "True")
            patch = condition_patch(node, wanted, self._now())
            self._other_writer.sending(patch["status"]["conditions"][0])
            node = await self._client.patch(
                NODES, self.node.name, patch, content_type=STRATEGIC_MERGE_PATCH, subresource="status"
            )
            self.node.see(node)
            self._record(*_condition_action(wanted))
            if before != wanted.status and record(node) is None:  # of a node that is out, an Event has the same message
                self._queue_event(wanted.reason, wanted.message, warning=wanted.status != "True")
        node, mirrors = await self._mirrors.write(node, wanted)
        for kind, content in mirrors.items():
            self._record(*_condition_action(content, kind))
        for event in await self._events.flush():
            self._record("event", event.reason, event.message)

    async def _write_report(self, node: Object, desired: Desired, facts: Facts) -> None:
        status = status_of(
            desired.verdict, self._quarantine(node, desired), facts, _would_do(self._actions), desired.release
        )
        if await self._report.write(node, status, self._now()):
            self._record("report", self.node.name, str(desired.verdict.verdict))

    def _quarantine(self, node: Object, desired: Desired) -> Quarantine:
        """The state of the quarantine, for the report."""
        ours = record(node)
        codes = requested_codes(node, desired)
        dismissed = sorted(set(dismissed_codes(node)) & set(codes))
        if ours is not None and is_out(node):
            reasons = [out_of_service(node)] if ours.code == MANUAL else []
            awaiting = ours.code == BURNIN_REQUIRED.name
            return Quarantine(
                state=QuarantineState.AWAITING_TEST if awaiting else QuarantineState.QUARANTINED,
                mark=QuarantineMark.TAINT if has_taint(node) else QuarantineMark.CORDON,
                code=ours.code,
                since=ours.since,
                drain=desired.drain,
                reason="; ".join([*reasons, *self._slots.missing]),
                slots=self._slots.slots,
            )
        if (blocked := self.blocked) is not None:
            return Quarantine(
                state=QuarantineState.BLOCKED,
                code=blocked.code,
                budget=blocked.budget,
                limit=blocked.limit,
                reason=blocked.reason,
            )
        if dismissed:
            reason = "a person removed the taint or the cordon"
            return Quarantine(state=QuarantineState.DISMISSED, code=dismissed[0], reason=reason)
        if codes and self._mode == "observe":
            reason = "mode observe marks nothing"
            return Quarantine(state=QuarantineState.WOULD_QUARANTINE, code=codes[0], reason=reason)
        return Quarantine()


def _condition_action(wanted: Summary, kind: str = CONDITION) -> Action:
    return Action("condition", kind, f"{wanted.status} {wanted.reason}: {wanted.message}")


def _would_do(actions: Iterable[AppliedAction]) -> tuple[str, ...]:
    return tuple(f"{action.kind} {action.target} {action.detail}".strip() for action in actions if not action.done)


def _keeps_slots(node: Object) -> bool:
    """Whether the node is out by our action, may be, or will be again once its marks are put back."""
    return record(node) is not None or may_be_out(node)
