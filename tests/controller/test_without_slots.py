"""Nodes that are out of service by our action without a slot: they are counted, and get a slot that is free."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import msgspec
from testing.controller_steps import QB, drop, holders, outcome, status
from testing.managed_cluster import QUICK, Cluster, until
from testing.node_writing import HEALTHY, SICK

from gpuhealth.kube.client import Client
from gpuhealth.monitors.settings import Settings
from gpuhealth.quarantine.own_node import OwnNode
from gpuhealth.quarantine.slots.budget import is_counted
from gpuhealth.quarantine.slots.holder import Admitted, Blocked
from gpuhealth.quarantine.writer import NodeWriter

LEASES = "/apis/coordination.k8s.io/v1/namespaces/gpuhealth/leases"


QUICKER = msgspec.structs.replace(QUICK, budget_settling=0.5, slot_grace=0.5)


def counted(cluster: Cluster) -> bool:
    """Whether agents need not count nodes themselves."""
    return is_counted(cluster.plane.request("GET", f"{QB}/{cluster.name}"))


def observed(cluster: Cluster, generation: int) -> bool:
    """Whether the status is about this generation of the budget."""
    return bool(status(cluster).get("observedGeneration") == generation)


def free(cluster: Cluster) -> None:
    """Delete all slots of the budget, as a person might."""
    items = cluster.plane.request("GET", f"{LEASES}?labelSelector=gpuhealth.io/budget={cluster.name}")["items"]
    for item in items:
        cluster.plane.request("DELETE", f"{LEASES}/{item['metadata']['name']}")


def test_an_agent_that_is_gone(cluster: Cluster) -> None:
    """A node that is out, without slot and agent, gets a reserved slot, so that no other node goes out. When the node
    is back the slot is free."""
    one, two = cluster.node(), cluster.node()
    cluster.budget(1)

    async def run() -> None:
        async with Client.from_kubeconfig(cluster.plane.kubeconfig) as client:
            writer = NodeWriter(client, Settings(), OwnNode(client, one))
            await writer.apply(SICK)
            free(cluster)
            async with cluster.controller(QUICKER, agent_silent_after="1h", orphaned_slot_timeout="1h"):
                await until(lambda: holders(cluster) == [f"gpuhealth-controller/{one}"])
                await until(lambda: counted(cluster))
                assert isinstance(await outcome(cluster, two), Blocked)
                assert status(cluster)["uncounted"] == 0
                await writer.apply(SICK)  # content with the slot that the controller holds for it
                assert holders(cluster) == [f"gpuhealth-controller/{one}"]
                await writer.apply(HEALTHY)
                await until(lambda: not holders(cluster))
                assert isinstance(await outcome(cluster, two), Admitted)

    asyncio.run(run())
    drop(cluster)


def test_beyond_the_limit(cluster: Cluster) -> None:
    """Two nodes that are out under a limit of one stay out: the status counts the one without a slot."""
    one, two, three = cluster.node(), cluster.node(), cluster.node()
    cluster.budget(2)

    async def run() -> None:
        async with Client.from_kubeconfig(cluster.plane.kubeconfig) as client:
            for node in (one, two):
                await NodeWriter(client, Settings(), OwnNode(client, node)).apply(SICK)
            cluster.plane.request("DELETE", f"{QB}/{cluster.name}")
            free(cluster)
            cluster.budget(1)
            async with cluster.controller(QUICKER, agent_silent_after="1h", orphaned_slot_timeout="1h"):
                await until(lambda: len(holders(cluster)) == 1)
                await until(lambda: status(cluster).get("uncounted") == 1)
                assert not counted(cluster)
                assert isinstance(await outcome(cluster, three), Blocked)
                taints: dict[str, Any] = cluster.plane.request("GET", f"/api/v1/nodes/{one}")["spec"]
                assert taints["taints"], "nothing is taken back"

    asyncio.run(run())
    free(cluster)


def test_a_new_budget_is_not_counted_at_once(cluster: Cluster) -> None:
    """A new or changed budget is counted only after the settling time: watches may not have shown it yet."""
    settling, settled = (msgspec.structs.replace(QUICK, budget_settling=seconds) for seconds in (3600.0, 0.1))
    cluster.node()
    cluster.budget(1)

    async def run() -> None:
        for generation in (1, 2):
            async with cluster.controller(settling):
                await until(partial(observed, cluster, generation))
                assert not counted(cluster)
            async with cluster.controller(settled):
                await until(lambda: counted(cluster))
            cluster.patch(f"{QB}/{cluster.name}", {"spec": {"maxUnavailable": 1 + generation}})
            assert not counted(cluster)

    asyncio.run(run())


def test_a_lease_that_cannot_be_read(cluster: Cluster) -> None:
    """It counts as taken and is logged once; the controller continues."""
    cluster.node()
    cluster.budget(2)
    labels = {"gpuhealth.io/budget": cluster.name, "gpuhealth.io/slot-set": "unavailable", "gpuhealth.io/node": "x"}
    for number, spec in enumerate([{}, {"holderIdentity": "", "renewTime": "0000-01-01T00:00:00.000000Z"}]):
        body = {"metadata": {"name": f"{cluster.name}.{number}", "labels": labels}, "spec": spec}
        kind = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease"}
        cluster.plane.request("POST", LEASES, body | kind)

    async def run() -> None:
        async with cluster.controller() as controller:
            await until(lambda: status(cluster).get("used") == 2)
            await until(lambda: controller.unreadable.get("Lease", 0) >= 2)

    asyncio.run(run())
    free(cluster)
