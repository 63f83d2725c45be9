"""Marks a node as unknown when its agent has not been ready for a while: label, report and condition.

An agent sends no heartbeats: it counts as alive while its pod is Ready on a Node that is Ready. After longer without
that than an update of the agents takes, condition and label become unknown and the report says since when, once for
each silence. An agent that comes back, or that ran all the time and could not become ready, sees the changed Node and
writes its own marks again, which are not overwritten. The mark in the report is removed when an agent is ready. Taints
stay as they are: silence is no evidence for or against the node.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta

import structlog

from gpuhealth.api import metrics as names
from gpuhealth.api.names import AGENT_PODS, STATE_LABEL, ConditionReason
from gpuhealth.controller.duty import Duty, DutyContext
from gpuhealth.controller.unknown_condition import set_condition_unknown
from gpuhealth.fleet import views
from gpuhealth.kube.client import listing
from gpuhealth.kube.errors import ApiError, NotFoundError
from gpuhealth.kube.event_recorder import node_subject
from gpuhealth.kube.kinds import NODES, PODS, REPORTS
from gpuhealth.kube.objects import read
from gpuhealth.model.time import format_time
from gpuhealth.quarantine.marks import is_ready, labels, override
from gpuhealth.quarantine.state import StateEvent
from gpuhealth.quarantine.state_label import change_label
from gpuhealth.runtime.metric_families import Metric, family
from gpuhealth.runtime.rate_limiter import RateLimiter
from gpuhealth.runtime.supervisor import raise_if_cancelled

log = structlog.get_logger()

_PER_SECOND = 10.0  # nodes, at six requests each; 7,500 nodes that fall silent together take a quarter of an hour
_BURST = 20


class AgentLiveness(Duty):
    """Marks the nodes whose agent has been silent for too long."""

    name = "agent_liveness"
    runs_in_observe = False

    def __init__(self, context: DutyContext) -> None:
        super().__init__(context)
        self._silent_after = context.settings.controller.agent_silent_after
        self._limiter = RateLimiter(_PER_SECOND, _BURST)
        self._marked: dict[str, float] = {}  # by node: start of the silence that is marked, on the monotonic clock

    async def run(self) -> None:
        """Mark nodes after each change in the fleet and as silences become long enough, until cancelled."""
        await self._fleet.repeat_on_change(self._round, self._timing.round_pause)

    async def _round(self) -> float | None:
        """Mark the nodes that are due; seconds until another one is."""
        retry_in = await self._unmark()
        silent = self._fleet.silent_nodes
        self._marked = {node: since for node, since in self._marked.items() if silent.get(node) == since}
        waiting = {node: since for node, since in silent.items() if node not in self._marked}
        for node, since in sorted(waiting.items(), key=lambda item: item[1]):
            if (due_in := since + self._silent_after - time.monotonic()) > 0:
                return min(due_in, retry_in or due_in)
            if not self._needs_mark(node):
                continue
            await self._limiter.take()
            try:
                if silent.get(node) == since and await self._mark(node, since):
                    self._marked[node] = since
            except NotFoundError:
                log.debug("silent node deleted", node=node)
            except ApiError as error:  # one node that cannot be marked must not delay the others
                raise_if_cancelled()
                retry_in = self._timing.retry
                log.warning("silent node update failed", node=node, error=str(error), retry_in=retry_in)
        return retry_in

    async def _unmark(self) -> float | None:
        """Remove the mark from the reports of agents that are back; seconds until another attempt, if one is needed."""
        back = [name for name, report in self._fleet.reports.items.items() if report.silent]
        for name in back:
            node = self._fleet.nodes.items.get(name)
            if node is None or name in self._fleet.silent_nodes:
                continue
            await self._limiter.take()
            try:
                await self._mark_report(name, None)
            except ApiError as error:
                raise_if_cancelled()
                log.warning("report update failed", node=name, error=str(error), retry_in=self._timing.retry)
                return self._timing.retry
        return None

    async def _mark_report(self, name: str, since: str | None) -> None:
        """Write since when the agent has been silent into its report, if there is one; None removes it."""
        with suppress(NotFoundError):
            await self._client.patch(REPORTS, name, {"status": {"silentSince": since}}, subresource="status")

    def _needs_mark(self, name: str) -> bool:
        node = self._fleet.nodes.items.get(name)
        if node is not None and node.condition_reason == ConditionReason.AGENT_SILENT:
            self._marked[name] = self._fleet.silent_nodes[name]  # by an earlier leader
            return False
        return node is not None and not node.overridden and node.readable

    async def _mark(self, name: str, since: float) -> bool:
        """Mark the node if its agent is silent by the API server's current data: a watch may lag after an outage.

        Return whether it was marked. Raises ApiError.
        """
        node = await self._client.get(NODES, name)
        overridden, ready, label = read(
            NODES.kind, node, lambda node: (override(node) is not None, is_ready(node), labels(node).get(STATE_LABEL))
        )
        if overridden or (ready and await self._has_ready_agent(name)):
            return False
        began = format_time(self._clock() - timedelta(seconds=time.monotonic() - since))
        message = f"no agent has been ready on this node since {began}: its GPUs are not being checked"
        await change_label(self._client, name, label, StateEvent.AGENT_SILENT)
        await self._mark_report(name, began)
        await set_condition_unknown(self._client, node, message, self._clock())  # last: it shows that all was written
        log.warning("agent silent", node=name, since=began)
        await self._recorder.post(node_subject(name), ConditionReason.AGENT_SILENT, message, warning=True)
        return True

    async def _has_ready_agent(self, node: str) -> bool:
        # From the server's cache, which has an index of pods by node, instead of a list of all agents for each node.
        query = {"labelSelector": AGENT_PODS, "fieldSelector": f"spec.nodeName={node}", "resourceVersion": "0"}
        pods = await self._client.request("GET", PODS.path(namespace=self._fleet.namespace), query=query)
        return any(read(PODS.kind, pod, views.agent_pod).ready for pod in listing(PODS, pods).items)

    def gauges(self) -> Iterator[Metric]:
        """The number of nodes without a ready agent."""
        yield family(names.AGENTS_SILENT, [(len(self._fleet.silent_nodes),)])
