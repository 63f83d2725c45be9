"""All drains: one task for each node that should be drained, ended when it should not be any longer."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime

import msgspec
import structlog

from gpuhealth.controller.drain import DrainContext, DrainStatus, NodeDrain, mark_state, write_drain
from gpuhealth.controller.duty import Duty, DutyContext
from gpuhealth.controller.gangs import Gangs
from gpuhealth.fleet import views as facts
from gpuhealth.kube.client import backoff, patience
from gpuhealth.kube.errors import ApiError, NotFoundError
from gpuhealth.kube.event_recorder import node_subject
from gpuhealth.kube.eviction import Evictor, Outcome
from gpuhealth.quarantine.state import StateEvent
from gpuhealth.runtime.metric_families import Metric, counter, gauge
from gpuhealth.runtime.rate_limiter import RateLimiter
from gpuhealth.runtime.supervisor import end, raise_if_cancelled

log = structlog.get_logger()


class DrainController(Duty):
    """Starts and stops the drain of each node."""

    name = "drain_controller"

    def __init__(self, context: DutyContext) -> None:
        super().__init__(context)
        self.status = DrainStatus()
        settings = context.settings.controller
        self._drains = DrainContext(
            client=context.client,
            fleet=context.fleet,
            settings=settings,
            timing=context.timing,
            evictor=Evictor(context.client),
            gangs=Gangs(context.client, context.fleet),
            limiter=RateLimiter(settings.evictions_per_second, settings.eviction_burst),
            recorder=context.recorder,
            status=self.status,
            clock=context.clock,
        )
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._since: dict[str, datetime | None] = {}  # by node, the quarantine that its task is for
        self._ended: dict[str, facts.Drain] = {}  # as they were: the watch may not say yet that they are over

    async def run(self) -> None:
        """Start and stop drains after each change, until cancelled. The next leader resumes unfinished drains."""
        self._ended.clear()  # another may have led since
        try:
            await self._fleet.rounds(self._round, 0.0)
        finally:
            await self._stop(list(self._tasks))

    async def _round(self) -> float | None:
        """Makes the tasks those that are wanted; seconds until that is tried again, where it could not be done."""
        fleet = self._fleet
        await self._stop([node for node in self._tasks if not self._is_for_now(node)])
        for node in sorted(fleet.to_drain - self._tasks.keys()):
            self._ended.pop(node, None)
            self._since[node] = fleet.reports.items[node].quarantine.since
            self._tasks[node] = asyncio.create_task(self._drain(node), name=f"drain of {node}")
        complete = all([await self._end(node) for node in sorted(fleet.to_end)])
        return None if complete else self._timing.retry

    def _is_for_now(self, node: str) -> bool:
        """Whether the node's task is for the quarantine that it is in: between two looks there may have been others."""
        fleet = self._fleet
        return node in fleet.to_drain and fleet.reports.items[node].quarantine.since == self._since[node]

    async def _stop(self, nodes: list[str]) -> None:
        await end([self._tasks.pop(node) for node in nodes])

    async def _drain(self, node: str) -> None:
        failures = 0
        while True:
            try:
                return await NodeDrain(node, self._drains).run()
            except ApiError as error:
                pause = patience(error, failures, longest=60.0)
                log.warning("drain failed, retrying", node=node, error=str(error), retry_in=round(max(1.0, pause), 1))
            except Exception:  # one node's trouble must not end the drains of the others; it is logged
                pause = backoff(failures, longest=60.0)
                log.exception("unexpected error", node=node)
            raise_if_cancelled()
            await asyncio.sleep(max(1.0, pause))
            failures += 1

    async def _end(self, node: str) -> bool:
        """Notes that a drain is wanted no more. The label is the agent's again once it has given the node back."""
        report = self._fleet.reports.items.get(node)
        if report is None or self._ended.get(node) == report.drain:
            return True
        drain = report.drain
        cancelled = drain.phase == "draining"
        now = self._clock().astimezone(UTC).replace(microsecond=0)
        ended = msgspec.structs.replace(
            drain,
            phase="cancelled" if cancelled else "ended",
            ended_at=now if cancelled else drain.ended_at,
            message=f"{drain.remaining} pods were left" if cancelled else drain.message,
        )
        try:
            quarantined = report.quarantine.state == "quarantined"
            if quarantined and not await mark_state(self._drains, node, StateEvent.DRAIN_CANCELLED):
                return False
            await write_drain(self._client, node, drain, ended)
            self._ended[node] = drain
        except NotFoundError:
            return True
        except ApiError as error:
            raise_if_cancelled()
            log.warning("drain status write failed", node=node, error=str(error))
            return False
        if cancelled:
            log.info("drain cancelled", node=node, remaining=drain.remaining)
            await self._recorder.post(
                node_subject(node),
                "DrainCancelled",
                "the node is not to be drained any longer: no more pods are evicted",
            )
        return True

    def counters(self) -> Iterator[Metric]:
        """Outcomes of evictions, from the start: a rate needs its zero."""
        results = [(outcome, self.status.evictions[outcome]) for outcome in Outcome]
        yield counter("drain_evictions", "Pods sent away by drains, and tries at it", ["result"], results)

    def gauges(self) -> Iterator[Metric]:
        """Nodes by the phase of their drain."""
        phases = [(phase, self._fleet.phases[phase]) for phase in ("pending", "draining", "drained")]
        yield gauge("drain_nodes", "Nodes that are to be drained", ["phase"], phases)
