"""The fleet as the API server's watches show it: views of its objects, and running counts of them.

On every change of an object its old contribution is subtracted from the counts and its new one added, so that a change
costs the same in a fleet of ten nodes and of ten thousand.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing
from typing import Any, NamedTuple

import msgspec

from gpuhealth.api.names import AGENT_PODS, BUDGET_LABEL, BURNIN_PODS, DRAIN, NodeState
from gpuhealth.api.report import DrainPhase, Quarantine, QuarantineState
from gpuhealth.fleet import views
from gpuhealth.fleet.gpu_nodes import Unwatched
from gpuhealth.fleet.store import ObjectStore
from gpuhealth.fleet.views import wants_drain
from gpuhealth.kube.client import Client, Object
from gpuhealth.kube.errors import UnreadableError
from gpuhealth.kube.kinds import BUDGETS, LEASES, NAMESPACES, NODES, PODS, REPORTS, Kind
from gpuhealth.kube.watching import watch
from gpuhealth.model.verdict import State
from gpuhealth.runtime.supervisor import raise_if_cancelled

READ_KINDS = ("GPUHealthReport", "Lease", "Namespace", "Node", "Pod", "PodDisruptionBudget", "QuarantineBudget")
"""The kinds of objects that the controller reads."""


class BlockedQuarantine(NamedTuple):
    """Why a node stays in service that should be out of it."""

    budget: str
    limit: str  # of the budget
    code: str


class NodeCounts(msgspec.Struct, frozen=True, kw_only=True):
    """What one node contributes to the counts."""

    state: str
    pool: str
    silent: bool
    unwatched: str  # an Unwatched; empty while an agent watches it
    gpus: tuple[tuple[str, str], ...]  # verdict and model of each GPU
    blocked: BlockedQuarantine | None = None
    drain: str = ""  # its phase, while a drain is wanted


class Fleet:
    """All GPU nodes of a cluster, and the objects that belong to them."""

    def __init__(self, namespace: str, pool_labels: tuple[str, ...], *, drains: bool = True) -> None:
        """`drains`: whether nodes may be drained at all."""
        self.nodes = ObjectStore[views.NodeView](self._changed, unreadable=views.unreadable_node)
        self.reports = ObjectStore[views.ReportView](self._report_changed, unreadable=views.unreadable_report)
        self.agents = ObjectStore[views.AgentPod](self._agent_changed, unreadable=views.unreadable_agent)
        self.budgets = ObjectStore[views.BudgetView]()
        self.slots = ObjectStore[views.SlotView]()
        self.burnins = ObjectStore[views.BurninPod]()
        self.drain_exempt_namespaces = ObjectStore[views.DrainExemptNamespace]()
        self.unreadable: Counter[str] = Counter()  # versions of objects that could not be read, by kind
        self.nodes_by_state: Counter[tuple[str, str]] = Counter()  # by state and pool
        self.unwatched_nodes: Counter[tuple[str, str]] = Counter()  # by reason and pool
        self.gpus_by_verdict: Counter[tuple[str, str]] = Counter()  # by verdict and model
        self.drains_by_phase: Counter[str] = Counter()  # nodes whose drain is wanted
        self.silent_nodes: dict[str, float] = {}  # without a ready agent, and since when on the monotonic clock
        self.blocked_nodes: dict[str, set[str]] = {}  # by budget: should be out of service and have no slot
        self.blocked: Counter[BlockedQuarantine] = Counter()  # these nodes by their reason
        self.drains_wanted: set[str] = set()  # nodes
        self.drains_to_end: set[str] = set()  # nodes whose report has a drain that is no longer wanted
        self.version = 0  # increases with every change
        self.results_version = 0  # increases when burn-in results have changed
        self.namespace = namespace
        self._pool_labels = pool_labels
        self._drains = drains
        self._counts: dict[str, NodeCounts] = {}
        self._agents: Counter[str] = Counter()  # agent pods by node
        self._ready_agents: Counter[str] = Counter()
        self._listeners: set[asyncio.Event] = set()

    @property
    def ready(self) -> bool:
        """Whether every kind has been listed once, so that an object that is not in its store does not exist."""
        return all(store.listed for store in self._stores())

    def watches(self, client: Client) -> Iterator[Callable[[], Awaitable[None]]]:
        """Yield the loops that keep the stores current, each to be run until cancelled."""
        own = self.namespace
        yield self._watch(self.nodes, client, NODES, views.node_view)
        yield self._watch(self.reports, client, REPORTS, views.report_view)
        yield self._watch(self.agents, client, PODS, views.agent_pod, own, AGENT_PODS)
        yield self._watch(self.budgets, client, BUDGETS, views.budget_view)
        yield self._watch(self.slots, client, LEASES, views.slot_view, own, BUDGET_LABEL)
        yield self._watch(self.burnins, client, PODS, views.burnin_pod, own, BURNIN_PODS)
        yield self._watch(
            self.drain_exempt_namespaces, client, NAMESPACES, views.drain_exempt_namespace, labels=f"{DRAIN}=false"
        )

    @contextlib.contextmanager
    def changes(self) -> Iterator[asyncio.Event]:
        """Provide an event that is set now and after every change; the caller clears it."""
        event = asyncio.Event()
        event.set()
        self._listeners.add(event)
        try:
            yield event
        finally:
            self._listeners.discard(event)

    async def repeat_on_change(self, step: Callable[[], Awaitable[float | None]], pause: float) -> None:
        """Run `step` after every change in the fleet, and after the seconds that it returned, until cancelled.

        `pause`: seconds after each step, so that changes that come close together cause one step.
        """
        with self.changes() as changed:
            while True:
                changed.clear()
                due_in = await step() if self.ready else None
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(due_in):
                        await changed.wait()
                raise_if_cancelled()
                await asyncio.sleep(pause)

    def _stores(self) -> tuple[ObjectStore[Any], ...]:
        return (
            self.nodes,
            self.reports,
            self.agents,
            self.budgets,
            self.slots,
            self.burnins,
            self.drain_exempt_namespaces,
        )

    def _watch(
        self,
        store: ObjectStore[Any],
        client: Client,
        kind: Kind,
        view: Callable[[Object], Any],
        namespace: str = "",
        labels: str = "",
    ) -> Callable[[], Awaitable[None]]:
        async def follow() -> None:
            watched = watch(client, kind, namespace, labels=labels, parse=view, on_unreadable=self.count_unreadable)
            async with aclosing(watched) as events:
                await store.follow(events, self._notify)

        follow.__name__ = f"watch_{kind.plural}"
        return follow

    def count_unreadable(self, error: UnreadableError) -> None:
        """Count a version of an object that cannot be read."""
        self.unreadable[error.kind] += 1

    def _notify(self) -> None:
        self.version += 1
        for listener in self._listeners:
            listener.set()

    # --- counts -------------------------------------------------------------------------------------------------------

    def _changed(
        self, old: views.NodeView | views.ReportView | None, new: views.NodeView | views.ReportView | None
    ) -> None:
        known = new or old
        if known is not None:
            self._recount(known.key)

    def _report_changed(self, old: views.ReportView | None, new: views.ReportView | None) -> None:
        if (old.results if old else ()) != (new.results if new else ()):
            self.results_version += 1
        self._changed(old, new)

    def _agent_changed(self, old: views.AgentPod | None, new: views.AgentPod | None) -> None:
        for agent, change in ((old, -1), (new, 1)):
            if agent is not None:
                _add(self._agents, agent.node, change)
                _add(self._ready_agents, agent.node, change if agent.ready else 0)
        for node in {agent.node for agent in (old, new) if agent is not None}:
            self._recount(node)

    def _recount(self, name: str) -> None:
        """Replace the node's old contribution to counts and sets by its present one."""
        old, new = self._counts.pop(name, None), self._counts_of(name)
        if old is not None:
            self._count(old, -1)
            if old.blocked:
                self.blocked_nodes[old.blocked.budget].discard(name)
        if new is not None:
            self._counts[name] = new
            self._count(new, 1)
            if new.blocked:
                self.blocked_nodes.setdefault(new.blocked.budget, set()).add(name)
        if new is None or not new.silent:
            self.silent_nodes.pop(name, None)
        else:
            self.silent_nodes.setdefault(name, time.monotonic())
        self._recount_drain(name)

    def _recount_drain(self, name: str) -> None:
        node, report = self.nodes.items.get(name), self.reports.items.get(name)
        wanted = node is not None and report is not None and self._drains and wants_drain(node, report)
        under_way = report is not None and report.drain.phase in {DrainPhase.DRAINING, DrainPhase.DRAINED}
        self.drains_wanted.discard(name)
        self.drains_to_end.discard(name)
        if wanted:
            self.drains_wanted.add(name)
        elif under_way and node is not None and node.readable:
            # On a Node that cannot be read, the drain pauses: whether it is still wanted is not known.
            self.drains_to_end.add(name)

    def _count(self, counts: NodeCounts, change: int) -> None:
        _add(self.nodes_by_state, (counts.state, counts.pool), change)
        if counts.unwatched:
            _add(self.unwatched_nodes, (counts.unwatched, counts.pool), change)
        for gpu in counts.gpus:
            _add(self.gpus_by_verdict, gpu, change)
        if counts.drain:
            _add(self.drains_by_phase, counts.drain, change)
        if counts.blocked:
            _add(self.blocked, counts.blocked, change)

    def _counts_of(self, name: str) -> NodeCounts | None:
        """Return a node's contribution to the counts; None if it is deleted or not a GPU node."""
        node, report = self.nodes.items.get(name), self.reports.items.get(name)
        if node is None or not (self._is_known(name) or node.has_gpus):
            return None
        silent = not node.ready or name not in self._ready_agents
        unwatched = self._unwatched(node, report, silent=silent)
        report = report or views.ReportView(key=name, gpus=((State.UNKNOWN, ""),) * node.gpus)
        # Verdicts of an agent that is no longer ready may be out of date.
        known = report.readable and not unwatched
        gpus = report.gpus if known else tuple((State.UNKNOWN, model) for _, model in report.gpus)
        state = NodeState.UNKNOWN if unwatched and node.state == NodeState.HEALTHY else node.state
        drain = (report.drain.phase or "pending") if self._drains and wants_drain(node, report) else ""
        return NodeCounts(
            state=state or NodeState.UNKNOWN,
            pool=self.pool(node),
            silent=silent,
            unwatched=unwatched,
            gpus=gpus,
            blocked=_blocked(report.quarantine),
            drain=drain,
        )

    def _is_known(self, name: str) -> bool:
        """Whether an agent, a report or a mark of ours shows that the node has GPUs."""
        node = self.nodes.items[name]
        return name in self.reports.items or name in self._agents or bool(node.state) or node.marked or node.preflight

    def _unwatched(self, node: views.NodeView, report: views.ReportView | None, *, silent: bool) -> str:
        """Return why no agent watches the node; empty where one does."""
        if node.key not in self._agents:
            return Unwatched.NO_AGENT
        if silent:
            return Unwatched.AGENT_SILENT
        if report is None or (report.owner and node.uid and report.owner != node.uid):
            return Unwatched.NO_REPORT
        return ""

    def pool(self, node: views.NodeView) -> str:
        """Return the node's pool: the value of the first pool label that it has."""
        return next((node.labels[key] for key in self._pool_labels if key in node.labels), "")


def _blocked(quarantine: Quarantine) -> BlockedQuarantine | None:
    if quarantine.state != QuarantineState.BLOCKED or not quarantine.budget:
        return None
    return BlockedQuarantine(quarantine.budget, quarantine.limit, quarantine.code)


def _add(counter: Counter[Any], key: Any, change: int) -> None:
    counter[key] += change
    if not counter[key]:
        del counter[key]  # such as a pool without nodes, which would stay a metric for ever
