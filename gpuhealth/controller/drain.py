"""The drain of one node: what runs there is asked to go, and made to go at the deadline.

Everything that a drain must remember is in the node's report before the first pod goes: another controller goes on
from there. What is counted is written after each step, so a controller that is killed may leave the last step
uncounted; it never does a step twice, since a pod that is on its way is left alone.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import msgspec
import structlog

from gpuhealth.api.names import STATE_LABEL, NodeState
from gpuhealth.api.report import Drain, DrainPhase
from gpuhealth.controller.event_recorder import Telling
from gpuhealth.controller.gangs import Gangs
from gpuhealth.controller.pods import Pod, gangs, movable, slim, unknown, unreadable_pod
from gpuhealth.fleet import views as facts
from gpuhealth.fleet.fleet import Fleet
from gpuhealth.fleet.store import Table
from gpuhealth.kube.client import JSON_PATCH, Client
from gpuhealth.kube.errors import ApiError, InvalidError, NotFoundError
from gpuhealth.kube.eviction import Evictor, Outcome, Result
from gpuhealth.kube.kinds import NODES, PODS, REPORTS
from gpuhealth.kube.objects import read
from gpuhealth.kube.watching import watch
from gpuhealth.quarantine.marks import written_time
from gpuhealth.runtime.rate_limiter import Pace
from gpuhealth.runtime.settings import Controller as Settings
from gpuhealth.runtime.supervisor import end, raise_if_cancelled

log = structlog.get_logger()

_PAUSE_SECONDS = 0.2  # a node's pods that end together are one write
_MARK_SECONDS = 1.0
_LONGEST_REST_SECONDS = 3600.0
_OUR_STATES = (NodeState.DRAINING, NodeState.DRAINED)


class Means(msgspec.Struct, frozen=True):
    """What all drains share."""

    client: Client
    fleet: Fleet
    settings: Settings
    evictor: Evictor
    gangs: Gangs
    pace: Pace
    telling: Telling
    results: Counter[str]  # of evictions and deletions, for metrics
    now: Callable[[], datetime]


async def write_drain(client: Client, node: str, old: Drain | None, new: Drain) -> None:
    """Put into the node's report what has changed of its drain, and nothing else: the deadline may have been changed
    by a person since. Only the controller writes these fields; the agent leaves them alone."""
    before = {} if old is None else msgspec.to_builtins(old, builtin_types=(datetime,))
    after = msgspec.to_builtins(new, builtin_types=(datetime,))
    changed = {name: value for name, value in after.items() if name not in before or value != before[name]}
    if changed:
        body = {key: written_time(value) if isinstance(value, datetime) else value for key, value in changed.items()}
        await client.patch(REPORTS, node, {"status": {"drain": body}}, subresource="status")


async def mark_state(means: Means, node: str, state: str) -> bool:
    """Make our label say this, unless another than the agent's `quarantined` or one of ours is there."""
    found = means.fleet.nodes.items.get(node)
    if found is None or found.state == state or found.state not in {NodeState.QUARANTINED, *_OUR_STATES}:
        return True
    path = "/metadata/labels/" + STATE_LABEL.replace("~", "~0").replace("/", "~1")
    patch = [{"op": "test", "path": path, "value": found.state}, {"op": "replace", "path": path, "value": state}]
    try:
        await means.client.patch(NODES, node, patch, content_type=JSON_PATCH)
    except (InvalidError, NotFoundError):  # it has changed: what it is now will be told by the watch
        return False
    return True


class Refusal(NamedTuple):
    """Why a pod is still there, and when it is asked again."""

    reason: str
    retry_at: float  # in the loop's time


