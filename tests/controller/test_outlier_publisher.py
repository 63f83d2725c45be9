"""Publishing a GPU that differs from the fleet to its agent."""

from __future__ import annotations

import asyncio

from kube import Document
from testing.controller_steps import said
from testing.managed_cluster import Cluster, until

from gpuhealth.controller.duties.outlier_publisher import OutlierPublisher


def burnin(gpu: str, model: str, digest: str) -> Document:
    """The burn-in part of an agent's report with one GPU."""
    software = {"torch": "2.13.0", "cuda": "13.0"}
    repeat = {"status": "passed", "digests": {"bf16/512x512x512/seed1": digest}, "software": software}
    return {"gpus": {gpu: {"model": model, "level": "standard", "status": "passed", "tests": {"repeat": repeat}}}}


def test_a_gpu_with_another_digest_is_published(cluster: Cluster) -> None:
    """One of four GPUs of a model has another digest: only its Node is annotated; a correct result removes the
    annotation. The metrics name the GPU, and nothing is written while nothing changes."""
    nodes = [cluster.node() for _ in range(4)]
    for number, node in enumerate(nodes):
        cluster.say(node, {"burnin": burnin(f"GPU-{number}", cluster.name, "bad0" if number == 2 else "good")})
    odd, others = nodes[2], [*nodes[:2], nodes[3]]

    async def run() -> None:
        async with cluster.controller() as controller:
            (found,) = await until(lambda: said(cluster, odd))
            assert (found["code"], found["gpu"]) == ("fleet.digest_mismatch", "GPU-2")
            assert "good on 3 of 4" in found["message"]
            (outlier,) = controller.duty(OutlierPublisher).status.outliers
            assert (outlier.node, outlier.gpu) == (odd, "GPU-2")
            assert [said(cluster, node) for node in others] == [[], [], []]
        writes = cluster.writes(f"/api/v1/nodes/{odd}")
        async with cluster.controller() as controller:  # another one finds the same
            await until(lambda: controller.duty(OutlierPublisher).status.outliers)
            assert cluster.writes(f"/api/v1/nodes/{odd}") == writes
        cluster.say(odd, {"burnin": burnin("GPU-2", cluster.name, "good")})
        async with cluster.controller() as controller:
            await until(lambda: not said(cluster, odd))
            assert controller.duty(OutlierPublisher).status.outliers == []

    asyncio.run(run())
    assert all(cluster.writes(f"/api/v1/nodes/{node}") == 0 for node in others)
