"""Drains on a real control plane: PodDisruptionBudgets and deadlines are respected, nothing is done twice."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from kube.proxy import FaultyProxy
from testing.controller_steps import in_seconds, stop_all
from testing.managed_cluster import Cluster, until

from gpuhealth.controller.duties.drain_controller import DrainController

DAEMON_SET = {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "d", "uid": "0", "controller": True}


def test_a_node_is_drained(cluster: Cluster) -> None:
    """Each pod is evicted once; label, report, metrics and Events show the progress and the end."""
    node = cluster.node()
    pods = [cluster.pod(node) for _ in range(2)]

    async def run() -> None:
        async with cluster.controller() as controller:
            await until(lambda: controller.fleet.ready)
            cluster.quarantine(node)
            await until(lambda: cluster.drain(node).get("evicted") == 2)
            await until(lambda: cluster.state(node) == "draining")
            assert (cluster.drain(node)["phase"], cluster.drain(node)["remaining"]) == ("draining", 2)
            await stop_all(cluster, *pods)
            await until(lambda: cluster.drain(node)["phase"] == "drained")
            await until(lambda: cluster.state(node) == "drained")
            await until(lambda: controller.fleet.drains_by_phase["drained"])
            assert controller.duty(DrainController).status.evictions == {"evicted": 2}
            await until(lambda: {"DrainStarted", "Drained"} <= set(cluster.reasons(node, "default")))

    asyncio.run(run())
    drain = cluster.drain(node)
    assert (drain["remaining"], drain["evicted"], drain["deleted"]) == (0, 2, 0)
    assert {"startedAt", "deadline", "endedAt"} <= drain.keys()
    assert [cluster.evictions(pod) for pod in pods] == [{201: 1}, {201: 1}]
    assert "Evicted" in cluster.reasons(pods[0].rpartition("/")[2])


def test_disruption_budget_then_deadline(cluster: Cluster) -> None:
    """A pod that cannot be evicted stays until the deadline, which a person has shortened, and is then deleted with
    its own grace period."""
    node = cluster.node()
    pod = cluster.pod(node, labels={"app": "one"})
    guard = cluster.guard({"app": "one"}, 1)

    async def run() -> None:
        await until(lambda: cluster.is_guarding(guard, 1))
        async with cluster.controller():
            cluster.quarantine(node)
            await until(lambda: cluster.evictions(pod)[429] > 1)
            assert not cluster.terminating(pod)
            drain = cluster.drain(node)
            assert (drain["phase"], drain["remaining"], drain["evicted"]) == ("draining", 1, 0)
            days = datetime.fromisoformat(drain["deadline"]) - datetime.fromisoformat(drain["startedAt"])
            assert days == timedelta(days=7)
            assert cluster.deletions(pod) == []
            cluster.say(node, {"drain": {"deadline": in_seconds(1)}})
            await stop_all(cluster, pod)
            await until(lambda: cluster.drain(node)["phase"] == "drained")

    asyncio.run(run())
    drain = cluster.drain(node)
    assert (drain["evicted"], drain["deleted"]) == (0, 1)
    (options,) = cluster.deletions(pod)
    assert "gracePeriodSeconds" not in options
    assert cluster.evictions(pod)[201] == 0
    assert cluster.reasons(pod.rpartition("/")[2]).count("EvictionRefused") == 1


def test_disruption_budget_that_changes(cluster: Cluster) -> None:
    """A refused eviction is retried, and done once when the PodDisruptionBudget allows it."""
    node = cluster.node()
    pod = cluster.pod(node, labels={"app": "one"})
    guard = cluster.guard({"app": "one"}, 1)

    async def run() -> None:
        await until(lambda: cluster.is_guarding(guard, 1))
        async with cluster.controller():
            cluster.quarantine(node)
            await until(lambda: cluster.evictions(pod)[429])
            cluster.plane.request("DELETE", guard)
            await stop_all(cluster, pod)
            await until(lambda: cluster.drain(node)["phase"] == "drained")

    asyncio.run(run())
    assert cluster.evictions(pod)[201] == 1
    assert cluster.deletions(pod) == []


def test_controller_lost_during_a_drain(cluster: Cluster) -> None:
    """The next controller finishes the drain: same deadline, continued counts, no pod evicted twice."""
    node = cluster.node()
    gone, slow = cluster.pod(node), cluster.pod(node)
    guarded = cluster.pod(node, labels={"app": "one"})
    guard = cluster.guard({"app": "one"}, 1)

    async def run() -> None:
        await until(lambda: cluster.is_guarding(guard, 1))
        async with cluster.controller():
            cluster.quarantine(node)
            await stop_all(cluster, gone)
            await until(lambda: cluster.drain(node).get("evicted") == 2 and cluster.evictions(guarded)[429])
            await until(lambda: cluster.drain(node)["remaining"] == 2)
        before = cluster.drain(node)
        refused = cluster.evictions(guarded)[429]
        async with cluster.controller():
            await until(lambda: cluster.evictions(guarded)[429] > refused)
            assert cluster.drain(node)["deadline"] == before["deadline"]
            cluster.plane.request("DELETE", guard)
            await stop_all(cluster, slow, guarded)
            await until(lambda: cluster.drain(node)["phase"] == "drained")

    asyncio.run(run())
    assert cluster.drain(node)["evicted"] == 3
    assert [cluster.evictions(pod)[201] for pod in (gone, slow, guarded)] == [1, 1, 1]


def test_exempt_pods(cluster: Cluster) -> None:
    """Pods of DaemonSets, mirror pods, finished pods, and pods that they or their namespaces exempt, stay."""
    node = cluster.node()
    kept = Cluster(cluster.plane)
    cluster.patch(f"/api/v1/namespaces/{kept.namespace}", {"metadata": {"labels": {"gpuhealth.io/drain": "false"}}})
    refusal = {"gpuhealth.io/drain": "false"}
    staying = [
        cluster.pod(node, ownerReferences=[DAEMON_SET]),
        cluster.pod(node, annotations={"kubernetes.io/config.mirror": "m"}),
        cluster.pod(node, phase="Succeeded"),
        cluster.pod(node, labels=refusal),
        cluster.pod(node, annotations=refusal),
        kept.pod(node),
    ]
    going = cluster.pod(node)

    async def run() -> None:
        async with cluster.controller():
            cluster.quarantine(node)
            await stop_all(cluster, going)
            await until(lambda: cluster.drain(node)["phase"] == "drained")

    asyncio.run(run())
    assert [cluster.evictions(pod) for pod in staying] == [{}] * len(staying)
    assert cluster.drain(node)["message"].startswith("exempt by label, annotation or owner: 3 pods, such as ")
    kept.remove()


def test_pods_of_exempt_owners(cluster: Cluster) -> None:
    """Pods whose controller is of an exempt kind stay, such as those of Slurm; pods of other kinds and groups go."""
    node = cluster.node()
    node_set = {**DAEMON_SET, "apiVersion": "slinky.slurm.net/v1beta1", "kind": "NodeSet"}
    staying = cluster.pod(node, ownerReferences=[node_set])
    going = [
        cluster.pod(node, ownerReferences=[{**node_set, "apiVersion": "example.com/v1"}]),
        cluster.pod(node, ownerReferences=[{**node_set, "kind": "LoginSet"}]),
        cluster.pod(node, ownerReferences=[{**node_set, "controller": False}]),
    ]

    async def run() -> None:
        async with cluster.controller(drain_exempt_owners=["NodeSet.slinky.slurm.net"]):
            cluster.quarantine(node)
            await stop_all(cluster, *going)
            await until(lambda: cluster.drain(node)["phase"] == "drained")

    asyncio.run(run())
    assert cluster.evictions(staying) == {}
    assert cluster.drain(node)["message"].startswith("exempt by label, annotation or owner: ")


@pytest.mark.parametrize("ending", ["recovery", "override", "no drain any more"])
def test_a_drain_that_is_no_longer_wanted_stops(cluster: Cluster, ending: str) -> None:
    """A node that recovered or was overridden loses no further pod, not even at the deadline."""
    node = cluster.node()
    pod = cluster.pod(node, labels={"app": "one"})
    guard = cluster.guard({"app": "one"}, 1)

    async def run() -> None:
        await until(lambda: cluster.is_guarding(guard, 1))
        async with cluster.controller():
            cluster.quarantine(node)
            await until(lambda: cluster.evictions(pod)[429])
            if ending == "recovery":
                cluster.recover(node)
            elif ending == "override":
                note = {"gpuhealth.io/override": "unmanaged"}
                cluster.patch(f"/api/v1/nodes/{node}", {"metadata": {"annotations": note}})
            else:
                cluster.say(node, {"quarantine": {"drain": False}})
            await until(lambda: cluster.drain(node)["phase"] == "cancelled")
            cluster.say(node, {"drain": {"deadline": in_seconds(-60)}})
            cluster.plane.request("DELETE", guard)
            seen = cluster.evictions(pod)
            other = cluster.node()  # when this one is drained, there was time enough for another try
            cluster.quarantine(other)
            await until(lambda: cluster.drain(other).get("phase") == "drained")
            assert cluster.evictions(pod) == seen

    asyncio.run(run())
    assert not cluster.terminating(pod)
    assert cluster.state(node) == ("healthy" if ending == "recovery" else "quarantined")
    assert cluster.deletions(pod) == []


def test_recovery_while_there_is_no_controller(cluster: Cluster) -> None:
    """A controller that finds a drain whose node has recovered meanwhile ends it, even past its deadline."""
    node = cluster.node()
    pod = cluster.pod(node, labels={"app": "one"})
    guard = cluster.guard({"app": "one"}, 1)

    async def run() -> None:
        await until(lambda: cluster.is_guarding(guard, 1))
        async with cluster.controller():
            cluster.quarantine(node)
            await until(lambda: cluster.evictions(pod)[429])
        seen = cluster.evictions(pod)
        cluster.recover(node)
        cluster.say(node, {"drain": {"deadline": in_seconds(-60)}})
        cluster.plane.request("DELETE", guard)
        async with cluster.controller():
            await until(lambda: cluster.drain(node)["phase"] == "cancelled")
        assert cluster.evictions(pod) == seen

    asyncio.run(run())
    assert cluster.deletions(pod) == []
    assert cluster.drain(node)["remaining"] == 1


def test_a_pod_that_does_not_stop(cluster: Cluster) -> None:
    """A pod that is still terminating after its grace period (a kubelet that is down, a finalizer) is named in the
    report."""
    node = cluster.node()
    pod = cluster.pod(node)
    cluster.plane.request("DELETE", f"{pod}?gracePeriodSeconds=1")

    async def run() -> None:
        async with cluster.controller():
            cluster.quarantine(node)
            name = pod.rpartition("/")[2]
            message = f"still terminating after the grace period: pod {cluster.namespace}/{name}"
            await until(lambda: cluster.drain(node).get("message") == message)
            assert cluster.drain(node)["phase"] == "draining"
            await stop_all(cluster, pod)
            await until(lambda: cluster.drain(node)["phase"] == "drained")

    asyncio.run(run())
    assert cluster.drain(node)["message"] == ""
    assert cluster.evictions(pod) == {}


def test_nothing_is_drained_in_mode_observe(cluster: Cluster) -> None:
    """In mode observe no pod is evicted, not on nodes that were out before nor past a deadline; back in mode taint the
    drain starts again with a new deadline."""
    node, other = cluster.node(), cluster.node()
    pod = cluster.pod(node, labels={"app": "one"})
    guard = cluster.guard({"app": "one"}, 1)

    async def run() -> None:
        await until(lambda: cluster.is_guarding(guard, 1))
        async with cluster.controller():
            cluster.quarantine(node)
            await until(lambda: cluster.evictions(pod)[429])
        seen = cluster.evictions(pod)
        cluster.say(node, {"drain": {"deadline": in_seconds(-60)}})
        async with cluster.controller(mode="observe") as controller:
            await until(lambda: cluster.drain(node)["phase"] == "cancelled")
            cluster.quarantine(other)
            await until(lambda: controller.fleet.reports.items[other].quarantine.asks_for_drain)
            assert not controller.fleet.drains_by_phase
        assert cluster.drain(other) == {}
        assert cluster.evictions(pod) == seen
        async with cluster.controller():
            await until(lambda: cluster.drain(node)["phase"] == "draining")
            assert datetime.fromisoformat(cluster.drain(node)["deadline"]) > datetime.now(UTC) + timedelta(days=6)
            await until(lambda: cluster.evictions(pod)[429] > seen[429])

    asyncio.run(run())
    assert cluster.deletions(pod) == []


def test_the_next_quarantine_has_its_own_drain(cluster: Cluster) -> None:
    """A finished drain is not repeated after a restart; the node's next quarantine starts another."""
    node = cluster.node()

    async def run() -> None:
        async with cluster.controller():
            cluster.quarantine(node)
            await until(lambda: cluster.drain(node).get("phase") == "drained")
        first = cluster.drain(node)
        async with cluster.controller() as controller:
            await until(lambda: controller.fleet.drains_by_phase["drained"])
            cluster.recover(node)
            await until(lambda: cluster.drain(node)["phase"] == "ended")
            assert cluster.drain(node) == {**first, "phase": "ended"}
            pod = cluster.pod(node)
            cluster.quarantine(node, since="2026-03-02T12:00:00Z")
            await stop_all(cluster, pod)
            await until(lambda: cluster.drain(node)["phase"] == "drained")

    asyncio.run(run())
    assert cluster.drain(node)["quarantineSince"] == "2026-03-02T12:00:00Z"
    assert cluster.drain(node)["evicted"] == 1


