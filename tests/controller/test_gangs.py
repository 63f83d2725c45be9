"""Gangs on a real control plane, whose controller manager computes PodDisruptionBudgets: all or none evicted."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from kube.proxy import FaultyProxy
from testing.controller_steps import in_seconds, stop_all
from testing.managed_cluster import Cluster, until

from gpuhealth.controller.duties.drain_controller import DrainController

APP = {"app": "training"}
LABEL = "scheduling.x-k8s.io/pod-group"


def gang(cluster: Cluster, *nodes: str, label: str = LABEL) -> list[str]:
    """Create a pod on each of the nodes, all of one gang."""
    return [cluster.pod(node, labels={label: "job", **APP}) for node in nodes]


async def guarded(cluster: Cluster, available: int, healthy: int, name: str = "guard") -> str:
    """Create a PodDisruptionBudget, wait until it is computed, and return its path."""
    path = cluster.guard(APP, available, name)
    await until(lambda: cluster.is_guarding(path, healthy))
    return path


def asked(cluster: Cluster, pods: list[str]) -> list[Any]:
    """The status codes of the evictions of each pod."""
    return [cluster.evictions(pod) for pod in pods]


def names(pods: list[str]) -> list[str]:
    """The names of the pods."""
    return [pod.rpartition("/")[2] for pod in pods]


@pytest.mark.parametrize("label", ["pod-group.scheduling.sigs.k8s.io", LABEL])
@pytest.mark.parametrize("allowed", [0, 1, 2, 3])
def test_no_part_of_a_gang_is_evicted(cluster: Cluster, label: str, allowed: int) -> None:
    """While the budget allows only a part of the gang, no pod of it is evicted, and report and Events show why; when it
    allows all, each is evicted once."""
    node = cluster.node()
    pods = gang(cluster, *[node] * 4, label=label)

    async def run() -> None:
        budget = await guarded(cluster, 4 - allowed, 4)
        async with cluster.controller() as controller:
            cluster.quarantine(node)
            await until(lambda: controller.duty(DrainController).status.evictions["refused"] > 3)
            assert asked(cluster, pods) == [{}] * 4
            assert not any(cluster.terminating(pod) for pod in pods)
            reason = f"PodDisruptionBudget guard allows {allowed} of 4 evictions"
            await until(lambda: reason in cluster.drain(node)["message"])
            assert cluster.drain(node)["message"].startswith("eviction refused for 4 pods, such as ")
            for name in names(pods):
                await until(lambda name=name: "EvictionRefused" in cluster.reasons(name))  # type: ignore[misc]
            cluster.patch(budget, {"spec": {"minAvailable": 0}})
            await stop_all(cluster, *pods)
            await until(lambda: cluster.drain(node)["phase"] == "drained")

    asyncio.run(run())
    assert asked(cluster, pods) == [{201: 1}] * 4
    assert [cluster.deletions(pod) for pod in pods] == [[]] * 4
    assert [cluster.reasons(name).count("EvictionRefused") for name in names(pods)] == [1] * 4


def test_a_gang_at_the_deadline(cluster: Cluster) -> None:
    """A gang that can never be evicted as a whole is complete until the deadline, and is then deleted."""
    node = cluster.node()
    pods = gang(cluster, *[node] * 4)

    async def run() -> None:
        await guarded(cluster, 2, 4)
        async with cluster.controller() as controller:
            cluster.quarantine(node)
            await until(lambda: controller.duty(DrainController).status.evictions["refused"] > 3)
            assert not any(cluster.terminating(pod) for pod in pods)
            cluster.say(node, {"drain": {"deadline": in_seconds(1)}})
            await stop_all(cluster, *pods)
            await until(lambda: cluster.drain(node)["phase"] == "drained")

    asyncio.run(run())
    assert asked(cluster, pods) == [{}] * 4
    assert [len(cluster.deletions(pod)) for pod in pods] == [1] * 4
    assert (cluster.drain(node)["evicted"], cluster.drain(node)["deleted"]) == (0, 4)


def test_a_gang_on_several_nodes(cluster: Cluster) -> None:
    """On nodes that are drained at the same time, the pods of a gang are evicted together, though those of each node
    could be evicted alone; its pods on other nodes are neither counted nor evicted."""
    nodes, well = [cluster.node(), cluster.node()], cluster.node()
    pods = gang(cluster, *nodes, *nodes)
    (elsewhere,) = gang(cluster, well)

    def reported(reason: str) -> bool:
        return all(reason in cluster.drain(node).get("message", "") for node in nodes)

    async def run() -> None:
        budget = await guarded(cluster, 4, 5)
        async with cluster.controller():
            for node in nodes:
                cluster.quarantine(node)
            await until(lambda: reported("allows 1 of 4 evictions"))
            cluster.patch(budget, {"spec": {"minAvailable": 2}})
            await until(lambda: reported("allows 3 of 4 evictions"))
            assert asked(cluster, pods) == [{}] * 4
            cluster.patch(budget, {"spec": {"minAvailable": 1}})
            await stop_all(cluster, *pods)
            await until(lambda: all(cluster.drain(node)["phase"] == "drained" for node in nodes))

    asyncio.run(run())
    assert [cluster.evictions(pod)[201] for pod in pods] == [1] * 4
    assert not cluster.terminating(elsewhere)


def test_a_budget_that_changes_in_between(cluster: Cluster) -> None:
    """The API server decides. If it refuses the first pod, the others stay; if it refuses a later one, the others go,
    and that one gets an Event and is retried alone."""
    node = cluster.node()
    pods = gang(cluster, *[node] * 3)

    async def run() -> None:
        await guarded(cluster, 0, 3)
        proxy = FaultyProxy(cluster.plane, cluster.token())
        async with proxy, cluster.controller(kubeconfig=proxy.kubeconfig) as controller:
            await until(lambda: controller.fleet.ready)
            proxy.fail(429, method="POST", path=f"{pods[0]}/eviction", times=3)
            proxy.fail(429, method="POST", path=f"{pods[1]}/eviction", times=5)
            cluster.quarantine(node)
            await until(lambda: cluster.evictions(pods[1])[201])
            evictions = [path for method, path in proxy.seen if method == "POST" and path.endswith("/eviction")]
            assert evictions[:3] == [f"{pods[0]}/eviction"] * 3
            assert set(evictions[3:6]) == {f"{pod}/eviction" for pod in pods}
            assert evictions[6:] == [f"{pods[1]}/eviction"] * 5
            await stop_all(cluster, *pods)
            await until(lambda: cluster.drain(node)["phase"] == "drained")

    asyncio.run(run())
    assert asked(cluster, pods) == [{201: 1}] * 3
    path = f"/api/v1/namespaces/{cluster.namespace}/events?fieldSelector=involvedObject.name={names(pods)[1]}"
    messages = [event["message"] for event in cluster.plane.request("GET", path)["items"]]
    assert any("others of its gang job have gone" in message for message in messages)


def test_the_rest_of_a_gang(cluster: Cluster) -> None:
    """A gang that has lost a pod is no longer protected: the rest is evicted as the budget allows."""
    node = cluster.node()
    lost, *pods = gang(cluster, *[node] * 3)

    async def run() -> None:
        budget = await guarded(cluster, 2, 3)
        async with cluster.controller() as controller:
            cluster.quarantine(node)
            await until(lambda: "allows 1 of 3" in cluster.drain(node).get("message", ""))
            cluster.plane.request("DELETE", lost)  # by whoever runs the job
            await until(lambda: sum(cluster.evictions(pod)[429] for pod in pods))
            cluster.patch(budget, {"spec": {"minAvailable": 1}})
            await until(lambda: any(cluster.terminating(pod) for pod in pods))
            refused = controller.duty(DrainController).status.evictions["refused"]
            await until(lambda: controller.duty(DrainController).status.evictions["refused"] > refused)
            cluster.plane.request("DELETE", budget)
            await stop_all(cluster, lost, *pods)
            await until(lambda: cluster.drain(node)["phase"] == "drained")

    asyncio.run(run())
    assert [cluster.evictions(pod)[201] for pod in pods] == [1, 1]


def test_two_budgets_of_a_gang(cluster: Cluster) -> None:
    """The API server evicts no pod with two budgets, so such a gang waits for its deadline, and an Event says why."""
    node = cluster.node()
    pods = gang(cluster, *[node] * 2)

    async def run() -> None:
        await guarded(cluster, 0, 2, "one")
        await guarded(cluster, 0, 2, "two")
        async with cluster.controller():
            cluster.quarantine(node)
            reason = "has more than one PodDisruptionBudget (one, two)"
            await until(lambda: reason in cluster.drain(node).get("message", ""))
            cluster.say(node, {"drain": {"deadline": in_seconds(0)}})
            await stop_all(cluster, *pods)
            await until(lambda: cluster.drain(node)["phase"] == "drained")

    asyncio.run(run())
    assert asked(cluster, pods) == [{}] * 2


@pytest.mark.parametrize("failure", [500, 403, "reset"])
def test_budgets_that_cannot_be_read(cluster: Cluster, failure: int | str) -> None:
    """A gang is not evicted while it is not known whether all of it may be; it is when that is known."""
    node = cluster.node()
    pods = gang(cluster, *[node] * 2)

    async def run() -> None:
        proxy = FaultyProxy(cluster.plane, cluster.token())
        async with proxy, cluster.controller(kubeconfig=proxy.kubeconfig) as controller:
            await until(lambda: controller.fleet.ready)
            proxy.fail(failure, method="GET", path="poddisruptionbudgets", times=-1)
            cluster.quarantine(node)
            await until(lambda: controller.duty(DrainController).status.evictions["failed"])
            assert asked(cluster, pods) == [{}] * 2
            proxy.heal()
            await stop_all(cluster, *pods)
            await until(lambda: cluster.drain(node)["phase"] == "drained")

    asyncio.run(run())
    assert asked(cluster, pods) == [{201: 1}] * 2
