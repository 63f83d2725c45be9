"""A node that should be out and has no slot in a budget: what is said of it, and when it is admitted."""

from __future__ import annotations

import asyncio

from kube import ControlPlane
from testing.cluster_objects import Pool
from testing.node_writing import HEALTHY, SICK, health, ours, writer
from testing.waiting import until

from gpuhealth.kube.client import Client
from gpuhealth.quarantine.slots.manager import FIRST_RETRY
from gpuhealth.quarantine.writer import NodeWriter


def test_held_by_the_budget(plane: ControlPlane, pool: Pool) -> None:
    """Without a slot: condition False, no taint, an Event, the budget's name; admitted when a slot is free."""
    one, two = pool.nodes(2)
    pool.budget(1)

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            first, second = writer(client, one), writer(client, two)
            await first.apply(SICK)
            acts = await second.apply(SICK)
            assert "blocked" in {act.kind for act in acts}
            blocked = second.blocked
            assert blocked is not None
            assert (blocked.budget, blocked.limit, blocked.code) == (pool.name, "maxUnavailable", "xid.79")
            assert ours(pool, two) == []
            assert health(pool, two)["status"] == "False"
            assert pool.report(two)["status"]["quarantine"]["budget"] == pool.name
            assert "QuarantineBlocked" in {event["reason"] for event in pool.events(two)}
            assert await second.apply(SICK) == []
            await first.apply(HEALTHY)
            async with asyncio.timeout(120):
                while not ours(pool, two):
                    await asyncio.sleep(second.retry_in or 0)
                    await second.apply(SICK)
            assert second.blocked is None
            assert second.is_settled

    asyncio.run(run())


def test_a_raised_budget_admits_the_held(plane: ControlPlane, pool: Pool) -> None:
    """Held nodes try again after a second or two, then less and less often; what they find then is the new limit."""
    nodes = pool.nodes(4)
    pool.budget(0)

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            writers = [writer(client, node) for node in nodes]
            for each in writers:
                await each.apply(SICK)
                assert each.blocked is not None
                assert (each.retry_in or 0) <= FIRST_RETRY
            pool.budget(3)

            async def persist(each: NodeWriter) -> None:
                while True:
                    await asyncio.sleep(each.retry_in or FIRST_RETRY)
                    await each.apply(SICK)

            trying = [asyncio.create_task(persist(each)) for each in writers]
            await until(lambda: sum(bool(ours(pool, node)) for node in nodes) == 3, seconds=120)
            for task in trying:
                task.cancel()
            await asyncio.gather(*trying, return_exceptions=True)
            assert sorted(each.blocked is None for each in writers) == [False, True, True, True]

    asyncio.run(run())


def test_without_a_budget_nothing_is_tainted(plane: ControlPlane, pool: Pool) -> None:
    """The condition says what is wrong; the node stays in service."""
    node = pool.node()

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            await writer(client, node).apply(SICK)
            assert ours(pool, node) == []
            assert health(pool, node)["status"] == "False"
            assert "no QuarantineBudget" in pool.report(node)["status"]["quarantine"]["reason"]

    asyncio.run(run())
