"""Our own Node, followed on a real API server."""

from __future__ import annotations

import asyncio

from kube import ControlPlane
from kube.proxy import FaultyProxy
from testing.cluster_objects import Pool
from testing.node_writing import watching, writer
from testing.waiting import until

from gpuhealth.kube.client import Client


def test_what_the_node_says_is_followed(plane: ControlPlane, pool: Pool) -> None:
    """Labels, taints, and the request to let go of the driver come by the watch, also after an outage."""
    node = pool.node()

    async def run() -> None:
        async with FaultyProxy(plane) as proxy, Client.from_kubeconfig(proxy.kubeconfig) as client:
            write = writer(client, node)
            async with watching(write):
                assert write.node.labels["pool"] == pool.name
                assert write.node.release_requests == ()
                proxy.break_streams()
                note = {"gpuhealth.io/release-gpus": "true"}
                pool.patch(
                    node,
                    {"metadata": {"annotations": note}, "spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}},
                )
                await until(lambda: write.node.release_requests == ("annotation",))
                assert write.node.taints[0]["key"] == "a"
                assert write.node.changed.is_set()

    asyncio.run(run())
