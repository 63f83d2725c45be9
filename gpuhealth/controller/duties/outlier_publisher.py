"""Tells agents of their GPUs that differ from all others of their kind.

The comparison needs the fleet, and what follows is the agent's: it reads the annotation on its Node, and the finding
takes the way of every other, through verdict and budget.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator

import msgspec
import structlog

from gpuhealth.controller.duty import Duty, DutyContext
from gpuhealth.fleet.comparison import Outlier, Tested, outliers
from gpuhealth.kube.errors import ApiError, NotFoundError
from gpuhealth.kube.kinds import FLEET_FINDINGS, NODES
from gpuhealth.runtime.metric_families import Metric, gauge
from gpuhealth.runtime.supervisor import raise_if_cancelled

log = structlog.get_logger()


class OutlierStatus(msgspec.Struct):
    """Result of the last comparison of the fleet."""

    outliers: list[Outlier] = []


class OutlierPublisher(Duty):
    """Compares the fleet's burn-in results whenever they change, and writes the outliers to their Nodes."""

    name = "outlier_publisher"
    runs_in_observe = False

    def __init__(self, context: DutyContext) -> None:
        super().__init__(context)
        self.status = OutlierStatus()
        self._compared = -1  # the fleet's tested_version at the last complete comparison

    async def run(self) -> None:
        """Compare after each change of burn-in results, until cancelled."""
        await self._fleet.rounds(self._round, self._timing.round_pause)

    async def _round(self) -> float | None:
        """Compare and publish if there are new results; seconds until that is repeated where it failed."""
        version = self._fleet.tested_version
        if version == self._compared:
            return None
        if not await self._publish():
            return self._timing.retry
        self._compared = version
        await asyncio.sleep(self._timing.comparison_pause)
        return None

    async def _publish(self) -> bool:
        """Compares, and writes what has changed; whether that could be."""
        tested: list[Tested] = [each for report in self._fleet.reports.items.values() for each in report.tests]
        self.status.outliers = await asyncio.to_thread(
            outliers, tested
        )  # a second for a big fleet, which must not stop the loop
        said: dict[str, list[Outlier]] = defaultdict(list)
        for outlier in self.status.outliers:
            said[outlier.node].append(outlier)
        complete = True
        for node in list(self._fleet.nodes.items.values()):
            text = annotation(said[node.key]) if node.key in said else ""
            if text == node.fleet_findings:
                continue
            try:
                await self._client.patch(NODES, node.key, {"metadata": {"annotations": {FLEET_FINDINGS: text or None}}})
            except NotFoundError:
                continue
            except ApiError as error:
                raise_if_cancelled()
                log.warning("publishing outliers to agent failed", node=node.key, error=str(error))
                complete = False
            for outlier in said.get(node.key, []):
                log.warning("GPU differs from fleet", node=node.key, gpu=outlier.gpu, message=outlier.message)
        return complete

    def gauges(self) -> Iterator[Metric]:
        """One sample for each GPU that differs."""
        found = [(outlier.code, outlier.node, outlier.gpu, 1) for outlier in self.status.outliers]
        yield gauge("fleet_finding", "GPUs that differ from all others of their kind", ["code", "node", "gpu"], found)


def annotation(found: list[Outlier]) -> str:
    """What the agent reads: code, GPU and message of each."""
    return msgspec.json.encode([{"code": o.code, "gpu": o.gpu, "message": o.message} for o in found]).decode()
