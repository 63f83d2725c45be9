"""The cluster half of an agent dies after each of its steps, while the API server fails in each of its ways."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from kube import ControlPlane
from kube.proxy import FaultyProxy
from testing.cluster_objects import Pool
from testing.node_writing import HEALTHY, SICK, marks

from gpuhealth.kube.client import Client
from gpuhealth.kube.errors import ApiError
from gpuhealth.monitors.settings import Settings
from gpuhealth.quarantine.own_node import OwnNode
from gpuhealth.quarantine.target import Desired
from gpuhealth.quarantine.writer import AppliedAction, NodeWriter

# The request behind each act, as the proxy sees it.
REQUESTS = {
    "slot_taken": ("POST", "/leases"),
    "taint": ("PATCH", "/api/v1/nodes/"),
    "untaint": ("PATCH", "/api/v1/nodes/"),
    "condition": ("PATCH", "/status"),
    "event": ("POST", "/events"),
    "slot_released": ("DELETE", "/leases/"),
    "report": ("PATCH", "/gpuhealthreports/"),
}
OUT = ("slot_taken", "taint", "condition", "event", "report")
BACK = ("untaint", "condition", "event", "slot_released", "report")
ERRORS: dict[str, tuple[int | str, str]] = {
    "conflict": (409, ""),
    "too-many-requests": (429, "1"),
    "server-error": (500, ""),
    "reset": ("reset", ""),
    "answer-lost": ("lost", ""),
    "unauthorized": (401, ""),
}


async def persist(writer: NodeWriter, desired: Desired) -> None:
    """Until it is done, as the keeper does."""
    async with asyncio.timeout(120):
        while True:
            try:
                await writer.apply(desired)
            except ApiError:
                await asyncio.sleep(0.01)
            else:
                return


@asynccontextmanager
async def agent(proxy: FaultyProxy, node: str, dies_after: str = "") -> AsyncIterator[NodeWriter]:
    """The cluster half of a new process; after the act it is cancelled in the middle of its work."""
    task = asyncio.current_task()
    assert task is not None

    def on_action(act: AppliedAction) -> None:
        if act.kind == dies_after:
            task.cancel()

    async with Client.from_kubeconfig(proxy.kubeconfig) as client:
        yield NodeWriter(client, Settings(), OwnNode(client, node), on_action=on_action)


async def dies_in(proxy: FaultyProxy, node: str, desired: Desired, step: str, error: str) -> None:
    """An agent whose request for the step fails once, and which dies when the step is done."""

    async def life() -> None:
        async with agent(proxy, node, dies_after=step) as writer:
            await persist(writer, desired)
            await asyncio.sleep(0)  # in which it dies, where the last step was the one

    what, retry_after = ERRORS[error]
    method, path = REQUESTS[step]
    proxy.fail(what, method=method, path=path, retry_after=retry_after)
    async with asyncio.timeout(120):
        await asyncio.gather(asyncio.create_task(life()), return_exceptions=True)
    proxy.heal()


async def finished_by_next(proxy: FaultyProxy, node: str, desired: Desired, error: str) -> None:
    """The next agent finishes, though its first read and its first write fail, too."""
    what, retry_after = ERRORS[error]
    for method in ("GET", "PATCH"):
        proxy.fail(what, method=method, retry_after=retry_after.replace("1", "0"))
    async with agent(proxy, node) as writer:
        await persist(writer, desired)
        calls = len(proxy.seen)
        await persist(writer, desired)
        writes = [method for method, _ in proxy.seen[calls:] if method != "GET"]
    assert not writes, "what is done is not done again"
    proxy.heal()


@pytest.fixture
def one(pool: Pool) -> Iterator[str]:
    """A node, and a budget with room for two."""
    node = pool.node()
    pool.budget(2)
    yield node
    assert pool.slots() == {}


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize(("out", "back"), list(zip(OUT, BACK, strict=True)), ids=OUT)
def test_killed_after_each_step(plane: ControlPlane, pool: Pool, one: str, out: str, back: str, error: str) -> None:
    """Whatever fails and wherever it dies: the next agent has the node out with one slot, and back with none."""

    async def run() -> None:
        async with FaultyProxy(plane) as proxy:
            await dies_in(proxy, one, SICK, out, error)
            await finished_by_next(proxy, one, SICK, error)
            assert marks(pool, one) == (["xid.79"], "False", "quarantined")
            assert list(pool.slots().values()) == [one]
            await dies_in(proxy, one, HEALTHY, back, error)
            await finished_by_next(proxy, one, HEALTHY, error)
            assert marks(pool, one) == ([], "True", "none")

    asyncio.run(run())


@pytest.mark.parametrize("step", OUT[:-1])
def test_well_again_when_the_next_one_starts(plane: ControlPlane, pool: Pool, one: str, step: str) -> None:
    """The fault is gone by the time of the next agent: nothing is left of what the killed one had begun."""

    async def run() -> None:
        async with FaultyProxy(plane) as proxy:
            await dies_in(proxy, one, SICK, step, "answer-lost")
            await finished_by_next(proxy, one, HEALTHY, "answer-lost")
            assert marks(pool, one) == ([], "True", "none")

    asyncio.run(run())
