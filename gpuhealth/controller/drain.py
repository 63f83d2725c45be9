"""The drain of one node: evicts its pods, and deletes at the deadline those that are left.

The report of the node holds all state of the drain, and is written before the first pod is evicted: another controller
continues from there. Counts are written after each step, so a controller that is killed may leave the last step
uncounted. No step is done twice: a pod that is terminating is left alone.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import NamedTuple

import msgspec
import structlog

from gpuhealth.api.report import Drain, DrainPhase
from gpuhealth.controller.gangs import Gangs
from gpuhealth.controller.pods import Pod, by_gang, evictable, pod_view, undecided, unreadable_pod
from gpuhealth.controller.timing import Timing
from gpuhealth.fleet import views
from gpuhealth.fleet.fleet import Fleet
from gpuhealth.fleet.store import ObjectStore
from gpuhealth.kube.client import Client
from gpuhealth.kube.errors import ApiError
from gpuhealth.kube.event_recorder import EventRecorder, Subject, node_subject
from gpuhealth.kube.eviction import EvictionOutcome, EvictionResult, Evictor
from gpuhealth.kube.kinds import PODS, REPORTS
from gpuhealth.kube.objects import read
from gpuhealth.kube.watching import watch
from gpuhealth.model.time import format_time
from gpuhealth.quarantine.state import StateEvent
from gpuhealth.quarantine.state_label import change_label
from gpuhealth.runtime.rate_limiter import RateLimiter
from gpuhealth.runtime.settings import Controller as Settings
from gpuhealth.runtime.supervisor import end, raise_if_cancelled

log = structlog.get_logger()

_MAX_REST_SECONDS = 3600.0
_RESUMED_WITHIN = timedelta(hours=2)  # an agent puts a removed taint back within an hour
_STATE_EVENTS: dict[str, StateEvent] = {
    DrainPhase.DRAINING: StateEvent.DRAIN_STARTED,
    DrainPhase.DRAINED: StateEvent.DRAIN_FINISHED,
}
"""By the phase of a drain that is resumed, the event that sets the node's label accordingly."""


class DrainStatus(msgspec.Struct):
    """Counters of the drains of this process."""

    evictions: Counter[str] = msgspec.field(default_factory=Counter)  # and deletions of pods, by outcome


class DrainContext(msgspec.Struct, frozen=True, kw_only=True):
    """Clients, settings and counters that all drains share."""

    client: Client
    fleet: Fleet
    settings: Settings
    timing: Timing
    evictor: Evictor
    gangs: Gangs
    limiter: RateLimiter  # of evictions and deletions
    recorder: EventRecorder
    status: DrainStatus
    clock: Callable[[], datetime]
    holders: Mapping[str, frozenset[str]]  # as in the DutyContext


def _deadline_left(drain: Drain, now: datetime) -> datetime | None:
    """The deadline, still to come, of a drain that was just cancelled, as when another program removed the taint."""
    deadline, ended = drain.deadline, drain.ended_at
    if drain.phase != DrainPhase.CANCELLED or deadline is None or ended is None:
        return None
    return deadline if deadline > now and now - ended < _RESUMED_WITHIN else None


async def write_drain(client: Client, node: str, old: Drain | None, new: Drain) -> None:
    """Write to the node's report the fields of its drain that have changed.

    The others are left out of the request, since a person may have changed the deadline. Only the controller writes
    these fields. Raises ApiError.
    """
    before = {} if old is None else msgspec.to_builtins(old, builtin_types=(datetime,))
    after = msgspec.to_builtins(new, builtin_types=(datetime,))
    changed = {name: value for name, value in after.items() if name not in before or value != before[name]}
    if changed:
        body = {key: format_time(value) if isinstance(value, datetime) else value for key, value in changed.items()}
        await client.patch(REPORTS, node, {"status": {"drain": body}}, subresource="status")


