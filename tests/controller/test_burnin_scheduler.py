"""Burn-ins of nodes in service with a real kube-scheduler; the tests simulate the kubelet."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from kube import Document
from testing.controller_steps import PODS, burnin, ends, gone, runs, say_tested
from testing.managed_cluster import Cluster, until

from gpuhealth.api.report import BurninReason
from gpuhealth.controller.burnin_plan import BurninCandidate
from gpuhealth.controller.duties.burnin_scheduler import BurninScheduler, burnin_pod, uses_gpus

ON = {"periodic": {"enabled": True, "max_per_pool": 1}}
LONG_AGO = "2026-01-01T00:00:00Z"


def last_in_turn(cluster: Cluster, pool: str = "") -> str:
    """A new node that is due after all nodes that were never tested: once its burn-in runs, those were skipped."""
    node = cluster.node(gpus=8, labels={"gpuhealth.io/pool": pool} if pool else {}, agent=False)
    say_tested(cluster, node, LONG_AGO)
    cluster.agent(node)  # from now on it is a candidate
    return node


def is_bound(cluster: Cluster, path: str) -> bool:
    """Whether a pod has been scheduled."""
    return bool(cluster.plane.request("GET", path)["spec"].get("nodeName"))


@pytest.mark.parametrize(
    ("exit_code", "reason"),
    [(0, "BurninPassed"), (2, "BurninFailed"), (3, "BurninStopped"), (137, "BurninError")],
)
def test_an_idle_node_is_tested(cluster: Cluster, exit_code: int, reason: str) -> None:
    """It has all GPUs, the lowest priority and the label `testing`; afterwards Pod and label are gone, Events stay."""
    node = cluster.node(gpus=8)

    async def run() -> None:
        async with cluster.controller(**ON) as controller:
            await until(lambda: runs(cluster, node))
            await until(lambda: cluster.state(node) == "testing")
            pod = burnin(cluster, node)
            assert pod is not None
            (container,) = pod["spec"]["containers"]
            assert container["resources"]["limits"]["nvidia.com/gpu"] == "8"
            assert container["args"][-4:] == ["--level", "standard", "--reason", "periodic"]
            assert pod["spec"]["priority"] == -1_000_000_000
            assert pod["spec"]["preemptionPolicy"] == "Never"
            say_tested(cluster, node)
            ends(cluster, node, exit_code)
            await until(lambda: gone(cluster, node))
            await until(lambda: cluster.state(node) == "healthy")
            await until(lambda: reason in cluster.reasons(node, "default"))
            assert sum(controller.duty(BurninScheduler).status.outcomes.values()) == 1

    asyncio.run(run())
    path = f"/api/v1/namespaces/default/events?fieldSelector=involvedObject.name={node}"
    said = {event["reason"]: event["message"] for event in cluster.plane.request("GET", path)["items"]}
    assert "BurninStarted" in said
    assert ("OOMKilled" in said[reason]) == (exit_code == 137)


def test_real_work_preempts_a_burn_in(cluster: Cluster) -> None:
    """A pod that requests GPUs preempts the burn-in and runs, and the node is skipped for a while."""
    node = cluster.node(gpus=8)

    async def run() -> None:
        async with cluster.controller(**ON) as controller:
            await until(lambda: runs(cluster, node))
            work = cluster.gpu_work(4)
            await until(lambda: gone(cluster, node))
            await until(lambda: is_bound(cluster, work))
            await until(lambda: controller.duty(BurninScheduler).status.outcomes["preempted"] == 1)
            await until(lambda: cluster.state(node) == "healthy")
            other = cluster.node(gpus=8)
            await until(lambda: runs(cluster, other))  # a later round has looked at both
            assert burnin(cluster, node) is None

    asyncio.run(run())


def test_a_node_with_gpu_work_is_not_tested(cluster: Cluster) -> None:
    """A busy node is not tested, nor one that becomes busy after the check: no GPU is allocated twice."""
    busy, late = cluster.node(gpus=8), cluster.node(gpus=8)
    cluster.gpu_work(1, busy)
    idle = cluster.node(gpus=8)
    say_tested(cluster, idle, LONG_AGO)  # the others come first

    async def run() -> None:
        options = {"periodic": {"enabled": True, "max_per_pool": 3, "pending_timeout": "10s"}}
        async with cluster.controller(**options) as controller:
            looked = controller.duty(BurninScheduler)._is_busy

            async def overtaken(node: str) -> bool:
                found = await looked(node)
                if node == late:
                    await asyncio.to_thread(cluster.gpu_work, 8, late)
                return found

            controller.duty(BurninScheduler)._is_busy = overtaken  # type: ignore[method-assign]
            await until(lambda: runs(cluster, idle))
            await until(lambda: controller.duty(BurninScheduler).status.outcomes["unschedulable"])
            await until(lambda: gone(cluster, late))
            await until(lambda: cluster.state(late) == "healthy")
            assert burnin(cluster, busy) is None

    asyncio.run(run())
    created = [e["requestObject"] for e in cluster.plane.audit() if e["requestURI"] == PODS and e["verb"] == "create"]
    assert f"burnin-{busy}" not in [pod["metadata"]["name"] for pod in created if pod]


def test_no_more_at_once_than_pool_and_budget_allow(cluster: Cluster) -> None:
    """The pool allows three, but the budget has one free slot: one test; with the budget raised, three."""
    nodes = [cluster.node(gpus=8) for _ in range(4)]
    path = cluster.budget(1)

    def running() -> int:
        return sum(runs(cluster, node) for node in nodes)

    async def run() -> None:
        async with cluster.controller(periodic={"enabled": True, "max_per_pool": 3}):
            await until(lambda: running() == 1)
            later = last_in_turn(cluster, pool="another")
            await until(lambda: runs(cluster, later))
            assert await asyncio.to_thread(running) == 1
            cluster.patch(path, {"spec": {"maxUnavailable": 4}})
            await until(lambda: running() == 3)

    asyncio.run(run())


def test_what_is_not_in_service_is_not_tested(cluster: Cluster) -> None:
    """Cordoned, quarantined, blocked, in preflight, overridden, silent or recently tested nodes are not tested."""
    spared = {name: cluster.node(gpus=8) for name in ("cordoned", "out", "blocked", "preflight", "override", "lately")}
    cluster.patch(f"/api/v1/nodes/{spared['cordoned']}", {"spec": {"unschedulable": True}})
    cluster.quarantine(spared["out"], drain=False)
    cluster.say(spared["blocked"], {"quarantine": {"state": "blocked", "code": "xid.79", "budget": "b"}})
    taint = {"key": "gpuhealth.io/preflight", "value": "pending", "effect": "NoSchedule"}
    cluster.patch(f"/api/v1/nodes/{spared['preflight']}", {"spec": {"taints": [taint]}})
    note = {"gpuhealth.io/override": "unmanaged"}
    cluster.patch(f"/api/v1/nodes/{spared['override']}", {"metadata": {"annotations": note}})
    say_tested(cluster, spared["lately"])
    spared["silent"] = cluster.node(gpus=8, agent=False)
    plain = cluster.node(gpus=8)

    async def run() -> None:
        async with cluster.controller(periodic={"enabled": True, "max_per_pool": 9}):
            await until(lambda: runs(cluster, plain))
            later = last_in_turn(cluster)
            await until(lambda: runs(cluster, later))
            assert {name for name, node in spared.items() if burnin(cluster, node)} == set()

    asyncio.run(run())


def test_a_node_that_waits_to_return_is_tested_though_tainted(cluster: Cluster) -> None:
    """Also if periodic tests are off and the budget is full; the controller does not change its label."""
    node = cluster.node(gpus=8)
    cluster.budget(0)
    cluster.quarantine(node, drain=False)
    cluster.say(node, {"quarantine": {"state": "awaiting_test", "code": "xid.79"}})
    cluster.patch(f"/api/v1/nodes/{node}", {"spec": {"unschedulable": True}})

    async def run() -> None:
        async with cluster.controller():
            await until(lambda: runs(cluster, node))
            pod = burnin(cluster, node)
            assert pod is not None
            assert pod["spec"]["containers"][0]["args"][-1] == "return"
            assert cluster.state(node) == "quarantined"
            cluster.recover(node)  # the agent has read that it passed
            ends(cluster, node, 0)
            await until(lambda: gone(cluster, node))

    asyncio.run(run())


def test_another_controller_takes_over(cluster: Cluster) -> None:
    """After a kill, the next controller starts no second test, and clears a label whose test is gone."""
    first, second = cluster.node(gpus=8), cluster.node(gpus=8)

    async def run() -> None:
        async with cluster.controller(periodic={"enabled": True, "max_per_pool": 2}):
            await until(lambda: runs(cluster, first) and runs(cluster, second))
            await until(lambda: [cluster.state(node) for node in (first, second)] == ["testing", "testing"])
        pod = burnin(cluster, first)
        assert pod is not None
        cluster.stop(f"{PODS}/burnin-{second}")
        for node in (first, second):
            say_tested(cluster, node)
        async with cluster.controller(periodic={"enabled": True, "max_per_pool": 2}):
            await until(lambda: cluster.state(second) == "healthy")
            still = burnin(cluster, first)
            assert still is not None
            assert still["metadata"]["uid"] == pod["metadata"]["uid"]
            assert cluster.state(first) == "testing"
            ends(cluster, first, 0)
            await until(lambda: gone(cluster, first))

    asyncio.run(run())


def _pod(**spec: Any) -> Document:
    return {"spec": {"containers": [{"name": "c", **spec.pop("container", {})}], **spec}, "status": {}}


def test_what_uses_gpus() -> None:
    """Whole GPUs, MIG devices, requests of init containers and claims count; finished pods and others do not."""
    assert uses_gpus(_pod(container={"resources": {"limits": {"nvidia.com/gpu": "1"}}}))
    assert uses_gpus(_pod(container={"resources": {"requests": {"nvidia.com/mig-1g.10gb": "1"}}}))
    limits = {"resources": {"limits": {"nvidia.com/gpu": "1"}}}
    assert uses_gpus(_pod(initContainers=[{"name": "i", **limits}]))
    assert uses_gpus(_pod(resourceClaims=[{"name": "gpu"}]))
    assert not uses_gpus(_pod(container={"resources": {"limits": {"cpu": "1"}}}))
    assert not uses_gpus(_pod())
    assert not uses_gpus({**_pod(container=limits), "status": {"phase": "Succeeded"}})


def test_the_template_is_kept() -> None:
    """Labels, arguments, limits, tolerations and other containers of the template are kept."""
    template = {
        "metadata": {"labels": {"team": "hw"}},
        "spec": {
            "containers": [
                {"name": "burnin", "args": ["burnin"], "resources": {"limits": {"memory": "8Gi"}}},
                {"name": "side"},
            ],
            "tolerations": [{"key": "own", "operator": "Exists"}],
        },
    }
    pod = burnin_pod(template, BurninCandidate(node="n" * 250, pool="p", reason=BurninReason.PERIODIC), 4, "quick")
    assert pod["metadata"]["labels"]["team"] == "hw"
    assert len(pod["metadata"]["name"]) <= 253
    assert pod["spec"]["containers"][0]["resources"]["limits"] == {"memory": "8Gi", "nvidia.com/gpu": "4"}
    assert pod["spec"]["containers"][1] == {"name": "side"}
    assert pod["spec"]["tolerations"] == [{"key": "own", "operator": "Exists"}]
