"""Compares burn-in results over the fleet, and publishes each outlier as an annotation of its Node.

The controller only publishes. The agent reads the annotation of its Node and makes it a finding, which takes effect as
any other does: through the node's verdict and the budgets.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator

import msgspec
import structlog

from gpuhealth.api import metrics as names
from gpuhealth.api.names import FLEET_FINDINGS
from gpuhealth.controller.duty import Duty, DutyContext
from gpuhealth.fleet.comparison import Outlier, find_outliers
from gpuhealth.kube.errors import ApiError, NotFoundError
from gpuhealth.kube.kinds import NODES
from gpuhealth.runtime.metric_families import Metric, family
from gpuhealth.runtime.supervisor import raise_if_cancelled

log = structlog.get_logger()


class OutlierStatus(msgspec.Struct):
    """Result of the last comparison of the fleet."""

    outliers: list[Outlier] = []


class OutlierPublisher(Duty):
    """Keeps the annotation `fleet-findings` of every Node current."""

    name = "outlier_publisher"
    runs_in_observe = False

    def __init__(self, context: DutyContext) -> None:
        super().__init__(context)
        self.status = OutlierStatus()
        self._compared = -1  # results_version of the fleet at the last complete comparison

    async def run(self) -> None:
        """Compare after each change of burn-in results, until cancelled."""
        await self._fleet.repeat_on_change(self._round, self._timing.round_pause)

    async def _round(self) -> float | None:
        """Compare and publish if there are new results; seconds until a retry, where something failed."""
        version = self._fleet.results_version
        if version == self._compared:
            return None
        if not await self._publish():
            return self._timing.retry
        self._compared = version
        await asyncio.sleep(self._timing.comparison_pause)
        return None

    async def _publish(self) -> bool:
        """Compare, and write the annotations that have changed; return whether all could be written."""
        results = [result for report in self._fleet.reports.items.values() for result in report.results]
        # In a thread: a large fleet takes a second, for which the event loop must not stop.
        self.status.outliers = await asyncio.to_thread(find_outliers, results)
        by_node: dict[str, list[Outlier]] = defaultdict(list)
        for outlier in self.status.outliers:
            by_node[outlier.node].append(outlier)
        complete = True
        for node in list(self._fleet.nodes.items.values()):
            text = annotation(by_node[node.key]) if node.key in by_node else ""
            if text == node.fleet_findings:
                continue
            try:
                await self._client.patch(NODES, node.key, {"metadata": {"annotations": {FLEET_FINDINGS: text or None}}})
            except NotFoundError:
                continue
            except ApiError as error:
                raise_if_cancelled()
                retry = self._timing.retry
                log.warning("publishing outliers to agent failed", node=node.key, error=str(error), retry_in=retry)
                complete = False
            for outlier in by_node.get(node.key, []):
                log.warning("GPU differs from fleet", node=node.key, gpu=outlier.gpu, message=outlier.message)
        return complete

    def gauges(self) -> Iterator[Metric]:
        """One sample for each GPU that differs."""
        found = [(outlier.code, outlier.node, outlier.gpu, 1) for outlier in self.status.outliers]
        yield family(names.FLEET_FINDING, found)


def annotation(outliers: list[Outlier]) -> str:
    """Return the annotation that the agent reads: JSON with code, GPU and message of each outlier."""
    findings = [{"code": outlier.code, "gpu": outlier.gpu, "message": outlier.message} for outlier in outliers]
    return msgspec.json.encode(findings).decode()
