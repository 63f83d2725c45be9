"""Nodes whose agent is silent: what it said of them is known no longer, and their condition says so.

An agent sends no heartbeats: its pod that is Ready, on a Node that is, is the sign that it is there. Without that sign
for a while (an update of the agents is shorter) the condition becomes Unknown, once for each silence. The agent that
comes back, or was there all the time and could not get ready, sees its condition changed and writes its own again, and
is not contradicted. Taints stay as they are: silence is no evidence, for the node or against it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta

import structlog

from gpuhealth.controller.duty import Duty, DutyContext
from gpuhealth.controller.unknown_condition import set_condition_unknown
from gpuhealth.fleet import views as facts
from gpuhealth.fleet.fleet import AGENT_LABELS
from gpuhealth.kube.client import listing
from gpuhealth.kube.errors import ApiError, NotFoundError
from gpuhealth.kube.event_recorder import node_subject
from gpuhealth.kube.kinds import NODES, PODS
from gpuhealth.kube.objects import format_time, read
from gpuhealth.quarantine.marks import SILENT, is_ready, override
from gpuhealth.runtime.metric_families import Metric, gauge
from gpuhealth.runtime.rate_limiter import RateLimiter
from gpuhealth.runtime.supervisor import raise_if_cancelled

log = structlog.get_logger()

_PER_SECOND = 10.0  # each is four requests; 7,500 nodes that fall silent together are told within a quarter of an hour
_BURST = 20


class AgentLiveness(Duty):
    """Has the silent nodes' conditions say so."""

    name = "agent_liveness"
    runs_in_observe = False

    def __init__(self, context: DutyContext) -> None:
        super().__init__(context)
        self._patience = context.settings.controller.agent_silent_after
        self._limiter = RateLimiter(_PER_SECOND, _BURST)
        self._told: dict[str, float] = {}  # by node, the beginning of the silence that was told

    async def run(self) -> None:
        """Until cancelled."""
        await self._fleet.rounds(self._round, self._timing.round_pause)

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
            await self._limiter.take()
            try:
                if silent.get(node) == since and await self._tell(node, since):
                    self._told[node] = since
            except NotFoundError:
                log.debug("silent node deleted", node=node)
            except ApiError as error:  # one that cannot be marked must not keep the others from it
                raise_if_cancelled()
                log.warning("silent node update failed", node=node, error=str(error), retry_in=self._timing.retry)
                retry_in = self._timing.retry
        return retry_in

    def _concerns_us(self, name: str) -> bool:
        found = self._fleet.nodes.items.get(name)
        if found is not None and found.health == SILENT:
            self._told[name] = self._fleet.silent[name]  # by an earlier controller
            return False
        return found is not None and not found.overridden and found.readable

    async def _tell(self, name: str, since: float) -> bool:
        """Marks the node, if it is silent indeed: what the watches say may be old after an outage."""
        node = await self._client.get(NODES, name)
        overridden, ready = read(NODES.kind, node, lambda node: (override(node) is not None, is_ready(node)))
        if overridden or (ready and await self._has_agent(name)):
            return False
        began = self._clock() - timedelta(seconds=time.monotonic() - since)
        message = f"no agent has been ready on this node since {format_time(began)}: nobody looks at its GPUs"
        await set_condition_unknown(self._client, node, message, self._clock())
        log.warning("agent silent", node=name, since=format_time(began))
        await self._recorder.post(node_subject(name), SILENT, message, warning=True)
        return True

    async def _has_agent(self, node: str) -> bool:
        # From the server's cache, which knows the pods by their nodes: not another list of all agents for each node.
        query = {"labelSelector": AGENT_LABELS, "fieldSelector": f"spec.nodeName={node}", "resourceVersion": "0"}
        pods = await self._client.request("GET", PODS.path(namespace=self._fleet.namespace), query=query)
        return any(read(PODS.kind, pod, facts.agent).ready for pod in listing(PODS, pods).items)

    def gauges(self) -> Iterator[Metric]:
        """The number of nodes without a ready agent."""
        yield gauge("agents_silent", "GPU nodes with no agent that is ready", [], [(len(self._fleet.silent),)])
