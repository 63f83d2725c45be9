"""Silent agents: the condition becomes Unknown, once, and only where the agent is silent."""

from __future__ import annotations

import asyncio

import pytest
from kube.proxy import FaultyProxy
from testing.controller_steps import HEALTHY, SILENT, healthy_node
from testing.managed_cluster import Cluster, until


@pytest.mark.parametrize("how", ["not ready", "gone", "node not ready"])
def test_a_silent_agent(cluster: Cluster, how: str) -> None:
    """No ready pod, no pod, or a Node that is not ready: unknown with the time in condition, label and report, by one
    write each, one Event, no taint."""
    node, pod = healthy_node(cluster)

    async def run() -> None:
        async with cluster.controller(agent_silent_after="300ms") as controller:
            await until(lambda: controller.fleet.ready and node not in controller.fleet.silent_nodes)
            match how:
                case "not ready":
                    cluster.unready(pod)
                case "gone":
                    cluster.stop(pod)
                case _:
                    cluster.set_condition(node, "Ready", "Unknown")
            await until(lambda: cluster.health(node) == SILENT)
            await until(lambda: "AgentSilent" in cluster.reasons(node, "default"))
            other, _ = healthy_node(cluster)
            cluster.set_condition(other, "Ready", "False")  # its turn comes after many looks at the first
            await until(lambda: cluster.health(other) == SILENT)

    asyncio.run(run())
    found = cluster.plane.request("GET", f"/api/v1/nodes/{node}")
    (condition,) = [c for c in found["status"]["conditions"] if c["type"] == "GPUHealthy"]
    assert "no agent has been ready on this node since 20" in condition["message"]
    assert not [taint for taint in found["spec"].get("taints", []) if "gpuhealth" in taint["key"]]
    assert cluster.writes(f"/api/v1/nodes/{node}/status") == 1
    assert cluster.writes(f"/api/v1/nodes/{node}") == 1
    assert found["metadata"]["labels"]["gpuhealth.io/state"] == "unknown"
    assert cluster.report(node)["silentSince"] in condition["message"]
    assert cluster.reasons(node, "default").count("AgentSilent") == 1


def test_an_agent_that_comes_back(cluster: Cluster) -> None:
    """The report's mark ends when the agent is ready again; a node that is out of service keeps its label."""
    (node, pod), (out, others_pod) = healthy_node(cluster), healthy_node(cluster)
    cluster.patch(f"/api/v1/nodes/{out}", {"metadata": {"labels": {"gpuhealth.io/state": "quarantined"}}})

    async def run() -> None:
        async with cluster.controller(agent_silent_after="300ms"):
            for each in (pod, others_pod):
                cluster.unready(each)
            await until(lambda: cluster.health(node) == cluster.health(out) == SILENT)
            assert (cluster.state(node), cluster.state(out)) == ("unknown", "quarantined")
            assert "silentSince" in cluster.report(node)
            cluster.patch(f"{pod}/status", {"status": {"conditions": [{"type": "Ready", "status": "True"}]}})
            await until(lambda: "silentSince" not in cluster.report(node))
            assert "silentSince" in cluster.report(out)

    asyncio.run(run())


def test_a_node_that_never_had_an_agent(cluster: Cluster) -> None:
    """A node whose labels show GPUs, and to which no agent ever came, says so as well; one of another vendor's not."""
    node = cluster.node(state="", labels={"cloud.google.com/gke-accelerator": "nvidia-l4"})
    other = cluster.node(state="", labels={"karpenter.k8s.aws/instance-gpu-manufacturer": "amd"})
    for each in (node, other):
        cluster.plane.request("DELETE", f"/apis/gpuhealth.io/v1alpha1/gpuhealthreports/{each}")

    async def run() -> None:
        async with cluster.controller(agent_silent_after="300ms"):
            await until(lambda: cluster.health(node) == SILENT)

    asyncio.run(run())
    assert cluster.health(other) == ("", "")


