"""DaemonSets of NVIDIA's operators on nodes with our marks, on a real DaemonSet controller and scheduler."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from kube import Document
from testing.managed_cluster import Cluster, until
from testing.node_writing import BOTH, HEALTHY, NO_DRIVER, SICK, writer
from testing.paths import BASE

from gpuhealth.api.names import PREFLIGHT_TAINT, TAINT
from gpuhealth.kube.client import Client
from gpuhealth.quarantine.target import Desired

EXISTS = {"operator": "Exists", "effect": "NoSchedule"}
OF_GPUS = [{"key": "nvidia.com/gpu", **EXISTS}]
"""What the charts of GPU operator, network operator, DRA driver and device plugin give their DaemonSets."""
NEW = {"key": PREFLIGHT_TAINT, "value": "pending", "effect": "NoSchedule"}


def of_example(*path: str) -> list[Document]:
    """The tolerations of a value of the GPU operator's chart, as the example has them."""
    found: Any = yaml.safe_load((BASE / "examples" / "gpu-operator-values.yaml").read_text(encoding="utf-8"))
    for name in path:
        found = found[name]
    return list(found)


DRIVER = of_example("daemonsets", "tolerations")
DISCOVERY = of_example("node-feature-discovery", "worker", "tolerations")


class DaemonSets:
    """DaemonSets for the nodes of a test, and whether a pod of theirs was bound to a node."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._path = f"/apis/apps/v1/namespaces/{cluster.namespace}/daemonsets"

    def create(self, name: str, tolerations: list[Document]) -> None:
        """Creates one, as an operator does."""
        labels = {"app": name}
        spec = {
            "nodeSelector": {"gpuhealth.io/pool": self._cluster.name},
            "tolerations": tolerations,
            "containers": [{"name": "c", "image": "i"}],
            "automountServiceAccountToken": False,
        }
        template = {"metadata": {"labels": labels}, "spec": spec}
        body = {"metadata": {"name": name}, "spec": {"selector": {"matchLabels": labels}, "template": template}}
        self._cluster.plane.request("POST", self._path, body)

    def runs(self, name: str, node: str) -> bool:
        """Whether the scheduler has bound a pod of it to the node."""
        pods = self._pods(name)
        return any(pod["spec"].get("nodeName") == node for pod in pods)

    def status(self, name: str) -> Document:
        """What the DaemonSet controller has counted."""
        found: Document = self._cluster.plane.request("GET", f"{self._path}/{name}").get("status", {})
        return found

    def _pods(self, name: str) -> list[Document]:
        path = f"/api/v1/namespaces/{self._cluster.namespace}/pods?labelSelector=app={name}"
        return list(self._cluster.plane.request("GET", path)["items"])

    def remove(self) -> None:
        """Deletes them and their pods."""
        self._cluster.plane.request("DELETE", self._path)
        self._cluster.plane.request("DELETE", f"/api/v1/namespaces/{self._cluster.namespace}/pods?gracePeriodSeconds=0")


@pytest.fixture
def daemon_sets(cluster: Cluster) -> Iterator[DaemonSets]:
    """Removed after the test."""
    made = DaemonSets(cluster)
    yield made
    made.remove()


async def apply(cluster: Cluster, node: str, desired: Desired) -> None:
    """Marks a node as its agent does."""
    async with Client.from_kubeconfig(cluster.plane.kubeconfig) as client:
        await writer(client, node).apply(desired)


@pytest.mark.parametrize("desired", [NO_DRIVER, BOTH])
def test_the_driver_s_pod_gets_to_a_node_without_driver(
    cluster: Cluster, daemon_sets: DaemonSets, desired: Desired
) -> None:
    """A node that is out since its driver is gone gets the pod that installs it, with default tolerations and with
    any other finding; work gets no place there."""
    node, other = (cluster.node(gpus=8, agent=False) for _ in range(2))
    cluster.budget(1)

    async def run() -> None:
        await apply(cluster, node, desired)
        daemon_sets.create("driver", OF_GPUS)
        await until(lambda: daemon_sets.runs("driver", node) and daemon_sets.runs("driver", other))
        works = [cluster.gpu_work(4) for _ in range(2)]
        await until(lambda: all(cluster.plane.request("GET", work)["spec"].get("nodeName") for work in works))
        assert {cluster.plane.request("GET", work)["spec"]["nodeName"] for work in works} == {other}

    asyncio.run(run())


def test_a_taint_comes_when_only_other_findings_are_left(cluster: Cluster, daemon_sets: DaemonSets) -> None:
    """The driver's pod that came during the cordon stays under the taint that replaces it."""
    node = cluster.node(gpus=8, agent=False)
    cluster.budget(1)

    async def run() -> None:
        await apply(cluster, node, BOTH)
        daemon_sets.create("driver", OF_GPUS)
        await until(lambda: daemon_sets.runs("driver", node))
        await apply(cluster, node, SICK)
        await until(lambda: daemon_sets.status("driver").get("numberMisscheduled") == 1)
        assert daemon_sets.runs("driver", node)
        await apply(cluster, node, HEALTHY)

    asyncio.run(run())


@pytest.mark.parametrize("mark", ["taint", "preflight"])
def test_tolerations_of_the_example(cluster: Cluster, daemon_sets: DaemonSets, mark: str) -> None:
    """Onto a node with our taint or the preflight taint pods get with the tolerations of the example, not without."""
    node, other = (cluster.node(gpus=8, agent=False) for _ in range(2))
    cluster.budget(1)

    async def run() -> None:
        if mark == "taint":
            await apply(cluster, node, SICK)
        else:
            cluster.patch(f"/api/v1/nodes/{node}", {"spec": {"taints": [NEW]}})
        daemon_sets.create("default", OF_GPUS)
        daemon_sets.create("driver", DRIVER)
        daemon_sets.create("discovery", DISCOVERY)
        with_ours = [(name, place) for name in ("driver", "discovery") for place in (node, other)]
        await until(lambda: all(daemon_sets.runs(name, place) for name, place in with_ours))
        await until(lambda: daemon_sets.runs("default", other))
        assert daemon_sets.status("default")["desiredNumberScheduled"] == 1
        assert not daemon_sets.runs("default", node)

    asyncio.run(run())


def test_the_readme_keeps_the_defaults_of_the_charts() -> None:
    """Helm replaces lists: the tolerations that the charts have by default are repeated, with ours and no others."""
    ours = [{"key": TAINT, **EXISTS}, {"key": PREFLIGHT_TAINT, **EXISTS}]
    roles = [
        {"key": f"node-role.kubernetes.io/{role}", "operator": "Equal", "value": "", "effect": "NoSchedule"}
        for role in ("master", "control-plane")
    ]
    assert [*OF_GPUS, *ours] == DRIVER
    assert [*roles, *OF_GPUS, *ours] == DISCOVERY
