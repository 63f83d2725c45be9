"""The controller's permissions: each of them is used."""

from __future__ import annotations

import asyncio

from kube import Document
from testing.controller_steps import SILENT, ends, gone, in_seconds, runs, say_tested, stop_all
from testing.managed_cluster import SINCE, Cluster, until
from testing.rights import Right, granted, used

LEASES = "/apis/coordination.k8s.io/v1/namespaces/gpuhealth/leases"


def names(listed: Document) -> list[str]:
    """The names of the objects of a list."""
    return [item["metadata"]["name"] for item in listed["items"]]


def test_every_right_is_used(cluster: Cluster) -> None:
    """No rule grants a verb without need: a drain to its deadline, a gang's drain, a burn-in, a silent agent and the
    slot of a deleted node use all of them, as the audit log shows."""
    idle = cluster.node(gpus=8)
    sick, silent, deleted = (cluster.node() for _ in range(3))
    cluster.agent(silent)
    going = [cluster.pod(sick, labels={"scheduling.x-k8s.io/pod-group": "gang"}) for _ in range(2)]
    staying = cluster.pod(sick, labels={"app": "one"})
    guard = cluster.guard({"app": "one"}, 1)
    cluster.budget("100%")
    labels = {"gpuhealth.io/budget": cluster.name, "gpuhealth.io/slot-set": "unavailable"}
    place: Document = {"metadata": {"name": f"{cluster.name}.0", "labels": labels}, "spec": {"holderIdentity": deleted}}
    place["spec"] |= {"acquireTime": f"{SINCE[:-1]}.000000Z", "renewTime": f"{SINCE[:-1]}.000000Z"}
    cluster.plane.request("POST", LEASES, place)
    options = {
        "election": {"enabled": True, "lease": cluster.name},
        "periodic": {"enabled": True, "max_per_pool": 1},
        "agent_silent_after": "300ms",
    }

    def unused() -> set[Right]:
        return granted("gpuhealth-controller") - used(cluster.plane, "gpuhealth-controller")

    async def run() -> None:
        await until(lambda: cluster.is_guarding(guard, 1))
        async with cluster.controller(**options):
            await until(lambda: runs(cluster, idle))
            say_tested(cluster, idle)
            ends(cluster, idle, 0)
            await until(lambda: gone(cluster, idle))
            cluster.set_condition(silent, "GPUHealthy", "True", "Healthy")
            cluster.set_condition(silent, "Ready", "False")
            await until(lambda: cluster.health(silent) == SILENT)
            cluster.plane.request("DELETE", f"/api/v1/nodes/{deleted}")
            cluster.quarantine(sick)
            await stop_all(cluster, *going)
            await until(lambda: cluster.evictions(staying)[429])
            cluster.say(sick, {"drain": {"deadline": in_seconds(0)}})
            await stop_all(cluster, staying)
            await until(lambda: place["metadata"]["name"] not in names(cluster.plane.request("GET", LEASES)))
        await until(lambda: not unused())  # a watch is on record when it has ended

    try:
        asyncio.run(run())
    except TimeoutError:
        assert unused() == set()
        raise