def test_without_our_taint_nothing_is_drained(cluster: Cluster) -> None:
    """A node whose taint a person has removed gets new pods, so its drain does not start."""
    node, other = cluster.node(), cluster.node()
    pod = cluster.pod(node)
    cluster.quarantine(node)
    cluster.patch(f"/api/v1/nodes/{node}", {"spec": {"taints": None}})

    async def run() -> None:
        async with cluster.controller():
            cluster.quarantine(other)
            await until(lambda: cluster.drain(other).get("phase") == "drained")

    asyncio.run(run())
    assert cluster.drain(node) == {}
    assert cluster.evictions(pod) == {}


def test_a_taint_that_is_put_back_moves_no_deadline(cluster: Cluster) -> None:
    """Where another program removed the taint for a while, the drain goes on with the deadline that it had."""
    node = cluster.node()
    pod = cluster.pod(node)
    cluster.quarantine(node)

    async def run() -> None:
        async with cluster.controller():
            await until(lambda: cluster.evictions(pod)[201] == 1)
            deadline = in_seconds(5_000)
            cluster.say(node, {"drain": {"deadline": deadline}})
            cluster.say(node, {"quarantine": {"state": "blocked", "limit": "marks_removed", "drain": False}})
            cluster.patch(f"/api/v1/nodes/{node}", {"spec": {"taints": None}})
            await until(lambda: cluster.drain(node)["phase"] == "cancelled")
            cluster.quarantine(node)
            await until(lambda: cluster.drain(node)["phase"] == "draining")
            assert cluster.drain(node)["deadline"] == deadline

    asyncio.run(run())


