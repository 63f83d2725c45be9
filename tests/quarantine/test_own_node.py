"""Our own Node, followed on a real API server."""

from __future__ import annotations

import asyncio

from kube import ControlPlane
from kube.proxy import FaultyProxy
from testing.cluster_objects import Pool
from testing.node_writing import watching
from testing.waiting import until

from gpuhealth.kube.client import Client
from gpuhealth.monitors.settings import Settings
from gpuhealth.quarantine.own_node import OwnNode
from gpuhealth.quarantine.writer import NodeWriter


def test_what_the_node_says_is_followed(plane: ControlPlane, pool: Pool) -> None:
    """Labels, taints and release requests arrive by watch, also after an outage."""
    node = pool.node()

    async def run() -> None:
        async with FaultyProxy(plane) as proxy, Client.from_kubeconfig(proxy.kubeconfig) as client:
            changes: list[bool] = []
            own = OwnNode(client, node, on_change=lambda: changes.append(True))
            write = NodeWriter(client, Settings(), own)
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
                assert changes, "on_change is called for every event"

    asyncio.run(run())
