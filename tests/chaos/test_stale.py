"""What an agent knows of its Node may be old: a slot is never given back while the Node is out."""

from __future__ import annotations

import asyncio

import pytest
from kube import ControlPlane
from kube.proxy import FaultyProxy
from testing.cluster_objects import Pool
from testing.node_writing import HEALTHY, SICK, marks
from testing.waiting import until

from gpuhealth.kube.client import Client
from gpuhealth.kube.errors import UnavailableError
from gpuhealth.monitors.settings import Settings
from gpuhealth.quarantine.own_node import OwnNode
from gpuhealth.quarantine.writer import NodeWriter


def test_a_watch_that_broke_unnoticed(plane: ControlPlane, pool: Pool) -> None:
    """The taint's answer is lost and the watch is silent; well again, the node loses the taint before the slot."""
    node = pool.node()
    pool.budget(1)

    async def run() -> None:
        async with FaultyProxy(plane) as proxy, Client.from_kubeconfig(proxy.kubeconfig, attempts=1) as client:
            writer = NodeWriter(client, Settings(), OwnNode(client, node))
            following = asyncio.create_task(writer.node.follow())
            await until(lambda: writer.node.following)
            await writer.apply(HEALTHY)
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            writer.node.following = True  # as it looks until the silence has lasted for minutes
            proxy.fail("lost", method="PATCH", path=f"/nodes/{node}")
            with pytest.raises(UnavailableError):
                await writer.apply(SICK)
            assert marks(pool, node)[0] == ["xid.79"], "it was done, and the writer does not know"
            began = len(proxy.seen)
            await writer.apply(HEALTHY)
            acts = [(method, path.split("/")[-2]) for method, path in proxy.seen[began:] if method != "GET"]
            assert acts.index(("PATCH", "nodes")) < acts.index(("DELETE", "leases"))
            assert marks(pool, node)[0] == []
            assert pool.slots() == {}

    asyncio.run(run())


def test_a_list_from_an_old_cache(plane: ControlPlane, pool: Pool) -> None:
    """A list that another API server's cache answers does not hide what the writer has written since."""
    node = pool.node()
    pool.budget(1)
    old = pool.get(node)

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            writer = NodeWriter(client, Settings(), OwnNode(client, node))
            await writer.apply(SICK)
            writer.node._listed([old])
            assert [taint["value"] for taint in writer.node.taints] == ["xid.79"]

    asyncio.run(run())
