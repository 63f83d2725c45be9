"""All drains: one task for each node that should be drained, ended when it should not be any longer."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime

import msgspec
import structlog

from gpuhealth.api.names import NodeState
from gpuhealth.api.report import Drain, DrainPhase, QuarantineState
from gpuhealth.controller.drain import Means, NodeDrain, mark_state, write_drain
from gpuhealth.kube.client import backoff, patience
from gpuhealth.kube.errors import ApiError, NotFoundError
from gpuhealth.runtime.supervisor import end, raise_if_cancelled

log = structlog.get_logger()

_RETRY_SECONDS = 5.0


class Drains:
    """The drains of the fleet, by the one controller that leads."""

    def __init__(self, means: Means) -> None:
        self._means = means
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._since: dict[str, datetime | None] = {}  # the quarantine that a task is for
        self._ended: dict[str, Drain] = {}  # as they were: the watch may not say yet that they are over

    async def run(self) -> None:
        """Until cancelled; what is unfinished then is taken up by whoever leads next."""
        fleet = self._means.fleet
        try:
            with fleet.listening() as heard:
                while True:
                    complete = True
                    heard.clear()
                    if fleet.ready:
                        complete = await self._round()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(None if complete else _RETRY_SECONDS):
                            await heard.wait()
                    raise_if_cancelled()
        finally:
            await self._stop(list(self._tasks))

    async def _round(self) -> bool:
        """Makes the tasks those that are wanted; whether that is done."""
        fleet = self._means.fleet
        await self._stop([node for node in self._tasks if not self._is_for_now(node)])
        for node in sorted(fleet.to_drain - self._tasks.keys()):
            self._ended.pop(node, None)
            self._since[node] = fleet.reports.items[node].quarantine.since
            self._tasks[node] = asyncio.create_task(self._drain(node), name=f"drain of {node}")
        return all([await self._end(node) for node in sorted(fleet.to_end)])

    def _is_for_now(self, node: str) -> bool:
        """Whether the node's task is for the quarantine that it is in: between two looks there may have been others."""
        fleet = self._means.fleet
        return node in fleet.to_drain and fleet.reports.items[node].quarantine.since == self._since[node]

    async def _stop(self, nodes: list[str]) -> None:
        await end([self._tasks.pop(node) for node in nodes])

    async def _drain(self, node: str) -> None:
        failures = 0
        while True:
            try:
                return await NodeDrain(node, self._means).run()
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
        means = self._means
        report = means.fleet.reports.items.get(node)
        if report is None or self._ended.get(node) == report.drain:
            return True
        drain = report.drain
        cancelled = drain.phase == DrainPhase.DRAINING
        now = means.now().astimezone(UTC).replace(microsecond=0)
        ended = msgspec.structs.replace(
            drain,
            phase=DrainPhase.CANCELLED if cancelled else DrainPhase.ENDED,
            ended_at=now if cancelled else drain.ended_at,
            message=f"{drain.remaining} pods were left" if cancelled else drain.message,
        )
        try:
            out = report.quarantine.state == QuarantineState.QUARANTINED
            if out and not await mark_state(means, node, NodeState.QUARANTINED):
                return False
            await write_drain(means.client, node, drain, ended)
            self._ended[node] = drain
        except NotFoundError:
            return True
        except ApiError as error:
            raise_if_cancelled()
            log.warning("drain status write failed", node=node, error=str(error))
            return False
        if cancelled:
            log.info("drain cancelled", node=node, remaining=drain.remaining)
            await means.telling.of_node(
                node, "DrainCancelled", "the node is not to be drained any longer: no more pods are evicted"
            )
        return True