def test_a_node_that_cannot_be_marked(cluster: Cluster) -> None:
    """A silent node that the API server refuses to mark does not delay the others, and is marked later."""
    (first, pod), (second, other) = healthy_node(cluster), healthy_node(cluster)

    async def run() -> None:
        proxy = FaultyProxy(cluster.plane, cluster.token())
        async with proxy, cluster.controller(agent_silent_after="300ms", kubeconfig=proxy.kubeconfig) as controller:
            await until(lambda: controller.fleet.ready)
            proxy.fail(422, method="PATCH", path=f"/nodes/{first}/status", times=-1)
            cluster.unready(pod)
            await until(lambda: first in controller.fleet.silent_nodes)
            cluster.unready(other)
            await until(lambda: cluster.health(second) == SILENT)
            assert cluster.health(first) == HEALTHY
            proxy.heal()
            await until(lambda: cluster.health(first) == SILENT)

    asyncio.run(run())


def test_an_agent_that_writes_again_is_not_overwritten(cluster: Cluster) -> None:
    """What the agent writes afterwards is kept, ready or not; another controller does not write again; a second
    silence is marked again."""
    node, pod = healthy_node(cluster)

    async def another_is_marked() -> None:
        other, others_pod = healthy_node(cluster)
        cluster.unready(others_pod)
        await until(lambda: cluster.health(other) == SILENT)

    async def run() -> None:
        async with cluster.controller(agent_silent_after="300ms") as controller:
            cluster.unready(pod)
            await until(lambda: cluster.health(node) == SILENT)
            cluster.set_condition(node, "GPUHealthy", "False", "Xid79")
            await another_is_marked()
            assert cluster.health(node) == ("False", "Xid79")
            cluster.patch(f"{pod}/status", {"status": {"conditions": [{"type": "Ready", "status": "True"}]}})
            await until(lambda: node not in controller.fleet.silent_nodes)
            cluster.unready(pod)
            await until(lambda: cluster.health(node) == SILENT)
        async with cluster.controller(agent_silent_after="300ms"):
            await another_is_marked()

    asyncio.run(run())
    assert cluster.writes(f"/api/v1/nodes/{node}/status") == 2


def test_what_is_not_silence(cluster: Cluster) -> None:
    """Nothing is written for an update of the agent that is shorter than the timeout, for a node that never had an
    agent, or where only an outdated watch shows silence."""
    node, pod = healthy_node(cluster)
    ready, _ = healthy_node(cluster)
    bare = cluster.node(labels={"gpuhealth.io/state": ""})
    cluster.plane.request("DELETE", f"/apis/gpuhealth.io/v1alpha1/gpuhealthreports/{bare}")

    async def run() -> None:
        async with cluster.controller(agent_silent_after="30s") as controller:
            await until(lambda: controller.fleet.ready)
            assert bare not in controller.fleet.silent_nodes
            cluster.stop(pod)
            await until(lambda: node in controller.fleet.silent_nodes)
            cluster.agent(node)
            await until(lambda: node not in controller.fleet.silent_nodes)
            controller.fleet.silent_nodes[ready] = 0.0  # as it would be when the watch of the pods hangs
            other, others_pod = healthy_node(cluster)
            cluster.unready(others_pod)
            await until(lambda: other in controller.fleet.silent_nodes)
            controller.fleet.silent_nodes[other] = 1.0
            cluster.node()  # something changes: a reason to look
            await until(lambda: cluster.health(other) == SILENT)

    asyncio.run(run())
    assert cluster.health(bare) == ("", "")
    assert cluster.health(node) == cluster.health(ready) == HEALTHY


def test_an_override_is_obeyed(cluster: Cluster) -> None:
    """A node with an override is not marked; when the override is removed, it is."""
    node, pod = healthy_node(cluster)
    cluster.patch(f"/api/v1/nodes/{node}", {"metadata": {"annotations": {"gpuhealth.io/override": "unmanaged"}}})
    other, others_pod = healthy_node(cluster)

    async def run() -> None:
        async with cluster.controller(agent_silent_after="300ms") as controller:
            cluster.unready(pod)
            await until(lambda: node in controller.fleet.silent_nodes)
            cluster.unready(others_pod)
            await until(lambda: cluster.health(other) == SILENT)
            assert cluster.health(node) == HEALTHY
            cluster.patch(f"/api/v1/nodes/{node}", {"metadata": {"annotations": {"gpuhealth.io/override": None}}})
            await until(lambda: cluster.health(node) == SILENT)

    asyncio.run(run())