class NodeDrain:
    """One node's drain, by this process."""

    def __init__(self, node: str, means: Means) -> None:
        self._node = node
        self._means = means
        self._pods = Table[Pod](unreadable=unreadable_pod, by_uid=True)
        self._news = asyncio.Event()  # of the node's pods
        self._sent: set[str] = set()  # pods that have been sent away, though the watch may not say so yet
        self._told: set[tuple[str, bool]] = set()  # pods that may not go, and whether their gang was split
        self._refusals: dict[str, Refusal] = {}  # by pod
        self._forcing = False
        self._reopened = 0  # how often pods have come after all had gone
        self._rests_until = 0.0  # in the loop's time
        self._why = ""
        self._drain = Drain()
        self._written: Drain | None = None

    async def run(self) -> None:
        """Until cancelled: what comes to a node that is drained already must go, too."""
        await self._begin()
        following = asyncio.create_task(self._follow())
        try:
            with self._means.gangs.of_node(self._node, self._pods):
                while True:
                    await self._step()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(self._patience()):
                            await self._news.wait()
                    if following.done():
                        following.result()
                    raise_if_cancelled()
                    await asyncio.sleep(_PAUSE_SECONDS)
        finally:
            await end([following])

    async def _follow(self) -> None:
        # From the server's cache, which finds a node's pods without going through everybody's.
        pods = watch(
            self._means.client,
            PODS,
            fields=f"spec.nodeName={self._node}",
            slim=slim,
            noted=self._means.fleet.note_unreadable,
            paged=False,
        )
        async with aclosing(pods) as events:
            await self._pods.follow(events, self._news.set)

    async def _begin(self) -> None:
        """Take the drain up, or begin it."""
        means = self._means
        while not (said := await self._read()).quarantine.asks_for_drain:  # noqa: ASYNC110 - nothing to wait on
            await asyncio.sleep(_PAUSE_SECONDS)  # it has changed: when the watch says so too, we are cancelled
        since = said.quarantine.since
        self._why = f"node {self._node} is out of service for {said.quarantine.code or 'a fault'}"
        if said.drain.quarantine_since == since and said.drain.phase in _OUR_STATES:
            self._drain = self._written = said.drain
            await mark_state(means, self._node, said.drain.phase)
            log.info("drain resumed", node=self._node, phase=said.drain.phase, deadline=str(said.drain.deadline))
            return
        now = means.now().astimezone(UTC).replace(microsecond=0)
        deadline = now + timedelta(seconds=means.settings.drain_deadline)
        self._drain = Drain(phase=DrainPhase.DRAINING, quarantine_since=since, started_at=now, deadline=deadline)
        await self._save()  # before anything is done
        await mark_state(means, self._node, NodeState.DRAINING)
        log.info("drain started", node=self._node, code=said.quarantine.code, deadline=written_time(deadline))
        message = f"{self._why}: its pods are asked to go, and deleted at {written_time(deadline)}"
        await means.telling.of_node(self._node, "DrainStarted", message)

    async def _read(self) -> facts.Report:
        """The node's report as it is, not as a watch has seen it."""
        return read(REPORTS.kind, await self._means.client.get(REPORTS, self._node), facts.report)

    async def _step(self) -> None:
        """Does what can be done now."""
        self._news.clear()
        if not self._pods.listed:
            return
        present = self._movable()
        if present and self._drain.phase == DrainPhase.DRAINED:
            if asyncio.get_running_loop().time() < self._rests_until:
                return
            await self._reopen(present)
        self._sent &= self._pods.items.keys()
        waiting = set() if self._has_just_run_out() else {pod.uid for pod in present if not pod.terminating}
        self._refusals = {uid: refusal for uid, refusal in self._refusals.items() if uid in waiting}
        if present:
            await mark_state(self._means, self._node, NodeState.DRAINING)
        await self._note(present)
        for gang in gangs(present):
            if not (trying := self._to_try(gang)):
                continue
            raise_if_cancelled()
            if not await self._must_wait(trying):
                await self._means.pace.take(len(trying))
                # Asked again: with many pods the first look is long ago.
                if (trying := self._to_try(gang)) and not await self._must_wait(trying):
                    await self._move(trying)
            await self._note(self._movable())
        nothing_left = not present and not self._movable() and not self._unknown()
        if not nothing_left:
            return
        if await mark_state(self._means, self._node, NodeState.DRAINED) and self._drain.phase != DrainPhase.DRAINED:
            await self._finish()

    def _movable(self) -> list[Pod]:
        return movable(self._pods.items.values(), self._means.fleet.kept_namespaces.items)

    def _unknown(self) -> list[Pod]:
        return unknown(self._pods.items.values(), self._means.fleet.kept_namespaces.items)

    def _to_try(self, gang: list[Pod]) -> list[Pod]:
        """The pods of a gang that are still to be sent away, as they are; none before the time has come for all."""
        now = asyncio.get_running_loop().time()
        known = [self._pods.items[pod.uid] for pod in gang if pod.uid in self._pods.items]
        left = [
            pod
            for pod in movable(known, self._means.fleet.kept_namespaces.items)
            if not pod.terminating and pod.uid not in self._sent
        ]
        waiting = any(pod.uid in self._refusals and self._refusals[pod.uid].retry_at > now for pod in left)
        return [] if waiting else left

    def _patience(self) -> float:
        """Seconds after which something is due though nothing was heard."""
        now = asyncio.get_running_loop().time()
        due = [refusal.retry_at - now for refusal in self._refusals.values()]
        if (deadline := self._deadline()) is not None and not self._is_overdue():
            due.append((deadline - self._means.now()).total_seconds())
        if not self._movable() and self._drain.phase != DrainPhase.DRAINED:
            due.append(_MARK_SECONDS)  # only the label is missing
        longest = self._means.settings.drain_retry
        return min(max(0.0, min(due, default=longest)), longest)

    def _deadline(self) -> datetime | None:
        """As the report has it: a person may have changed it."""
        report = self._means.fleet.reports.items.get(self._node)
        if report is not None and report.drain.started_at == self._drain.started_at and report.drain.deadline:
            return report.drain.deadline
        return self._drain.deadline

    def _is_overdue(self) -> bool:
        deadline = self._deadline()
        return deadline is not None and self._means.now() >= deadline

    def _has_just_run_out(self) -> bool:
        """Once, when the deadline comes: then nothing waits for its next try."""
        before, self._forcing = self._forcing, self._is_overdue()
        return self._forcing and not before

    # --- pods ---------------------------------------------------------------------------------------------------------

    async def _must_wait(self, gang: list[Pod]) -> bool:
        """Whether a gang has to wait, since not all of its pods may go now."""
        if self._is_overdue():
            return False
        try:
            reason = await self._means.gangs.obstacle(gang[0])
        except ApiError as error:
            raise_if_cancelled()
            await self._put_off(gang, Result(Outcome.FAILED, str(error), error.retry_after or 0.0))
            return True
        if reason:
            await self._put_off(gang, Result(Outcome.REFUSED, reason))
        return bool(reason)

    async def _move(self, gang: list[Pod]) -> None:
        """Sends the pods of a gang away together; while it is whole and the first may not go, none of the others is
        asked: what the budgets allow may have changed a moment ago."""
        first, *others = gang
        if self._means.gangs.is_split(first):
            await asyncio.gather(*(self._send_away(pod) for pod in gang))
            return
        await self._send_away(first)
        if (refusal := self._refusals.get(first.uid)) is not None:
            self._refusals |= {pod.uid: refusal for pod in others}
        else:
            await asyncio.gather(*(self._send_away(pod) for pod in others))

    async def _send_away(self, pod: Pod) -> None:
        means, overdue = self._means, self._is_overdue()
        send = means.evictor.delete if overdue else means.evictor.evict
        result = await send(pod.namespace, pod.name, pod.uid)
        match result.outcome:
            case Outcome.EVICTED:
                self._drain = msgspec.structs.replace(self._drain, evicted=self._drain.evicted + 1)
            case Outcome.DELETED:
                self._drain = msgspec.structs.replace(self._drain, deleted=self._drain.deleted + 1)
            case Outcome.REFUSED | Outcome.FAILED:
                await self._put_off([pod], result)
                return
        self._count(pod, result)
        means.gangs.split(pod)
        self._sent.add(pod.uid)
        self._refusals.pop(pod.uid, None)
        await self._tell_departure(pod, result)

    async def _put_off(self, pods: list[Pod], result: Result) -> None:
        """They are tried again, later and together."""
        self._count(pods[0], result)
        delay = max(self._means.settings.drain_retry, result.retry_after)
        refusal = Refusal(result.detail, asyncio.get_running_loop().time() + delay)
        self._refusals |= {pod.uid: refusal for pod in pods}
        for pod in pods:
            await self._tell_refusal(pod, result)

    def _count(self, pod: Pod, result: Result) -> None:
        self._means.results[result.outcome] += 1
        log.info(
            "pod eviction",
            outcome=result.outcome,
            node=self._node,
            namespace=pod.namespace,
            pod=pod.name,
            gang=pod.gang,
            detail=result.detail,
        )

    async def _tell_departure(self, pod: Pod, result: Result) -> None:
        if result.outcome is Outcome.EVICTED:
            await self._means.telling.of_pod(pod, "Evicted", f"{self._why}: evicted by gpuhealth")
        elif result.outcome is Outcome.DELETED:
            message = f"{self._why}: deleted by gpuhealth, since it could not be evicted before the drain's deadline"
            await self._means.telling.of_pod(pod, "DrainDeadline", message, warning=True)

    async def _tell_refusal(self, pod: Pod, result: Result) -> None:
        """Once for each pod, however often it is refused; and once when others of its gang have gone."""
        split = bool(pod.gang) and self._means.gangs.is_split(pod)
        if (pod.uid, split) not in self._told:
            self._told.add((pod.uid, split))
            others = f", and others of its gang {pod.gang} have gone" if split else ""
            message = f"{self._why}, but the pod may not be evicted now: {result.detail}{others}; gpuhealth will retry"
            await self._means.telling.of_pod(pod, "EvictionRefused", message, warning=True)

    # --- the report ---------------------------------------------------------------------------------------------------

    async def _note(self, present: list[Pod]) -> None:
        """Writes how far it is, where that has changed."""
        refused = [pod for pod in present if pod.uid in self._refusals and not pod.terminating]
        unread = self._unknown()
        staying = [pod for pod in self._pods.items.values() if not pod.settled and pod not in [*present, *unread]]
        parts = []
        if refused:
            pod, reason = refused[0], self._refusals[refused[0].uid].reason
            parts.append(f"{len(refused)} may not be evicted, such as {pod.namespace}/{pod.name}: {reason}")
        if late := [pod for pod in present if pod.gone_by is not None and pod.gone_by < self._means.now()]:
            pod = late[0]  # the server keeps it until kubelet says that it is gone
            parts.append(f"{len(late)} were told to stop and are there yet, such as {pod.namespace}/{pod.name}")
        if unread:
            parts.append(f"{len(unread)} cannot be read, such as {unread[0].namespace}/{unread[0].name}")
        if staying:
            parts.append(f"{len(staying)} stay as they or their namespaces ask")
        self._drain = msgspec.structs.replace(
            self._drain, remaining=len(present) + len(unread), message="; ".join(parts)
        )
        await self._save()

    async def _save(self) -> None:
        await write_drain(self._means.client, self._node, self._written, self._drain)
        self._written = self._drain

    async def _reopen(self, present: list[Pod]) -> None:
        """Pods that tolerate the taint, or were bound at that very moment, have come: they have their own deadline."""
        now = self._means.now().astimezone(UTC).replace(microsecond=0)
        deadline = now + timedelta(seconds=self._means.settings.drain_deadline)
        changed = {"phase": DrainPhase.DRAINING, "started_at": now, "deadline": deadline, "ended_at": None}
        self._drain = msgspec.structs.replace(self._drain, **changed)
        await self._save()
        log.info("drain restarted", node=self._node, pods=len(present), deadline=written_time(deadline))
        message = f"{self._why}, and was drained: pods that have come since, such as {present[0].namespace}/"
        message += f"{present[0].name}, are asked to go, and deleted at {written_time(deadline)}"
        self._reopened += 1
        await self._means.telling.of_node(self._node, "DrainResumed", message)

    async def _finish(self) -> None:
        ended = self._means.now().astimezone(UTC).replace(microsecond=0)
        self._drain = msgspec.structs.replace(self._drain, phase=DrainPhase.DRAINED, remaining=0, ended_at=ended)
        await self._save()
        # What somebody makes anew for this very node, as often as it goes, must not go and come for ever.
        rest = min(_LONGEST_REST_SECONDS, self._means.settings.drain_retry * 2.0 ** min(self._reopened, 16))
        self._rests_until = asyncio.get_running_loop().time() + rest
        drain = self._drain
        log.info("drain finished", node=self._node, evicted=drain.evicted, deleted=drain.deleted)
        message = f"{self._why}: drained, {drain.evicted} pods evicted and {drain.deleted} deleted at the deadline"
        await self._means.telling.of_node(self._node, "Drained", message)
