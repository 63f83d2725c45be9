"""Nodes whose agent is silent: what it said of them is known no longer, and their condition says so.

An agent sends no heartbeats: its pod that is Ready, on a Node that is, is the sign that it is there. Without that sign
for a while (an update of the agents is shorter) the condition becomes Unknown, once for each silence. The agent that
comes back, or was there all the time and could not get ready, sees its condition changed and writes its own again, and
is not contradicted. Taints stay as they are: silence is no evidence, for the node or against it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timedelta

import structlog

from gpuhealth.api.names import AGENT_PODS, ConditionReason
from gpuhealth.controller.event_recorder import Telling
from gpuhealth.fleet import views as facts
from gpuhealth.fleet.fleet import Fleet
from gpuhealth.kube.client import STRATEGIC_MERGE_PATCH, Client, Object, listing
from gpuhealth.kube.errors import ApiError, NotFoundError
from gpuhealth.kube.kinds import NODES, PODS
from gpuhealth.kube.objects import read
from gpuhealth.quarantine.marks import condition_patch, is_ready, override, written_time
from gpuhealth.runtime.rate_limiter import Pace
from gpuhealth.runtime.supervisor import raise_if_cancelled

log = structlog.get_logger()

_PER_SECOND = 10.0  # each is four requests; 7,500 nodes that fall silent together are told within a quarter of an hour
_BURST = 20
_PAUSE_SECONDS = 1.0
_RETRY_SECONDS = 5.0


class Silence:
    """Has the silent nodes' conditions say so."""

    def __init__(
        self, client: Client, fleet: Fleet, telling: Telling, patience: float, now: Callable[[], datetime]
    ) -> None:
        """`patience`: seconds of silence that say nothing yet."""
        self._client = client
        self._fleet = fleet
        self._telling = telling
        self._patience = patience
        self._now = now
        self._pace = Pace(_PER_SECOND, _BURST)
        self._told: dict[str, float] = {}  # by node, the beginning of the silence that was told

    async def run(self) -> None:
        """Until cancelled."""
        await self._fleet.rounds(self._round, _PAUSE_SECONDS)

    async def _round(self) -> float | None:
        """Tells what is due; seconds until something else is."""
        silent = self._fleet.silent
        self._told = {node: since for node, since in self._told.items() if silent.get(node) == since}
        waiting = {node: since for node, since in silent.items() if node not in self._told}
        retry_in = None
        for node, since in sorted(waiting.items(), key=lambda item: item[1]):
            if (due_in := since + self._patience - time.monotonic()) > 0:
                return min(due_in, retry_in or due_in)
            if not self._concerns_us(node):
                continue
            await self._pace.take()
            try:
                if silent.get(node) == since and await self._tell(node, since):
                    self._told[node] = since
            except NotFoundError:
                log.debug("silent node deleted", node=node)
            except ApiError as error:  # one that cannot be marked must not keep the others from it
                raise_if_cancelled()
                log.warning("silent node update failed", node=node, error=str(error), retry_in=_RETRY_SECONDS)
                retry_in = _RETRY_SECONDS
        return retry_in

    def _concerns_us(self, name: str) -> bool:
        found = self._fleet.nodes.items.get(name)
        if found is not None and found.health == ConditionReason.AGENT_SILENT:
            self._told[name] = self._fleet.silent[name]  # by an earlier controller
            return False
        return found is not None and not found.overridden and found.readable

    async def _tell(self, name: str, since: float) -> bool:
        """Marks the node, if it is silent indeed: what the watches say may be old after an outage."""
        node = await self._client.get(NODES, name)
        overridden, ready = read(NODES.kind, node, lambda node: (override(node) is not None, is_ready(node)))
        if overridden or (ready and await self._has_agent(name)):
            return False
        began = self._now() - timedelta(seconds=time.monotonic() - since)
        message = f"no agent has been ready on this node since {written_time(began)}: nobody looks at its GPUs"
        await mark_unknown(self._client, node, message, self._now())
        log.warning("agent silent", node=name, since=written_time(began))
        await self._telling.of_node(name, ConditionReason.AGENT_SILENT, message, warning=True)
        return True

    async def _has_agent(self, node: str) -> bool:
        # From the server's cache, which knows the pods by their nodes: not another list of all agents for each node.
        query = {"labelSelector": AGENT_PODS, "fieldSelector": f"spec.nodeName={node}", "resourceVersion": "0"}
        pods = await self._client.request("GET", PODS.path(namespace=self._fleet.namespace), query=query)
        return any(read(PODS.kind, pod, facts.agent).ready for pod in listing(PODS, pods).items)


async def mark_unknown(client: Client, node: Object, message: str, now: datetime) -> Object:
    """Have the Node's condition say that its agent is silent; the Node as it is then."""
    reason = ConditionReason.AGENT_SILENT
    patch = read(NODES.kind, node, lambda node: condition_patch(node, "Unknown", reason, message, now))
    name = node["metadata"]["name"]
    return await client.patch(NODES, name, patch, content_type=STRATEGIC_MERGE_PATCH, subresource="status")