def test_pods_that_start_on_a_drained_node(cluster: Cluster) -> None:
    """A pod that tolerates the taint and starts on a drained node is evicted as well, also by the next controller, with
    a new deadline; after the quarantine it may stay."""
    node = cluster.node()

    async def run() -> None:
        async with cluster.controller():
            cluster.quarantine(node)
            await until(lambda: cluster.drain(node).get("phase") == "drained")
            late = cluster.pod(node)
            await stop_all(cluster, late)
            await until(lambda: cluster.drain(node).get("evicted") == 1 and cluster.drain(node)["phase"] == "drained")
        later = cluster.pod(node)
        long_ago = {"startedAt": in_seconds(-700_000), "deadline": in_seconds(-60)}
        cluster.say(node, {"drain": long_ago})
        async with cluster.controller():
            await until(lambda: cluster.evictions(later)[201] == 1)
            assert cluster.drain(node)["phase"] == "draining"
            assert "endedAt" not in cluster.drain(node)
            assert datetime.fromisoformat(cluster.drain(node)["deadline"]) > datetime.now(UTC) + timedelta(days=6)
            await stop_all(cluster, later)
            await until(lambda: cluster.drain(node)["phase"] == "drained")
            await until(lambda: cluster.state(node) == "drained")
            await until(lambda: "DrainResumed" in cluster.reasons(node, "default"))
            cluster.recover(node)
            await until(lambda: cluster.drain(node)["phase"] == "ended")
            welcome = cluster.pod(node)
            other = cluster.node()
            cluster.quarantine(other)
            await until(lambda: cluster.drain(other).get("phase") == "drained")
            assert cluster.evictions(welcome) == {}
        assert [cluster.evictions(pod) for pod in (late, later)] == [{201: 1}, {201: 1}]

    asyncio.run(run())
    assert (cluster.drain(node)["evicted"], cluster.drain(node)["deleted"]) == (2, 0)


