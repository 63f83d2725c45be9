"""The reconciler of the Node while the API server is overloaded."""

from __future__ import annotations

import asyncio

from kube import ControlPlane
from kube.proxy import FaultyProxy
from testing.cluster_objects import Pool
from testing.half_agents import Half
from testing.waiting import until

from gpuhealth.kube.client import Client


def test_the_server_says_when(plane: ControlPlane, pool: Pool) -> None:
    """A Retry-After of an hour delays a retry by 60 to 120 s, and a new change is sent at once."""
    node = pool.node()

    async def run() -> None:
        async with FaultyProxy(plane) as proxy, Client.from_kubeconfig(proxy.kubeconfig) as client:
            half = Half(client, node)
            proxy.fail(429, retry_after="3600", method="POST", times=-1)
            proxy.fail(429, retry_after="3600", method="PATCH", times=-1)
            half.start()
            reconciler = half._reconciler
            assert reconciler is not None
            await until(lambda: reconciler._failures)
            assert 60 <= reconciler._retry_in <= 120
            proxy.heal()
            half.want(sick=True)
            await until(lambda: half.settled)
            await half.kill()

    asyncio.run(run())