async def change_state(context: DrainContext, node: str, event: StateEvent) -> bool:
    """Change the node's state label by the transition table; False where the label was not as last seen."""
    known = context.fleet.nodes.items.get(node)
    return known is None or await change_label(context.client, node, known.state, event)


class EvictionRefusal(NamedTuple):
    """Why a pod was not evicted, and when that is tried again."""

    reason: str
    retry_at: float  # by the event loop's clock


class NodeDrain:
    """The drain of one node, for as long as it is wanted."""

    def __init__(self, node: str, context: DrainContext) -> None:
        self._node = node
        self._context = context
        self._pods = ObjectStore[Pod](unreadable=unreadable_pod, by_uid=True)
        self._pods_changed = asyncio.Event()
        self._removed: set[str] = set()  # uids of pods that were evicted or deleted; the watch may not show it yet
        self._reported: set[tuple[str, bool]] = set()  # uids of refused pods, and whether their gang was split
        self._refusals: dict[str, EvictionRefusal] = {}  # by uid
        self._deadline_passed = False
        self._reopened = 0  # how often pods have come after the node was drained
        self._rests_until = 0.0  # by the event loop's clock
        self._cause = ""
        self._drain = Drain()
        self._written: Drain | None = None

    async def run(self) -> None:
        """Drain the node until cancelled, also of pods that come when it is drained already. Raises ApiError."""
        await self._begin()
        following = asyncio.create_task(self._follow())
        try:
            with self._context.gangs.of_node(self._node, self._pods):
                while True:
                    await self._step()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(self._next_step_in()):
                            await self._pods_changed.wait()
                    if following.done():
                        following.result()
                    raise_if_cancelled()
                    await asyncio.sleep(self._context.timing.drain_pause)
        finally:
            await end([following])

    async def _follow(self) -> None:
        # From the server's cache, which has an index of pods by node.
        pods = watch(
            self._context.client,
            PODS,
            fields=f"spec.nodeName={self._node}",
            parse=partial(pod_view, exempt_owners=self._context.settings.drain_exempt_owners),
            on_unreadable=self._context.fleet.count_unreadable,
            paged=False,
        )
        async with aclosing(pods) as events:
            await self._pods.follow(events, self._pods_changed.set)

    async def _begin(self) -> None:
        """Resume the drain that the report shows for this quarantine, or start one."""
        context = self._context
        while not (report := await self._read_report()).quarantine.asks_for_drain:  # noqa: ASYNC110 - no event for it
            await asyncio.sleep(context.timing.drain_pause)  # until the watch shows that, and this task is cancelled
        since = report.quarantine.since
        self._cause = f"node {self._node} is out of service for {report.quarantine.code or 'a fault'}"
        if report.drain.quarantine_since == since and report.drain.phase in _STATE_EVENTS:
            self._drain = self._written = report.drain
            await change_state(context, self._node, _STATE_EVENTS[report.drain.phase])
            log.info("drain resumed", node=self._node, phase=report.drain.phase, deadline=str(report.drain.deadline))
            return
        now = self._now()
        deadline = now + timedelta(seconds=context.settings.drain_deadline)
        if report.drain.quarantine_since == since:
            deadline = _deadline_left(report.drain, now) or deadline
        self._drain = Drain(phase=DrainPhase.DRAINING, quarantine_since=since, started_at=now, deadline=deadline)
        await self._save()  # before any pod is evicted
        await change_state(context, self._node, StateEvent.DRAIN_STARTED)
        log.info("drain started", node=self._node, code=report.quarantine.code, deadline=format_time(deadline))
        message = f"{self._cause}: its pods are evicted, and those left at {format_time(deadline)} are deleted"
        await context.recorder.post(node_subject(self._node), "DrainStarted", message)
        await self._wait_for_budgets(report.quarantine.slots)

    async def _wait_for_budgets(self, slots: tuple[str, ...]) -> None:
        """Wait until the status of each budget counts the node: whoever reads it should know that before pods go.

        Only for a short time: a status that cannot be written stops no drain.
        """
        context, known = self._context, self._context.fleet.slots.items

        def counted(slot: str) -> bool:
            return slot in known and (
                not known[slot].lasting or self._node in context.holders.get(known[slot].budget, ())
            )

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(context.timing.budget_wait):
                while not all(map(counted, slots)):  # noqa: ASYNC110 - no event for it
                    await asyncio.sleep(context.timing.drain_pause)
        raise_if_cancelled()

    async def _read_report(self) -> views.ReportView:
        """Return the node's report as it is now, not as the watch has shown it."""
        return read(REPORTS.kind, await self._context.client.get(REPORTS, self._node), views.report_view)

    def _now(self) -> datetime:
        return self._context.clock().astimezone(UTC).replace(microsecond=0)

    async def _step(self) -> None:
        """Evict every pod that may be evicted now, and write the progress."""
        self._pods_changed.clear()
        if not self._pods.listed:
            return
        present = self._evictable()
        if present and self._drain.phase == DrainPhase.DRAINED:
            if asyncio.get_running_loop().time() < self._rests_until:
                return
            await self._reopen(present)
        self._removed &= self._pods.items.keys()
        waiting = set() if self._deadline_just_passed() else {pod.uid for pod in present if not pod.terminating}
        self._refusals = {uid: refusal for uid, refusal in self._refusals.items() if uid in waiting}
        if present:
            await change_state(self._context, self._node, StateEvent.DRAIN_STARTED)
        await self._write_progress(present)
        for gang in by_gang(present):
            if not (due := self._due(gang)):
                continue
            raise_if_cancelled()
            if not await self._must_wait(due):
                await self._context.limiter.take(len(due))
                # Checked again: with many pods the first check was long ago.
                if (due := self._due(gang)) and not await self._must_wait(due):
                    await self._remove_gang(due)
            await self._write_progress(self._evictable())
        nothing_left = not present and not self._evictable() and not self._undecided()
        is_marked = nothing_left and await change_state(self._context, self._node, StateEvent.DRAIN_FINISHED)
        if is_marked and self._drain.phase != DrainPhase.DRAINED:
            await self._finish()

    def _evictable(self) -> list[Pod]:
        return evictable(self._pods.items.values(), self._context.fleet.drain_exempt_namespaces.items)

    def _undecided(self) -> list[Pod]:
        return undecided(self._pods.items.values(), self._context.fleet.drain_exempt_namespaces.items)

    def _due(self, gang: list[Pod]) -> list[Pod]:
        """Return the pods of a gang that are still to be evicted; none before the retry of all of them is due."""
        now = asyncio.get_running_loop().time()
        known = [self._pods.items[pod.uid] for pod in gang if pod.uid in self._pods.items]
        left = [
            pod
            for pod in evictable(known, self._context.fleet.drain_exempt_namespaces.items)
            if not pod.terminating and pod.uid not in self._removed
        ]
        waiting = any(pod.uid in self._refusals and self._refusals[pod.uid].retry_at > now for pod in left)
        return [] if waiting else left

    def _next_step_in(self) -> float:
        """Return the seconds until the next step is due without any change of the pods."""
        now = asyncio.get_running_loop().time()
        due = [refusal.retry_at - now for refusal in self._refusals.values()]
        if (deadline := self._deadline()) is not None and not self._is_overdue():
            due.append((deadline - self._context.clock()).total_seconds())
        if not self._evictable() and self._drain.phase != DrainPhase.DRAINED:
            due.append(self._context.timing.drain_label_retry)  # only the label is missing
        longest = self._context.settings.drain_retry
        return min(max(0.0, min(due, default=longest)), longest)

    def _deadline(self) -> datetime | None:
        """Return the deadline in the report, which a person may have changed."""
        report = self._context.fleet.reports.items.get(self._node)
        if report is not None and report.drain.started_at == self._drain.started_at and report.drain.deadline:
            return report.drain.deadline
        return self._drain.deadline

    def _is_overdue(self) -> bool:
        deadline = self._deadline()
        return deadline is not None and self._context.clock() >= deadline

    def _deadline_just_passed(self) -> bool:
        """True once, at the first step after the deadline: then no pod waits for its next retry."""
        before, self._deadline_passed = self._deadline_passed, self._is_overdue()
        return self._deadline_passed and not before

    # --- pods ---------------------------------------------------------------------------------------------------------

    async def _must_wait(self, gang: list[Pod]) -> bool:
        """Whether a gang must wait, since not all of its pods may be evicted now."""
        if self._is_overdue():
            return False
        try:
            reason = await self._context.gangs.blocking_reason(gang[0])
        except ApiError as error:
            raise_if_cancelled()
            await self._postpone(gang, EvictionResult(EvictionOutcome.FAILED, str(error), error.retry_after or 0.0))
            return True
        if reason:
            await self._postpone(gang, EvictionResult(EvictionOutcome.REFUSED, reason))
        return bool(reason)

    async def _remove_gang(self, gang: list[Pod]) -> None:
        """Evict or delete the pods of a gang together.

        While the gang is complete the first pod goes alone, and the others only after that succeeded: what the
        PodDisruptionBudgets allow may have changed a moment ago.
        """
        first, *others = gang
        if self._context.gangs.is_split(first):
            await asyncio.gather(*(self._remove(pod) for pod in gang))
            return
        await self._remove(first)
        if (refusal := self._refusals.get(first.uid)) is not None:
            self._refusals |= {pod.uid: refusal for pod in others}
        else:
            await asyncio.gather(*(self._remove(pod) for pod in others))

    async def _remove(self, pod: Pod) -> None:
        """Evict a pod, or delete it after the deadline; record the outcome."""
        context = self._context
        remove = context.evictor.delete if self._is_overdue() else context.evictor.evict
        result = await remove(pod.namespace, pod.name, pod.uid)
        match result.outcome:
            case EvictionOutcome.EVICTED:
                self._drain = msgspec.structs.replace(self._drain, evicted=self._drain.evicted + 1)
            case EvictionOutcome.DELETED:
                self._drain = msgspec.structs.replace(self._drain, deleted=self._drain.deleted + 1)
            case EvictionOutcome.REFUSED | EvictionOutcome.FAILED:
                await self._postpone([pod], result)
                return
        self._count(pod, result)
        context.gangs.mark_split(pod)
        self._removed.add(pod.uid)
        self._refusals.pop(pod.uid, None)
        await self._post_removal(pod, result)

    async def _postpone(self, pods: list[Pod], result: EvictionResult) -> None:
        """Schedule a joint retry of the pods after the retry interval, or later if the API server requests it."""
        self._count(pods[0], result)
        delay = max(self._context.settings.drain_retry, result.retry_after)
        refusal = EvictionRefusal(result.detail, asyncio.get_running_loop().time() + delay)
        self._refusals |= {pod.uid: refusal for pod in pods}
        for pod in pods:
            await self._post_refusal(pod, result)

    def _count(self, pod: Pod, result: EvictionResult) -> None:
        self._context.status.evictions[result.outcome] += 1
        log.info(
            "pod eviction",
            outcome=result.outcome,
            node=self._node,
            namespace=pod.namespace,
            pod=pod.name,
            gang=pod.gang,
            detail=result.detail,
        )

    async def _post_removal(self, pod: Pod, result: EvictionResult) -> None:
        if result.outcome is EvictionOutcome.EVICTED:
            await self._context.recorder.post(_subject(pod), "Evicted", f"{self._cause}: evicted by gpuhealth")
        elif result.outcome is EvictionOutcome.DELETED:
            message = f"{self._cause}: deleted by gpuhealth, since it could not be evicted before the drain's deadline"
            await self._context.recorder.post(_subject(pod), "DrainDeadline", message, warning=True)

    async def _post_refusal(self, pod: Pod, result: EvictionResult) -> None:
        """Post an Event once for each refused pod, and once more when others of its gang have gone."""
        split = bool(pod.gang) and self._context.gangs.is_split(pod)
        if (pod.uid, split) not in self._reported:
            self._reported.add((pod.uid, split))
            others = f", and others of its gang {pod.gang} have gone" if split else ""
            message = f"{self._cause}, but the pod cannot be evicted now: {result.detail}{others}; gpuhealth will retry"
            await self._context.recorder.post(_subject(pod), "EvictionRefused", message, warning=True)

    # --- the report ---------------------------------------------------------------------------------------------------

    async def _write_progress(self, present: list[Pod]) -> None:
        """Write the number of pods that are left, and why, where that has changed."""
        refused = [pod for pod in present if pod.uid in self._refusals and not pod.terminating]
        undecided = self._undecided()
        now = self._context.clock()
        late = [pod for pod in present if pod.terminates_by is not None and pod.terminates_by < now]
        exempt = [pod for pod in self._pods.items.values() if not pod.unaffected and pod not in [*present, *undecided]]
        parts = []
        if refused:
            reason = self._refusals[refused[0].uid].reason
            parts.append(f"eviction refused for {_pods(refused)}: {reason}")
        if late:  # the API server keeps a pod until its kubelet confirms the end
            parts.append(f"still terminating after the grace period: {_pods(late)}")
        if undecided:
            parts.append(f"unreadable: {_pods(undecided)}")
        if exempt:
            parts.append(f"exempt by label, annotation or owner: {_pods(exempt)}")
        remaining = len(present) + len(undecided)
        self._drain = msgspec.structs.replace(self._drain, remaining=remaining, message="; ".join(parts))
        await self._save()

    async def _save(self) -> None:
        await write_drain(self._context.client, self._node, self._written, self._drain)
        self._written = self._drain

    async def _reopen(self, present: list[Pod]) -> None:
        """Start again with a new deadline for pods that tolerate the taint, or were bound at the last moment."""
        now = self._now()
        deadline = now + timedelta(seconds=self._context.settings.drain_deadline)
        self._drain = msgspec.structs.replace(
            self._drain, phase=DrainPhase.DRAINING, started_at=now, deadline=deadline, ended_at=None
        )
        await self._save()
        log.info("drain restarted", node=self._node, pods=len(present), deadline=format_time(deadline))
        self._reopened += 1
        message = f"{self._cause}, and was drained: pods that have started since are evicted, and those left at"
        message += f" {format_time(deadline)} are deleted: {_pods(present)}"
        await self._context.recorder.post(node_subject(self._node), "DrainResumed", message)

    async def _finish(self) -> None:
        self._drain = msgspec.structs.replace(self._drain, phase=DrainPhase.DRAINED, remaining=0, ended_at=self._now())
        await self._save()
        # A controller that recreates its pod for this very node each time must not cause evictions without end.
        rest = min(_MAX_REST_SECONDS, self._context.settings.drain_retry * 2.0 ** min(self._reopened, 16))
        self._rests_until = asyncio.get_running_loop().time() + rest
        drain = self._drain
        log.info("drain finished", node=self._node, evicted=drain.evicted, deleted=drain.deleted)
        message = f"{self._cause}: drained, {drain.evicted} pods evicted and {drain.deleted} deleted at the deadline"
        await self._context.recorder.post(node_subject(self._node), "Drained", message)


def _subject(pod: Pod) -> Subject:
    return Subject("Pod", pod.name, pod.uid, pod.namespace)


def _pods(pods: list[Pod]) -> str:
    """Name one of the pods, and how many there are."""
    name = f"{pods[0].namespace}/{pods[0].name}"
    return f"pod {name}" if len(pods) == 1 else f"{len(pods)} pods, such as {name}"
