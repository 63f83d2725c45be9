"""Nodes with GPUs that no agent watches: found by what others write on the Node, counted, and never healthy."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from testing.controller_steps import samples, scrape
from testing.managed_cluster import QUICK, Cluster, until
from testing.node_writing import node_object

from gpuhealth.controller.controller import Controller
from gpuhealth.controller.http_app import serve
from gpuhealth.fleet.gpu_nodes import has_gpus

REPORTS = "/apis/gpuhealth.io/v1alpha1/gpuhealthreports"
GPU = {"uuid": "GPU-1", "model": "H100", "verdict": "healthy"}


@pytest.mark.parametrize(
    "labels",
    [
        {"nvidia.com/gpu.present": "true"},
        {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"},
        {"kubernetes.azure.com/accelerator": "nvidia"},
        {"karpenter.azure.com/sku-gpu-manufacturer": "nvidia"},
        {"k8s.amazonaws.com/accelerator": "nvidia-tesla-a100"},
        {"karpenter.k8s.aws/instance-gpu-manufacturer": "nvidia"},
        {"eks.amazonaws.com/instance-gpu-manufacturer": "nvidia"},
        {"feature.node.kubernetes.io/pci-10de.present": "true"},
        {"feature.node.kubernetes.io/pci-0302_10de.present": "true"},
        {"doks.digitalocean.com/gpu-brand": "nvidia"},
        {"gpuhealth.io/agent": "true"},
    ],
)
def test_labels_of_platforms(labels: dict[str, str]) -> None:
    """What platforms and their add-ons write on nodes with GPUs of NVIDIA's; on Windows no agent can run."""
    assert has_gpus(node_object(labels=labels))
    assert not has_gpus(node_object(labels={**labels, "kubernetes.io/os": "windows"}))


@pytest.mark.parametrize(
    "labels",
    [
        {},
        {"node.kubernetes.io/instance-type": "p5.48xlarge"},
        {"nvidia.com/gpu.present": "false"},
        {"feature.node.kubernetes.io/pci-1002.present": "true"},
        {"karpenter.k8s.aws/instance-gpu-manufacturer": "amd"},
        {"kubernetes.azure.com/accelerator": "amd"},
        {"gpuhealth.io/agent": "false"},
    ],
)
def test_labels_of_other_nodes(labels: dict[str, str]) -> None:
    """Neither the type of a machine nor another vendor's GPUs make an agent necessary."""
    assert not has_gpus(node_object(labels=labels))


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ({"nvidia.com/gpu": "8"}, True),
        ({"nvidia.com/gpu.shared": "80"}, True),
        ({"nvidia.com/mig-1g.10gb": "7"}, True),
        ({"nvidia.com/gpu": "0"}, False),
        ({"amd.com/gpu": "8", "cpu": "64"}, False),
        ({"nvidia.com/GA102GL_A10": "4"}, False),
    ],
)
@pytest.mark.parametrize("part", ["capacity", "allocatable"])
def test_resources_of_the_device_plugin(part: str, resources: dict[str, str], expected: bool) -> None:
    """Whole, shared and divided GPUs count; those given to virtual machines and other vendors' do not."""
    node = node_object()
    node["status"][part] = resources
    assert has_gpus(node) is expected


def test_the_taint_of_gpu_nodes() -> None:
    """Several platforms put the taint nvidia.com/gpu on every node with GPUs of NVIDIA's."""
    taint = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
    assert has_gpus(node_object(spec={"taints": [taint]}))


def test_the_controller_counts_them(cluster: Cluster) -> None:
    """Each reason for which a node is not watched is counted, and ends; such a node is never counted as healthy."""
    watched, silent, mute, foreign = (cluster.node(state="healthy") for _ in range(4))
    bare = cluster.node(state="", labels={"cloud.google.com/gke-accelerator": "nvidia-l4"}, gpus=4, agent=False)
    other = cluster.node(state="", labels={"feature.node.kubernetes.io/pci-1002.present": "true"})
    for node in (watched, silent, foreign):
        cluster.say(node, {"inventory": {"gpuCount": 1, "gpus": [GPU]}})
    owner = {"apiVersion": "v1", "kind": "Node", "name": foreign, "uid": "of-an-earlier-node"}
    cluster.patch(f"{REPORTS}/{foreign}", {"metadata": {"ownerReferences": [owner]}})
    for node in (mute, bare, other):
        cluster.plane.request("DELETE", f"{REPORTS}/{node}")
    for node in (watched, mute, foreign):
        cluster.agent(node)
    cluster.unready(cluster.agent(silent))

    def shown(text: str) -> dict[tuple[str, ...], float]:
        return {key: value for key, value in samples(text, cluster.name).items() if "unwatched" in key[0]}

    def unwatched(controller: Controller) -> int:
        return sum(count for (_, pool), count in controller.fleet.unwatched_nodes.items() if pool == cluster.name)

    async def run() -> None:
        controller = Controller(cluster.settings(), services=(serve,), timing=QUICK)
        working = asyncio.create_task(controller.work())
        await until(lambda: controller.http_port and controller.fleet.ready)
        name = "gpuhealth_unwatched_nodes"
        expected: dict[Any, float] = {(name, "no_agent"): 1, (name, "agent_silent"): 1, (name, "no_report"): 2}
        await until(lambda: unwatched(controller) == 4)
        text = (await scrape(controller.http_port))[1]
        assert shown(text) == expected
        assert samples(text, cluster.name)["gpuhealth_fleet_nodes", "healthy"] == 1
        assert samples(text, cluster.name)["gpuhealth_fleet_nodes", "unknown"] == 4
        assert samples(text, cluster.name)["gpuhealth_fleet_gpus", "", "unknown"] == 4
        body = {"apiVersion": "gpuhealth.io/v1alpha1", "kind": "GPUHealthReport", "metadata": {"name": bare}}
        cluster.plane.request("POST", REPORTS, body)
        cluster.agent(bare)
        cluster.say(bare, {"inventory": {"gpuCount": 1, "gpus": [GPU]}})
        await until(lambda: unwatched(controller) == 3)
        cluster.plane.request("DELETE", f"/api/v1/nodes/{silent}")
        await until(lambda: unwatched(controller) == 2)
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)

    asyncio.run(run())