def test_a_pod_that_is_recreated_again_and_again(cluster: Cluster) -> None:
    """A pod that is recreated on the node at once is not evicted in a loop: after each drain there is a rest before the
    next one."""
    node, other = cluster.node(), cluster.node()

    async def run() -> None:
        async with cluster.controller(drain_retry="1h"):
            cluster.quarantine(node)
            await until(lambda: cluster.drain(node).get("phase") == "drained")
            again = cluster.pod(node)
            cluster.quarantine(other)
            await until(lambda: cluster.drain(other).get("phase") == "drained")
            assert cluster.evictions(again) == {}
        async with cluster.controller():
            for _ in range(3):
                await stop_all(cluster, again)
                await until(lambda: cluster.drain(node)["phase"] == "drained")
                again = cluster.pod(node)
            await stop_all(cluster, again)
            await until(lambda: cluster.drain(node)["phase"] == "drained")

    asyncio.run(run())
    assert cluster.drain(node)["evicted"] == 4


def test_one_rate_limit_for_the_fleet(cluster: Cluster) -> None:
    """With any number of drains, evictions keep to the rate of the fleet: the burst, then one after the other."""
    nodes = [cluster.node() for _ in range(4)]
    pods = [cluster.pod(node) for node in nodes for _ in range(2)]

    def evicted() -> int:
        return sum(cluster.evictions(pod)[201] for pod in pods)

    async def run() -> None:
        async with cluster.controller(evictions_per_second=0.001, eviction_burst=3):
            for node in nodes:
                cluster.quarantine(node)
            await until(lambda: evicted() == 3)
            await until(lambda: all(cluster.drain(node).get("phase") == "draining" for node in nodes))
            other = cluster.node()  # the drain of a node without pods needs no turn
            cluster.quarantine(other)
            await until(lambda: cluster.drain(other).get("phase") == "drained")
            assert evicted() == 3
        async with cluster.controller():
            await stop_all(cluster, *pods)
            await until(lambda: all(cluster.drain(node)["phase"] == "drained" for node in nodes))

    asyncio.run(run())
    assert [cluster.evictions(pod)[201] for pod in pods] == [1] * len(pods)


