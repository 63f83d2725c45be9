"""The cluster halves of many agents in one process, and what a watch sees of what they do.

Each half is the agent's own NodeReconciler and NodeWriter on a Node of its own, without hardware beneath: what it wants
is set by hand. It may be killed at any moment and started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import structlog
from kube import ControlPlane

from gpuhealth.kube.client import Client, Object
from gpuhealth.kube.connection import Query, configuration
from gpuhealth.kube.errors import AlreadyExistsError
from gpuhealth.kube.kinds import LEASES, NODES
from gpuhealth.kube.selectors import query_text
from gpuhealth.kube.watching import WatchChanged, WatchEvent, WatchListed, watch
from gpuhealth.monitors.settings import Settings
from gpuhealth.quarantine.marks import record, taints
from gpuhealth.quarantine.reconciler import NodeReconciler
from gpuhealth.quarantine.report import Facts
from gpuhealth.quarantine.target import Desired
from gpuhealth.quarantine.writer import AppliedAction
from testing.cluster_objects import budget, finding, verdict
from testing.paths import BASE
from testing.plane_with_node import LABELS
from testing.waiting import until

NAMESPACE = "gpuhealth"
BUDGET = "gpu-nodes"
CODE = "xid.79"
_CONNECTIONS = 100
_FAULT = finding(CODE)


def wanted(*, sick: bool) -> Desired:
    """What the agent of a node wants that has lost a GPU, or is healthy."""
    return Desired(verdict=verdict(_FAULT), quarantine=(CODE,)) if sick else Desired(verdict=verdict())


class SharedClient(Client):
    """One client for many agents: a hundred connections for requests, and for each watch one more.

    The connections are a thing of the load generator: an agent that has one tends to keep it for its next request.
    With `in_turn` it goes behind the requests of the others, as at a server to which each has a connection of its own.
    """

    def __init__(self, kubeconfig: Path, *, in_turn: bool = False) -> None:
        self._turns = asyncio.Semaphore(_CONNECTIONS) if in_turn else contextlib.nullcontext()
        super().__init__(lambda: configuration(kubeconfig), connections=_CONNECTIONS)
        self._watches = Client.from_kubeconfig(kubeconfig)

    async def request(self, method: str, path: str, **options: Any) -> Any:
        """As every client does it, one after the other."""
        async with self._turns:
            return await super().request(method, path, **options)

    def stream(self, path: str, query: Query, silence: float) -> AsyncGenerator[bytes]:
        """As a client of its own does it."""
        return self._watches.stream(path, query, silence)

    async def close(self) -> None:
        """Closes all connections to the API server."""
        await super().close()
        await self._watches.close()
        await asyncio.sleep(0.1)  # in which the loop closes the sockets of requests that were killed


class Half:
    """The cluster half of one agent."""

    def __init__(self, client: Client, node: str) -> None:
        self.node = node
        self.sick = False
        self.settled = False  # whether what is wanted is done, or held by a budget, and in the report
        self.killed = False  # ever: then the report may have been written and we do not know
        self._client = client
        self._settings = Settings(node_name=node)
        self._reconciler: NodeReconciler | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """As a new process would: nothing is known but what the cluster says."""
        self._reconciler = NodeReconciler(
            lambda: (wanted(sick=self.sick), Facts()),
            node_changed=lambda _: None,
            on_action=self._see,
            observer=lambda *_: None,
            now=lambda: datetime.now(UTC),
        )
        self._task = asyncio.create_task(self._reconciler.run_with(self._client, self._settings))

    def want(self, *, sick: bool) -> None:
        """The node has become sick, or healthy."""
        if self.sick is not sick:
            self.sick, self.settled = sick, False
            if self._reconciler is not None:
                self._reconciler.trigger()

    async def kill(self) -> None:
        """In the middle of whatever it does, with requests under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = self._reconciler = None
            self.killed = True

    def _see(self, act: AppliedAction) -> None:
        if act.kind == "report":
            self.settled = True


@asynccontextmanager
async def running(client: Client, nodes: Iterable[str]) -> AsyncIterator[list[Half]]:
    """The halves of these nodes, healthy and settled; killed at the end."""
    halves = [Half(client, node) for node in nodes]
    try:
        for half in halves:
            half.start()
        await until(lambda: all(half.settled for half in halves), seconds=600.0)
        yield halves
    finally:
        await asyncio.gather(*[half.kill() for half in halves])


