"""Many agents at once for few slots, checked against what a watch of the API server has seen."""

from __future__ import annotations

import asyncio
import random

from kube import ControlPlane
from testing.cluster_objects import Pool
from testing.half_agents import Half, History, SharedClient, most, running
from testing.waiting import until

from gpuhealth.kube.client import Client

AGENTS = 60
SLOTS = 7
KILLED = 20


async def killed_at_random(half: Half) -> None:
    """Dies in the middle of whatever it does, and is started again as soon as a process can be."""
    await asyncio.sleep(random.uniform(0, 0.4))
    await half.kill()
    await asyncio.sleep(random.uniform(0.1, 0.2))
    half.start()


def test_race_of_agents_that_die(plane: ControlPlane, pool: Pool) -> None:
    """Sixty agents for seven slots, some killed and started again: never more than seven out, and seven at the end."""
    pool.budget(SLOTS)
    nodes = pool.nodes(AGENTS)
    history = History()

    async def run() -> None:
        async with (
            SharedClient(plane.kubeconfig) as client,
            Client.from_kubeconfig(plane.kubeconfig) as observer,
            history.following(observer, f"pool={pool.name}", pool.name),
            running(client, nodes) as halves,
        ):
            for half in halves:
                half.want(sick=True)
            await asyncio.gather(*[killed_at_random(half) for half in random.sample(halves, KILLED)])
            await until(lambda: history.out[-1].count == history.slots[-1].count == SLOTS)

    asyncio.run(run())
    assert most(history.out) == most(history.slots) == SLOTS
    assert len(set(pool.slots().values())) == SLOTS, "no node holds two"