def test_an_api_server_that_fails_meanwhile(cluster: Cluster) -> None:
    """With watches that break or are too old (410), lost answers, refused and failed requests, the drain still ends,
    and each pod is evicted once."""
    node = cluster.node()
    pods = [cluster.pod(node) for _ in range(3)]

    async def run() -> None:
        proxy = FaultyProxy(cluster.plane, cluster.token())
        async with proxy, cluster.controller(drain_retry="1s", kubeconfig=proxy.kubeconfig) as controller:
            await until(lambda: controller.fleet.ready)
            proxy.fail("lost", method="POST", path=f"{pods[0]}/eviction")
            proxy.fail(500, method="POST", path=f"{pods[1]}/eviction")
            proxy.fail("reset", method="POST", path=f"{pods[2]}/eviction")
            proxy.fail(503, method="PATCH", path="gpuhealthreports", times=2)
            proxy.fail("reset", method="PATCH", path=f"/nodes/{node}")
            cluster.quarantine(node)
            await until(lambda: cluster.terminating(pods[0]))
            proxy.fail(410, path="watch=true", times=6)
            proxy.break_streams()
            await stop_all(cluster, *pods)
            proxy.fail(410, path="watch=true", times=6)
            proxy.break_streams()
            await until(lambda: cluster.drain(node)["phase"] == "drained")
            await until(lambda: cluster.state(node) == "drained")

    asyncio.run(run())
    assert [cluster.evictions(pod)[201] for pod in pods] == [1, 1, 1]
    assert [cluster.deletions(pod) for pod in pods] == [[], [], []]
