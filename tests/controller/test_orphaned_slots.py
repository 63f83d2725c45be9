"""Orphaned slots: freed when it is safe, and only then."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from kube.proxy import FaultyProxy
from testing.controller_steps import LEASES, SICK, drop, holders, tainted
from testing.managed_cluster import Cluster, until

from gpuhealth.kube.client import Client
from gpuhealth.monitors.settings import Settings
from gpuhealth.quarantine.own_node import OwnNode
from gpuhealth.quarantine.slots.holder import Admitted, Blocked, SlotHolder
from gpuhealth.quarantine.writer import NodeWriter

QUICK: dict[str, Any] = {"orphaned_slot_timeout": "300ms", "agent_silent_after": "1h"}


async def take(cluster: Cluster, node: str) -> Any:
    """Take a slot for the node, as an agent that dies right after."""
    async with Client.from_kubeconfig(cluster.plane.kubeconfig) as client:
        return await SlotHolder(client, "gpuhealth", node).acquire({"gpuhealth.io/pool": cluster.name}, "xid.79")


def test_an_orphaned_slot(cluster: Cluster) -> None:
    """An agent died between slot and taint and has not come back: another node gets the slot, and an Event says so."""
    dead, other = cluster.node(), cluster.node()
    cluster.budget(1)

    async def run() -> None:
        assert isinstance(await take(cluster, dead), Admitted)
        async with cluster.controller(**QUICK):
            await until(lambda: holders(cluster) == [])
            await until(lambda: "SlotFreed" in cluster.reasons(dead, "default"))
        cluster.agent(other)
        assert isinstance(await take(cluster, other), Admitted)

    asyncio.run(run())
    assert cluster.health(dead) == ("Unknown", "AgentSilent")
    drop(cluster)


@pytest.mark.parametrize("reason", ["agent is there", "out of service", "override"])
def test_a_slot_in_use(cluster: Cluster, reason: str) -> None:
    """A ready agent, a taint of ours, an override: each alone keeps the slot."""
    node, left = cluster.node(), cluster.node()
    cluster.budget(2)

    async def run() -> None:
        match reason:
            case "agent is there":
                cluster.agent(node)
                await take(cluster, node)
            case "out of service":
                async with Client.from_kubeconfig(cluster.plane.kubeconfig) as client:
                    await NodeWriter(client, Settings(), OwnNode(client, node)).apply(SICK)
                assert tainted(cluster, node)
            case _:
                note = {"annotations": {"gpuhealth.io/override": "unmanaged"}}
                cluster.patch(f"/api/v1/nodes/{node}", {"metadata": note})
                await take(cluster, node)
        async with cluster.controller(**QUICK):
            for _ in range(2):  # the second is freed in a later look at both
                await take(cluster, left)
                await until(lambda: holders(cluster) == [node])

    asyncio.run(run())
    drop(cluster)


def test_an_agent_that_was_frozen_before_its_taint(cluster: Cluster) -> None:
    """It continues after its slot was freed and taken by another node: its taint is refused, it requests a slot again
    and is blocked. Two nodes are never out where one may be."""
    frozen, other = cluster.node(), cluster.node()
    cluster.agent(other)
    cluster.budget(1)

    async def run() -> None:
        async with FaultyProxy(cluster.plane) as proxy, Client.from_kubeconfig(proxy.kubeconfig, timeout=600) as client:
            writer = NodeWriter(client, Settings(), OwnNode(client, frozen))
            proxy.fail("hang", method="PATCH", path=f"/nodes/{frozen}")
            applying = asyncio.create_task(writer.apply(SICK))
            await until(lambda: holders(cluster) == [frozen])
            async with cluster.controller(**QUICK):
                await until(lambda: holders(cluster) == [])
            assert isinstance(await take(cluster, other), Admitted)
            proxy.heal()
            await applying
            assert not tainted(cluster, frozen)
            assert writer.blocked is not None
            assert writer.blocked.budget == cluster.name
            assert cluster.report(frozen)["quarantine"]["state"] == "blocked"

    asyncio.run(run())
    assert holders(cluster) == [other]
    drop(cluster)


def test_an_agent_that_comes_back_keeps_its_slot(cluster: Cluster) -> None:
    """A slot that is found again is renewed before use, so that a deletion of the old version fails."""
    node, other = cluster.node(), cluster.node()
    cluster.budget(1)

    async def run() -> None:
        assert isinstance(await take(cluster, node), Admitted)
        async with Client.from_kubeconfig(cluster.plane.kubeconfig) as client:
            (lease,) = await _leases(client, cluster)
            await NodeWriter(client, Settings(), OwnNode(client, node)).apply(SICK)
            (renewed,) = await _leases(client, cluster)
            assert renewed["metadata"]["uid"] == lease["metadata"]["uid"]
            assert renewed["metadata"]["resourceVersion"] != lease["metadata"]["resourceVersion"]
        assert isinstance(await take(cluster, other), Blocked)

    asyncio.run(run())
    assert tainted(cluster, node)
    drop(cluster)


async def _leases(client: Client, cluster: Cluster) -> list[Any]:
    answer = await client.request("GET", LEASES, query={"labelSelector": f"gpuhealth.io/budget={cluster.name}"})
    return list(answer["items"])
