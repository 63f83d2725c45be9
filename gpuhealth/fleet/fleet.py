"""The fleet as the API server tells of it: few fields of each object, and counts that are kept rather than made.

Every change of an object is taken out of the counts as it was and put in as it is, so that a change costs the same in
a fleet of ten nodes and of ten thousand.
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

from gpuhealth.api.names import AGENT_PODS, BUDGET_LABEL, BURNIN_PODS, DRAIN
from gpuhealth.api.report import DrainPhase, QuarantineState
from gpuhealth.fleet import views as facts
from gpuhealth.fleet.store import Table
from gpuhealth.fleet.views import wants_drain
from gpuhealth.kube.client import Client, Object
from gpuhealth.kube.errors import UnreadableError
from gpuhealth.kube.kinds import BUDGETS, LEASES, NAMESPACES, NODES, PODS, REPORTS, Kind
from gpuhealth.kube.watching import watch
from gpuhealth.model.verdict import State
from gpuhealth.runtime.supervisor import raise_if_cancelled

READ_KINDS = ("GPUHealthReport", "Lease", "Namespace", "Node", "Pod", "PodDisruptionBudget", "QuarantineBudget")
"""The kinds of objects that the controller reads."""


class Hold(NamedTuple):
    """What keeps a node in service that should be out."""

    budget: str
    limit: str  # of the budget
    code: str


class Standing(msgspec.Struct, frozen=True):
    """What one node adds to the counts."""

    state: str
    pool: str
    silent: bool
    gpus: tuple[tuple[str, str], ...]
    held: Hold | None = None
    drain: str = ""  # phase, while one is wanted


class Fleet:
    """All nodes with GPUs, and what belongs to them."""

    def __init__(self, namespace: str, pool_labels: tuple[str, ...], *, drains: bool = True) -> None:
        """`drains`: whether a node's drain may be wanted at all."""
        self.nodes = Table[facts.Node](self._changed, unreadable=facts.unreadable_node)
        self.reports = Table[facts.Report](self._report_changed, unreadable=facts.unreadable_report)
        self.agents = Table[facts.Agent](self._agent_changed, unreadable=facts.unreadable_agent)
        self.budgets = Table[facts.Budget]()
        self.places = Table[facts.Place]()
        self.tests = Table[facts.Test]()
        self.kept_namespaces = Table[facts.Kept]()
        self.unreadable: Counter[str] = Counter()  # versions of objects that could not be read, by kind
        self.states: Counter[tuple[str, str]] = Counter()  # nodes by state and pool
        self.gpus: Counter[tuple[str, str]] = Counter()  # by verdict and model
        self.phases: Counter[str] = Counter()  # nodes whose drain is wanted, by phase
        self.silent: dict[str, float] = {}  # nodes with no agent that is ready, and since when on our steady clock
        self.held: dict[str, set[str]] = {}  # nodes that should be out and have no place, by budget
        self.holds: Counter[Hold] = Counter()  # the same, counted
        self.to_drain: set[str] = set()
        self.to_end: set[str] = set()  # nodes whose report tells of a drain that is wanted no more
        self.version = 0  # grows with every change
        self.tested_version = 0  # grows when burn-ins have told something new
        self.namespace = namespace
        self._pool_labels = pool_labels
        self._drains = drains
        self._standings: dict[str, Standing] = {}
        self._agents: Counter[str] = Counter()  # by node
        self._ready_agents: Counter[str] = Counter()  # by node
        self._listeners: set[asyncio.Event] = set()

    @property
    def ready(self) -> bool:
        """Whether everything has been seen once, so that what is not there does not exist."""
        return all(table.listed for table in self._tables())

    def watches(self, client: Client) -> Iterator[Callable[[], Awaitable[None]]]:
        """What has to run for the fleet to be known, each for ever."""
        ours = self.namespace
        yield self._watch(self.nodes, client, NODES, facts.node)
        yield self._watch(self.reports, client, REPORTS, facts.report)
        yield self._watch(self.agents, client, PODS, facts.agent, ours, AGENT_PODS)
        yield self._watch(self.budgets, client, BUDGETS, facts.budget)
        yield self._watch(self.places, client, LEASES, facts.place, ours, BUDGET_LABEL)
        yield self._watch(self.tests, client, PODS, facts.test, ours, BURNIN_PODS)
        yield self._watch(self.kept_namespaces, client, NAMESPACES, facts.kept, labels=f"{DRAIN}=false")

    @contextlib.contextmanager
    def listening(self) -> Iterator[asyncio.Event]:
        """An event that is set at once and after every change, for the listener to clear."""
        event = asyncio.Event()
        event.set()
        self._listeners.add(event)
        try:
            yield event
        finally:
            self._listeners.discard(event)

    async def rounds(self, look: Callable[[], Awaitable[float | None]], pause_seconds: float) -> None:
        """Until cancelled: has somebody look when something has changed, or after the seconds that `look` gave back.

        The pause after each look makes one look of changes that come together.
        """
        with self.listening() as heard:
            while True:
                heard.clear()
                due_in = await look() if self.ready else None
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(due_in):
                        await heard.wait()
                raise_if_cancelled()
                await asyncio.sleep(pause_seconds)

    def _tables(self) -> tuple[Table[Any], ...]:
        return (
            self.nodes,
            self.reports,
            self.agents,
            self.budgets,
            self.places,
            self.tests,
            self.kept_namespaces,
        )

    def _watch(
        self,
        table: Table[Any],
        client: Client,
        kind: Kind,
        slim: Callable[[Object], Any],
        namespace: str = "",
        labels: str = "",
    ) -> Callable[[], Awaitable[None]]:
        async def follow() -> None:
            watched = watch(client, kind, namespace, labels=labels, slim=slim, noted=self.note_unreadable)
            async with aclosing(watched) as events:
                await table.follow(events, self._heard)

        follow.__name__ = f"watch_{kind.plural}"
        return follow

    def note_unreadable(self, error: UnreadableError) -> None:
        """Count an object that cannot be read."""
        self.unreadable[error.kind] += 1

    def _heard(self) -> None:
        self.version += 1
        for listener in self._listeners:
            listener.set()

    # --- counts -------------------------------------------------------------------------------------------------------

    def _changed(self, old: facts.Node | facts.Report | None, new: facts.Node | facts.Report | None) -> None:
        known = new or old
        if known is not None:
            self._recount(known.key)

    def _report_changed(self, old: facts.Report | None, new: facts.Report | None) -> None:
        self.tested_version += (old.tests if old else ()) != (new.tests if new else ())
        self._changed(old, new)

    def _agent_changed(self, old: facts.Agent | None, new: facts.Agent | None) -> None:
        for agent, change in ((old, -1), (new, 1)):
            if agent is not None:
                _add(self._agents, agent.node, change)
                _add(self._ready_agents, agent.node, change * agent.ready)
        for node in {agent.node for agent in (old, new) if agent is not None}:
            self._recount(node)

    def _recount(self, name: str) -> None:
        """Takes the node out of the counts as it was and puts it in as it is."""
        old, new = self._standings.pop(name, None), self._standing(name)
        if new is not None:
            self._standings[name] = new
        for standing, change in ((old, -1), (new, 1)):
            if standing is not None:
                self._count(standing, change)
        if old is not None and old.held:
            self.held[old.held.budget].discard(name)
        if new is not None and new.held:
            self.held.setdefault(new.held.budget, set()).add(name)
        node, report = self.nodes.items.get(name), self.reports.items.get(name)
        wanted = node is not None and report is not None and self._drains and wants_drain(node, report)
        under_way = report is not None and report.drain.phase in {DrainPhase.DRAINING, DrainPhase.DRAINED}
        if new is None or not new.silent:
            self.silent.pop(name, None)
        else:
            self.silent.setdefault(name, time.monotonic())
        _keep(self.to_drain, name, wanted=wanted)
        # Of a Node that cannot be read nobody knows whether its drain is wanted: it rests, and is not over.
        _keep(self.to_end, name, wanted=node is not None and node.readable and under_way and not wanted)

    def _count(self, standing: Standing, change: int) -> None:
        _add(self.states, (standing.state, standing.pool), change)
        for gpu in standing.gpus:
            _add(self.gpus, gpu, change)
        if standing.drain:
            _add(self.phases, standing.drain, change)
        if standing.held:
            _add(self.holds, standing.held, change)

    def _standing(self, name: str) -> Standing | None:
        """What a node is to the counts; nothing if it has no GPUs or is no more."""
        node, report = self.nodes.items.get(name), self.reports.items.get(name)
        if node is None or not (report or name in self._agents or node.state or node.tainted or node.preflight):
            return None
        silent = not node.ready or name not in self._ready_agents
        report = report or facts.Report(name)
        # What an agent said that is no longer there may have been true then.
        known = report.readable and not silent
        gpus = report.gpus if known else tuple((State.UNKNOWN, model) for _, model in report.gpus)
        drain = (report.drain.phase or "pending") if self._drains and wants_drain(node, report) else ""
        said = report.quarantine
        held = (
            Hold(said.budget, said.limit, said.code) if said.state == QuarantineState.BLOCKED and said.budget else None
        )
        return Standing(node.state or State.UNKNOWN, self.pool(node), silent, gpus, held, drain)

    def pool(self, node: facts.Node) -> str:
        """The node's pool, by the first of the labels that it has."""
        return next((node.labels[key] for key in self._pool_labels if key in node.labels), "")


def _keep(names: set[str], name: str, *, wanted: bool) -> None:
    (names.add if wanted else names.discard)(name)


def _add(counter: Counter[Any], key: Any, change: int) -> None:
    counter[key] += change
    if not counter[key]:
        del counter[key]  # a pool that is gone leaves no line behind
