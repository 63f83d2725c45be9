"""The controller's own pods and those of the cluster itself: where they are scheduled, and that no drain takes them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from kube import Document, documents
from testing.controller_steps import QB, stop_all
from testing.managed_cluster import QUICK, Cluster, until
from testing.paths import BASE

from gpuhealth.api.names import GPU_NODE_LABELS, PREFLIGHT_TAINT

ROOM = {"cpu": "64", "memory": "512Gi", "pods": "110"}
CRITICAL = ("system-cluster-critical", "system-node-critical")
GPU = [{"name": "c", "image": "i", "resources": {"limits": {"nvidia.com/gpu": "1"}}}]


def deployment() -> Any:
    """The controller's Deployment, as it is applied."""
    (found,) = [d for d in documents(BASE) if d["kind"] == "Deployment"]
    return found


class Controllers:
    """The controller's Deployment in the namespace and on the nodes of a test."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        made = deployment()
        made["metadata"]["namespace"] = cluster.namespace
        spec = made["spec"]["template"]["spec"]
        spec["nodeSelector"] = {"gpuhealth.io/pool": cluster.name}
        spec["automountServiceAccountToken"] = False
        del spec["serviceAccountName"]
        self.template: Document = made["spec"]["template"]
        self._path = f"/apis/apps/v1/namespaces/{cluster.namespace}/deployments"
        self._body = made

    def create(self) -> None:
        """Create the Deployment, whose pods the controller manager then creates."""
        self._cluster.plane.request("POST", self._path, self._body)

    def pods(self) -> list[Document]:
        """The pods of the Deployment, as the API server has them now."""
        path = f"/api/v1/namespaces/{self._cluster.namespace}/pods"
        return list(
            self._cluster.plane.request("GET", f"{path}?labelSelector=app.kubernetes.io/component=controller")["items"]
        )

    def places(self) -> list[str]:
        """The nodes of its pods, sorted; empty while one of the two is not bound."""
        found = sorted(pod["spec"].get("nodeName", "") for pod in self.pods())
        return found if len(found) == 2 and all(found) else []

    def unplaced(self) -> int:
        """How many of its pods the scheduler could not place."""
        conditions = [c for pod in self.pods() for c in pod["status"].get("conditions", [])]
        return sum((c["type"], c["status"]) == ("PodScheduled", "False") for c in conditions)

    def remove(self) -> None:
        """Deletes it and its pods."""
        self._cluster.plane.request("DELETE", self._path)
        pods = f"/api/v1/namespaces/{self._cluster.namespace}/pods"
        self._cluster.plane.request("DELETE", f"{pods}?gracePeriodSeconds=0")


@pytest.fixture
def controllers(cluster: Cluster) -> Iterator[Controllers]:
    """Removed after the test."""
    made = Controllers(cluster)
    yield made
    made.remove()


def add(cluster: Cluster, **labels: str) -> str:
    """A node with room for pods, and these labels."""
    node = cluster.node(labels=labels)
    cluster.patch(f"/api/v1/nodes/{node}/status", {"status": {"capacity": ROOM, "allocatable": ROOM}})
    return node


# --- where they are scheduled -----------------------------------------------------------------------------------------


def test_rather_together_than_on_a_node_with_gpus(cluster: Cluster, controllers: Controllers) -> None:
    """Whatever label marks a node with GPUs: both replicas run on the only other node."""
    for key, values in GPU_NODE_LABELS.items():
        add(cluster, **{key: values[0] if values else "any"})
    plain = add(cluster)

    async def run() -> None:
        controllers.create()
        await until(controllers.places)

    asyncio.run(run())
    assert controllers.places() == [plain, plain]


def test_apart_where_there_is_a_choice(cluster: Cluster, controllers: Controllers) -> None:
    """On two nodes without GPUs each has one replica."""
    plain = [add(cluster) for _ in range(2)]
    for _ in range(3):
        add(cluster, **{"nvidia.com/gpu.present": "true"})

    async def run() -> None:
        controllers.create()
        await until(controllers.places)

    asyncio.run(run())
    assert controllers.places() == sorted(plain)


def test_where_all_nodes_have_gpus(cluster: Cluster, controllers: Controllers) -> None:
    """They avoid a node that is out of service, and still use it where there is no other; not a cordoned one."""
    gpu = {"nvidia.com/gpu.present": "true"}
    out, good = add(cluster, **gpu), add(cluster, **gpu)
    cluster.quarantine(out, drain=False)

    async def run() -> None:
        controllers.create()
        await until(controllers.places)
        assert good in controllers.places()
        cluster.plane.request("DELETE", f"/api/v1/nodes/{good}")
        pods = f"/api/v1/namespaces/{cluster.namespace}/pods"
        cluster.plane.request("DELETE", f"{pods}?gracePeriodSeconds=0")
        await until(lambda: controllers.places() == [out, out])
        new = {"key": PREFLIGHT_TAINT, "value": "pending", "effect": "NoSchedule"}
        cluster.patch(f"/api/v1/nodes/{out}", {"spec": {"taints": [new]}})
        cluster.plane.request("DELETE", f"{pods}?gracePeriodSeconds=0")
        await until(lambda: controllers.places() == [out, out])
        cluster.patch(f"/api/v1/nodes/{out}", {"spec": {"taints": None, "unschedulable": True}})
        cluster.plane.request("DELETE", f"{pods}?gracePeriodSeconds=0")
        await until(lambda: controllers.unplaced() == 2)

    asyncio.run(run())


def test_the_manifest_knows_every_label_of_gpus() -> None:
    """A node with any of the labels by which agents are deployed is avoided."""
    terms = deployment()["spec"]["template"]["spec"]["affinity"]["nodeAffinity"]
    heaviest = max(terms["preferredDuringSchedulingIgnoredDuringExecution"], key=lambda term: term["weight"])
    avoided = {
        each["key"]: (each["operator"], tuple(each.get("values", ())))
        for each in heaviest["preference"]["matchExpressions"]
    }
    assert avoided == {key: ("NotIn" if values else "DoesNotExist", values) for key, values in GPU_NODE_LABELS.items()}


# --- drains -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cordon", [False, True])
def test_a_cluster_of_one_node(cluster: Cluster, controllers: Controllers, cordon: bool) -> None:
    """Its only node is drained of work, whichever mark it has, and both controllers stay."""
    node = add(cluster, **{"nvidia.com/gpu.present": "true"})

    async def run() -> None:
        controllers.create()
        await until(lambda: controllers.places() == [node, node])
        work = cluster.pod(node)
        async with cluster.controller():
            cluster.quarantine(node, cordon=cordon)
            await stop_all(cluster, work)
            await until(lambda: cluster.drain(node).get("phase") == "drained")
        assert (cluster.drain(node)["evicted"], controllers.places()) == (1, [node, node])
        assert not any(pod["metadata"].get("deletionTimestamp") for pod in controllers.pods())

    asyncio.run(run())


def test_pods_of_the_cluster_stay(cluster: Cluster) -> None:
    """Pods of kube-system and of the highest priorities stay, unless they use GPUs or claim devices; and the
    controller's also where an overlay has removed their priority."""
    node = cluster.node(gpus=8, agent=False)
    metadata = deployment()["spec"]["template"]["metadata"]
    staying = [
        cluster.pod(node, "kube-system"),
        *(cluster.pod(node, spec={"priorityClassName": name}) for name in CRITICAL),
        cluster.pod(node, **metadata),
    ]
    going = [
        cluster.pod(node, "kube-system", spec={"containers": GPU}),
        cluster.pod(node, spec={"containers": GPU, "priorityClassName": CRITICAL[0]}),
        cluster.pod(node),
    ]

    async def run() -> None:
        async with cluster.controller():
            cluster.quarantine(node)
            await stop_all(cluster, *going)
            await until(lambda: cluster.drain(node).get("phase") == "drained")

    asyncio.run(run())
    assert [cluster.evictions(pod).total() for pod in (*staying, *going)] == [0] * len(staying) + [1] * len(going)


