"""Tells agents of their GPUs that differ from all others of their kind.

The comparison needs the fleet, and what follows is the agent's: it reads the annotation on its Node, and the finding
takes the way of every other, through verdict and budget.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict

import msgspec
import structlog

from gpuhealth.api.names import FLEET_FINDINGS
from gpuhealth.fleet.comparison import Outlier, Tested, outliers
from gpuhealth.fleet.fleet import Fleet
from gpuhealth.kube.client import Client
from gpuhealth.kube.errors import ApiError, NotFoundError
from gpuhealth.kube.kinds import NODES
from gpuhealth.runtime.supervisor import raise_if_cancelled

log = structlog.get_logger()

_PAUSE_SECONDS = 30.0  # between comparisons: burn-ins take minutes
_LOOK_SECONDS = 1.0
_RETRY_SECONDS = 5.0


class Outliers:
    """The comparison, by the one controller that leads."""

    def __init__(self, client: Client, fleet: Fleet) -> None:
        self.found: list[Outlier] = []
        self._client = client
        self._fleet = fleet
        self._compared = -1  # version of what burn-ins have told

    async def run(self) -> None:
        """Until cancelled."""
        with self._fleet.listening() as heard:
            while True:
                await heard.wait()
                heard.clear()
                raise_if_cancelled()
                version = self._fleet.tested_version
                if not self._fleet.ready or version == self._compared:
                    await asyncio.sleep(_LOOK_SECONDS)
                elif await self._round():
                    self._compared = version
                    await asyncio.sleep(_PAUSE_SECONDS)
                else:
                    heard.set()
                    await asyncio.sleep(_RETRY_SECONDS)

    async def _round(self) -> bool:
        """Compares, and writes what has changed; whether that could be."""
        tested: list[Tested] = [each for report in self._fleet.reports.items.values() for each in report.tests]
        self.found = await asyncio.to_thread(outliers, tested)  # a second for a big fleet, which must not stop the loop
        said: dict[str, list[Outlier]] = defaultdict(list)
        for outlier in self.found:
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


def annotation(found: list[Outlier]) -> str:
    """What the agent reads: code, GPU and message of each."""
    return msgspec.json.encode([{"code": o.code, "gpu": o.gpu, "message": o.message} for o in found]).decode()
