"""Drains nodes: one task for each node whose drain is wanted, ended when it no longer is."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime

import msgspec
import structlog

from gpuhealth.api import metrics as names
from gpuhealth.api.report import Drain, DrainPhase, QuarantineState
from gpuhealth.controller.drain import DrainContext, DrainStatus, NodeDrain, change_state, write_drain
from gpuhealth.controller.duty import Duty, DutyContext
from gpuhealth.controller.gangs import Gangs
from gpuhealth.kube.client import backoff, retry_delay
from gpuhealth.kube.errors import ApiError, NotFoundError
from gpuhealth.kube.event_recorder import node_subject
from gpuhealth.kube.eviction import EvictionOutcome, Evictor
from gpuhealth.quarantine.state import StateEvent
from gpuhealth.runtime.metric_families import Metric, family
from gpuhealth.runtime.rate_limiter import RateLimiter
from gpuhealth.runtime.supervisor import end, raise_if_cancelled

log = structlog.get_logger()

_MIN_RETRY_SECONDS = 1.0
_MAX_RETRY_SECONDS = 60.0


class DrainController(Duty):
    """Starts and ends the drain of each node."""

    name = "drain_controller"

    def __init__(self, context: DutyContext) -> None:
        super().__init__(context)
        self.status = DrainStatus()
        settings = context.settings.controller
        self._drain_context = DrainContext(
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
            holders=context.holders,
        )
        self._tasks: dict[str, asyncio.Task[None]] = {}  # by node
        self._since: dict[str, datetime | None] = {}  # by node: start of the quarantine that its task is for
        self._ended: dict[str, Drain] = {}  # by node, as it was before: the watch may not show the end yet

    async def run(self) -> None:
        """Start and end drains after each change, until cancelled. The next leader resumes unfinished drains."""
        self._ended.clear()  # another process may have led since
        try:
            await self._fleet.repeat_on_change(self._round, 0.0)
        finally:
            await self._stop(list(self._tasks))

    async def _round(self) -> float | None:
        """Start the tasks that are missing, end the others; seconds until a retry, where something failed."""
        await self._stop([node for node in self._tasks if not self._is_current(node)])
        for node in sorted(self._fleet.drains_wanted - self._tasks.keys()):
            self._ended.pop(node, None)
            self._since[node] = self._fleet.reports.items[node].quarantine.since
            self._tasks[node] = asyncio.create_task(self._drain(node), name=f"drain of {node}")
        complete = all([await self._end(node) for node in sorted(self._fleet.drains_to_end)])
        return None if complete else self._timing.retry

    def _is_current(self, node: str) -> bool:
        """Whether the node's task is for its present quarantine: there may have been another since the last round."""
        wanted = node in self._fleet.drains_wanted
        return wanted and self._fleet.reports.items[node].quarantine.since == self._since[node]

    async def _stop(self, nodes: list[str]) -> None:
        await end([self._tasks.pop(node) for node in nodes])

    async def _drain(self, node: str) -> None:
        failures = 0
        while True:
            try:
                return await NodeDrain(node, self._drain_context).run()
            except ApiError as error:
                pause = max(_MIN_RETRY_SECONDS, retry_delay(error, failures, longest=_MAX_RETRY_SECONDS))
                log.warning("drain failed, retrying", node=node, error=str(error), retry_in=round(pause, 1))
            except Exception:  # an error in one drain must not end the others; it is logged
                pause = max(_MIN_RETRY_SECONDS, backoff(failures, longest=_MAX_RETRY_SECONDS))
                log.exception("unexpected error", node=node, retry_in=round(pause, 1))
            raise_if_cancelled()
            await asyncio.sleep(pause)
            failures += 1

    async def _end(self, node: str) -> bool:
        """Record that a drain is no longer wanted; return whether that succeeded.

        The agent owns the label again once it has returned the node to service.
        """
        report = self._fleet.reports.items.get(node)
        if report is None or self._ended.get(node) == report.drain:
            return True
        drain = report.drain
        cancelled = drain.phase == DrainPhase.DRAINING
        now = self._clock().astimezone(UTC).replace(microsecond=0)
        ended = msgspec.structs.replace(
            drain,
            phase=DrainPhase.CANCELLED if cancelled else DrainPhase.ENDED,
            ended_at=now if cancelled else drain.ended_at,
            message=f"{drain.remaining} pods were left" if cancelled else drain.message,
        )
        try:
            quarantined = report.quarantine.state == QuarantineState.QUARANTINED
            if quarantined and not await change_state(self._drain_context, node, StateEvent.DRAIN_CANCELLED):
                return False
            await write_drain(self._client, node, drain, ended)
            self._ended[node] = drain
        except NotFoundError:
            return True
        except ApiError as error:
            raise_if_cancelled()
            log.warning("drain status write failed", node=node, error=str(error), retry_in=self._timing.retry)
            return False
        if cancelled:
            log.info("drain cancelled", node=node, remaining=drain.remaining)
            message = "the drain is no longer wanted: no more pods are evicted"
            await self._recorder.post(node_subject(node), "DrainCancelled", message)
        return True

    def counters(self) -> Iterator[Metric]:
        """Evictions and deletions by outcome; each outcome from the start, since a rate needs its zero."""
        results = [(outcome, self.status.evictions[outcome]) for outcome in EvictionOutcome]
        yield family(names.DRAIN_EVICTIONS, results)

    def gauges(self) -> Iterator[Metric]:
        """Nodes whose drain is wanted, by its phase."""
        shown = ("pending", DrainPhase.DRAINING, DrainPhase.DRAINED)
        phases = [(phase, self._fleet.drains_by_phase[phase]) for phase in shown]
        yield family(names.DRAIN_NODES, phases)