def test_the_drain_of_a_cordon_ends_with_it(cluster: Cluster) -> None:
    """A cordon without our record is a person's: it asks for no drain, and the drain of one with it is cancelled when
    the record goes."""
    node = cluster.node()
    pod = cluster.pod(node, labels={"app": "one"})
    guard = cluster.guard({"app": "one"}, 1)

    async def run() -> None:
        await until(lambda: cluster.is_guarding(guard, 1))
        async with cluster.controller() as controller:
            cluster.quarantine(node, cordon=True)
            await until(lambda: cluster.evictions(pod)[429])
            cluster.patch(f"/api/v1/nodes/{node}", {"metadata": {"annotations": {"gpuhealth.io/quarantine": None}}})
            await until(lambda: cluster.drain(node)["phase"] == "cancelled")
            assert node not in controller.fleet.drains_wanted

    asyncio.run(run())
    assert not cluster.terminating(pod)


# --- budgets before evictions -----------------------------------------------------------------------------------------


def take(cluster: Cluster, node: str) -> str:
    """A slot of the test's budget, taken as the node's agent does; returns its name."""
    name = f"{cluster.name}.0"
    labels = {"gpuhealth.io/budget": cluster.name, "gpuhealth.io/slot-set": "unavailable", "gpuhealth.io/node": node}
    metadata = {"name": name, "namespace": "gpuhealth", "labels": labels}
    body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata}
    cluster.plane.apply([{**body, "spec": {"holderIdentity": node}}])
    return name


def test_the_budget_counts_a_node_before_its_pods_go(cluster: Cluster) -> None:
    """The first eviction waits for the status of the budget, even if that is written much later."""
    node = cluster.node()
    pod = cluster.pod(node)
    cluster.budget(1)
    slow = msgspec.structs.replace(QUICK, round_pause=2.0, budget_wait=120.0)

    def used() -> int:
        return int(cluster.plane.request("GET", f"{QB}/{cluster.name}").get("status", {}).get("used", -1))

    async def run() -> None:
        async with cluster.controller(slow):
            await until(lambda: used() == 0)
            slot = take(cluster, node)
            cluster.quarantine(node, slots=(slot,))
            await until(lambda: cluster.evictions(pod).total())

    asyncio.run(run())
    words = [e["requestURI"] for e in cluster.plane.audit() if e["verb"] in {"patch", "create"}]
    counted = [i for i, uri in enumerate(words) if uri.endswith(f"{QB}/{cluster.name}/status")]
    evicted = [i for i, uri in enumerate(words) if uri == f"{pod}/eviction"]
    assert used() == 1
    assert counted[-1] < evicted[0]
    cluster.plane.request("DELETE", f"/apis/coordination.k8s.io/v1/namespaces/gpuhealth/leases/{cluster.name}.0")


def test_a_budget_that_is_not_counted_stops_no_drain(cluster: Cluster) -> None:
    """After a short time the pods are evicted although no status counts the node."""
    node = cluster.node()
    pod = cluster.pod(node)
    short = msgspec.structs.replace(QUICK, budget_wait=0.3)

    async def run() -> None:
        async with cluster.controller(short):
            cluster.quarantine(node, slots=("no-such-budget.0",))
            await stop_all(cluster, pod)
            await until(lambda: cluster.drain(node).get("phase") == "drained")

    asyncio.run(run())
