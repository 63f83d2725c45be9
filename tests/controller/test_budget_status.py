"""What the controller does for budgets: their status, and slots for nodes that are unavailable without one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from kube.proxy import FaultyProxy
from testing.controller_steps import QB, SICK, drop, holders, outcome, status, tainted
from testing.managed_cluster import Cluster, until

from gpuhealth.kube.client import Client
from gpuhealth.kube.kinds import BUDGETS
from gpuhealth.monitors.settings import Settings
from gpuhealth.quarantine.own_node import OwnNode
from gpuhealth.quarantine.slots.holder import Admitted, Blocked
from gpuhealth.quarantine.writer import NodeWriter


def cordon(cluster: Cluster, node: str, *, on: bool) -> None:
    """Cordon or uncordon a node as kubectl does."""
    cluster.patch(f"/api/v1/nodes/{node}", {"spec": {"unschedulable": on or None}})


def resize(cluster: Cluster, amount: int) -> None:
    """A person changes the budget."""
    cluster.patch(f"{QB}/{cluster.name}", {"spec": {"maxUnavailable": amount}})


def test_a_status_that_cannot_be_written(cluster: Cluster) -> None:
    """A budget whose status the API server refuses does not delay the status of the others."""
    another = Cluster(cluster.plane)
    first, second = sorted([cluster, another], key=lambda each: each.name)  # as they are listed
    first.budget(1)
    second.budget(1)

    async def run() -> None:
        proxy = FaultyProxy(cluster.plane, cluster.token())
        proxy.fail(422, method="PATCH", path=f"/quarantinebudgets/{first.name}/status", times=-1)
        async with proxy, cluster.controller(kubeconfig=proxy.kubeconfig):
            await until(lambda: status(second).get("observedGeneration"))
            assert not status(first)
            proxy.heal()
            await until(lambda: status(first).get("observedGeneration"))

    try:
        asyncio.run(run())
    finally:
        another.remove()


@pytest.mark.parametrize("counted", [True, False])
def test_nodes_that_others_made_unavailable(cluster: Cluster, counted: bool) -> None:
    """Cordoned nodes and nodes that are not ready take slots if the budget says so, and free them afterwards."""
    cordoned, down, first, second = (cluster.node() for _ in range(4))
    cluster.budget(3, countUnavailable=counted)
    cordon(cluster, cordoned, on=True)
    cluster.set_condition(down, "Ready", "False")

    async def run() -> None:
        async with cluster.controller(agent_silent_after="1h", orphaned_slot_timeout="1h"):
            await until(lambda: status(cluster).get("size") == 4)
            await until(lambda: status(cluster)["used"] == (2 if counted else 0))
            assert status(cluster)["unavailable"] == (2 if counted else 0)
            assert status(cluster)["nodes"] == []
            assert isinstance(await outcome(cluster, first), Admitted)
            assert isinstance(await outcome(cluster, second), Blocked if counted else Admitted)
            cordon(cluster, cordoned, on=False)
            await until(lambda: status(cluster)["unavailable"] == (1 if counted else 0))
            await until(lambda: status(cluster)["used"] == 2)
            assert isinstance(await outcome(cluster, second), Admitted)
            cluster.set_condition(down, "Ready", "True")
            await until(lambda: status(cluster)["nodes"] == sorted([first, second]))
            await until(lambda: status(cluster)["used"] == 2)

    asyncio.run(run())
    assert holders(cluster) == sorted([first, second])
    drop(cluster)


def test_a_slot_that_cannot_be_reserved(cluster: Cluster) -> None:
    """While the API server refuses the slot of a cordoned node, the status counts the node; later it gets a slot."""
    node = cluster.node()
    cluster.budget(3, countUnavailable=True)
    cordon(cluster, node, on=True)

    async def run() -> None:
        proxy = FaultyProxy(cluster.plane, cluster.token())
        proxy.fail(422, method="POST", path="/leases", times=-1)
        async with proxy, cluster.controller(kubeconfig=proxy.kubeconfig):
            await until(lambda: status(cluster).get("unavailable") == 1)
            assert status(cluster)["used"] == 0
            proxy.heal()
            await until(lambda: status(cluster)["used"] == 1)

    asyncio.run(run())
    assert holders(cluster) == [f"gpuhealth-controller/{node}"]
    drop(cluster)


def test_a_quarantined_node_counts_once(cluster: Cluster) -> None:
    """In mode cordon the node is tainted and cordoned: it holds one slot, its own."""
    node = cluster.node()
    cluster.budget(3, countUnavailable=True)

    async def run() -> None:
        async with cluster.controller(), Client.from_kubeconfig(cluster.plane.kubeconfig) as client:
            await NodeWriter(client, Settings(mode="cordon"), OwnNode(client, node)).apply(SICK)
            other = cluster.node()
            cordon(cluster, other, on=True)  # once this one is counted, the first has been, too
            await until(lambda: status(cluster).get("unavailable") == 1)
            await until(lambda: status(cluster)["used"] == 2)
            assert status(cluster)["nodes"] == [node]
            cluster.plane.request("DELETE", f"{QB}/{cluster.name}")
            await until(lambda: holders(cluster) == [node])  # the reserved slot goes with its budget

    asyncio.run(run())
    drop(cluster)


def test_a_limit_that_changes(cluster: Cluster) -> None:
    """Lowered, it returns no node to service, and admits none until fewer are out; raised, it admits blocked ones."""
    nodes = [cluster.node() for _ in range(4)]
    for node in nodes:
        cluster.agent(node)
    cluster.budget(3)

    async def run() -> None:
        async with cluster.controller(), Client.from_kubeconfig(cluster.plane.kubeconfig) as client:
            writers = [NodeWriter(client, Settings(), OwnNode(client, node)) for node in nodes]
            for writer in writers:
                await writer.apply(SICK)
            held = writers[3]
            assert held.blocked is not None
            resize(cluster, 2)
            await until(lambda: status(cluster).get("limit") == 2)
            for writer in writers[:3]:
                await writer.apply(SICK)
            assert all(tainted(cluster, node) for node in nodes[:3])
            # One of the two within the limit comes back: two are out still, so there is no room for another.
            back = next(k for k in range(3) if holder(cluster, 2) != nodes[k])
            cluster.plane.request("DELETE", f"{LEASE}{cluster.name}.{slot_of(cluster, nodes[back])}")
            assert isinstance(await outcome(cluster, nodes[3]), Blocked)
            resize(cluster, 4)
            await until(lambda: status(cluster).get("limit") == 4)
            async with asyncio.timeout(180):
                while not tainted(cluster, nodes[3]):
                    await asyncio.sleep(held.retry_in or 0)
                    await held.apply(SICK)

    asyncio.run(run())
    drop(cluster)


LEASE = "/apis/coordination.k8s.io/v1/namespaces/gpuhealth/leases/"


def holder(cluster: Cluster, number: int) -> str:
    """The holder of the slot with this number."""
    return str(cluster.plane.request("GET", f"{LEASE}{cluster.name}.{number}")["spec"]["holderIdentity"])


def slot_of(cluster: Cluster, node: str) -> int:
    """The number of the node's slot."""
    return next(k for k in range(3) if holder(cluster, k) == node)


def test_columns(cluster: Cluster) -> None:
    """What `kubectl get qb` prints: limit, used and blocked nodes by name of the column."""
    cluster.budget(1)
    out, held = cluster.node(), cluster.node()
    for node in (out, held):
        cluster.agent(node)

    async def run() -> dict[str, Any]:
        async with cluster.controller(), Client.from_kubeconfig(cluster.plane.kubeconfig) as client:
            for node in (out, held):
                await NodeWriter(client, Settings(), OwnNode(client, node)).apply(SICK)
            await until(lambda: status(cluster).get("blocked") == 1 and status(cluster)["used"] == 1)
            accept = "application/json;as=Table;v=v1;g=meta.k8s.io"
            table = await client.request("GET", BUDGETS.path(cluster.name), accept=accept)
            return dict(
                zip([each["name"] for each in table["columnDefinitions"]], table["rows"][0]["cells"], strict=True)
            )

    shown = asyncio.run(run())
    assert (shown["Max"], shown["Nodes"], shown["Limit"], shown["Used"], shown["Blocked"]) == ("1", 2, 1, 1, 1)
    assert status(cluster)["blockedNodes"] == [held]
    drop(cluster)