def quiet() -> None:
    """No warnings of the halves between the figures."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))


@contextmanager
def plane_with_budget(most: int | str) -> Iterator[tuple[ControlPlane, Path]]:
    """A control plane with a budget for all GPU nodes, and a kubeconfig with the rights of the agents.

    The budget says what a controller says of it after half a minute: that every node that is out holds a slot.
    """
    with ControlPlane() as plane:
        plane.apply(BASE)
        plane.apply([budget(BUDGET, LABELS, most)])
        path = f"/apis/gpuhealth.io/v1alpha1/quarantinebudgets/{BUDGET}/status"
        status = {"status": {"observedGeneration": 1, "counted": True}}
        plane.request("PATCH", path, status, content_type="application/merge-patch+json")
        token = plane.service_account_token(NAMESPACE, "gpuhealth-agent", seconds=7200)
        yield plane, plane.write_kubeconfig("agents", token)


async def make_nodes(plane: ControlPlane, count: int) -> list[str]:
    """The names of so many new GPU nodes."""
    names = [f"node-{k:04}" for k in range(count)]
    async with Client.from_kubeconfig(plane.kubeconfig, connections=_CONNECTIONS) as client:
        await asyncio.gather(*[_make_node(client, name) for name in names])
    return names


async def _make_node(client: Client, name: str) -> None:
    with contextlib.suppress(AlreadyExistsError):  # the machine was so busy that an answer came too late
        await client.create(NODES, {"metadata": {"name": name, "labels": LABELS}})


class Fleet(msgspec.Struct, frozen=True):
    """Many agents' cluster halves on a control plane of their own, and what a watch of their nodes has seen."""

    client: Client
    halves: list[Half]
    history: History


@asynccontextmanager
async def fleet(plane: ControlPlane, kubeconfig: Path, count: int, *, in_turn: bool = False) -> AsyncIterator[Fleet]:
    """So many halves, healthy and settled."""
    history = History()
    async with (
        SharedClient(kubeconfig, in_turn=in_turn) as client,
        Client.from_kubeconfig(plane.kubeconfig) as observer,
    ):
        nodes = await make_nodes(plane, count)
        async with (
            history.following(observer, query_text({"matchLabels": LABELS}), BUDGET),
            running(client, nodes) as halves,
        ):
            yield Fleet(client, halves, history)


def calls(client: Client) -> int:
    """All requests so far, without watches."""
    return sum(client.calls.values())


class Moment(msgspec.Struct, frozen=True):
    """How many there were after one change."""

    at: float
    count: int


class History:
    """All that a watch has seen of the nodes that are out by our hand, and of the slots that are held."""

    def __init__(self) -> None:
        self.out: list[Moment] = []
        self.slots: list[Moment] = []

    @asynccontextmanager
    async def following(self, client: Client, labels: str, name: str) -> AsyncIterator[None]:
        """Follow the nodes with these labels and the slots of the budget of this name meanwhile."""
        tasks = [
            asyncio.create_task(_follow(watch(client, NODES, labels=labels), is_out, self.out)),
            asyncio.create_task(
                _follow(watch(client, LEASES, NAMESPACE, labels=f"gpuhealth.io/budget={name}"), _exists, self.slots)
            ),
        ]
        try:
            await until(lambda: self.out and self.slots)
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def first(history: list[Moment], count: int) -> float:
    """When there were so many for the first time, by time.monotonic(); infinite if never."""
    return next((moment.at for moment in history if moment.count >= count), float("inf"))


def most(history: list[Moment]) -> int:
    """The most that there ever were."""
    return max(moment.count for moment in history)


def is_out(node: Object) -> bool:
    """Whether the node carries our taint, put there by us."""
    return record(node) is not None and any(taint["key"] == "gpuhealth.io/unhealthy" for taint in taints(node))


def _exists(_: Object) -> bool:
    return True


async def _follow(events: AsyncGenerator[WatchEvent], counts: Callable[[Object], bool], history: list[Moment]) -> None:
    members: set[str] = set()
    async with aclosing(events) as following:
        async for event in following:
            match event:
                case WatchListed(items):
                    members = {item["metadata"]["name"] for item in items if counts(item)}
                case WatchChanged(kind, item):
                    name = item["metadata"]["name"]
                    (members.add if kind != "DELETED" and counts(item) else members.discard)(name)
                case _:
                    continue
            history.append(Moment(time.monotonic(), len(members)))
