"""Budgets and labels that change while nodes are out: the bound holds, and a node that is out holds what it needs."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest
from kube import ControlPlane
from testing.cluster_objects import Pool, taints
from testing.node_writing import HEALTHY, SICK, watching, writer, writes
from testing.waiting import until

from gpuhealth.kube.client import Client
from gpuhealth.kube.kinds import BUDGETS, LEASES
from gpuhealth.quarantine.slots import node_counts
from gpuhealth.quarantine.slots.holder import Admitted, Blocked, SlotHolder
from gpuhealth.quarantine.slots.lease import read_slot
from gpuhealth.quarantine.writer import NodeWriter

QB = "/apis/gpuhealth.io/v1alpha1/quarantinebudgets"
NAMESPACE = "gpuhealth"


def remove(pool: Pool, name: str = "") -> None:
    """A person deletes a budget."""
    path = f"{QB}/{name or pool.name}"
    pool.plane.request("DELETE", path)
    pool._paths = [each for each in pool._paths if each != path]


def out(pool: Pool, nodes: list[str]) -> list[str]:
    """Those that carry our taint."""
    return [node["metadata"]["name"] for node in pool.all() if taints(node) and node["metadata"]["name"] in nodes]


async def tried(write: NodeWriter, times: int = 3) -> None:
    """A node that is sick tries to go out, again and again."""
    for _ in range(times):
        await write.apply(SICK)
        write._slots._retry_at = 0.0


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes that are out look at their slots all the time."""
    monkeypatch.setattr("gpuhealth.quarantine.slots.manager.CHECK_SECONDS", 0.0)
    monkeypatch.setattr("gpuhealth.quarantine.slots.manager.LATE_SECONDS", 0.0)
    monkeypatch.setattr("gpuhealth.quarantine.slots.manager._MIN_CHECK_SECONDS", 0.0)


@pytest.mark.parametrize("looks", [True, False])
def test_a_budget_that_is_renamed(plane: ControlPlane, pool: Pool, looks: bool) -> None:
    """Deleted, and made under another name: no second node goes out, whether the first has looked yet or not."""
    one, two = pool.nodes(2)
    pool.budget(1)

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            first, second = writer(client, one), writer(client, two)
            await first.apply(SICK)
            remove(pool)
            renamed = pool.budget(1, f"{pool.name}-renamed")
            if looks:
                await first.apply(SICK)
                assert list(pool.slots(renamed).values()) == [one]
                assert pool.slots() == {}, "what it does not need any more is given back"
            await tried(second)
            assert out(pool, [one, two]) == [one]
            await first.apply(SICK)
            assert list(pool.slots(renamed).values()) == [one]
            await first.apply(HEALTHY)
            await tried(second)
            assert out(pool, [one, two]) == [two]

    asyncio.run(run())


@pytest.mark.parametrize("looks", [True, False])
def test_a_node_that_is_relabelled(plane: ControlPlane, pool: Pool, looks: bool) -> None:
    """A node that is out moves to a pool with a budget of its own: there it counts, and its old slot is free."""
    racks = [{"rack": f"{pool.name}-{name}"} for name in "ab"]
    first, other = (pool.node(labels=rack) for rack in racks)
    budgets = [
        pool.budget(1, f"{pool.name}-{name}", nodeSelector={"matchLabels": rack})
        for name, rack in zip("ab", racks, strict=True)
    ]

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            one, two = writer(client, first), writer(client, other)
            async with watching(one):
                await one.apply(SICK)
                pool.patch(first, {"metadata": {"labels": racks[1]}})
                if looks:
                    await until(lambda: one.node.labels["rack"] == racks[1]["rack"])
                    await one.apply(SICK)
                    assert (pool.slots(budgets[0]), list(pool.slots(budgets[1]).values())) == ({}, [first])
                await tried(two)
                assert out(pool, [first, other]) == [first]

    asyncio.run(run())


def test_no_slot_in_the_new_budget(plane: ControlPlane, pool: Pool) -> None:
    """A node that is out stays out when its new budget is full, reports that, and keeps its slot; no other goes out."""
    racks = [{"rack": f"{pool.name}-{name}"} for name in "ab"]
    first, other, third = (pool.node(labels=rack) for rack in (racks[0], racks[1], racks[1]))
    a, b = (
        pool.budget(1, f"{pool.name}-{name}", nodeSelector={"matchLabels": rack})
        for name, rack in zip("ab", racks, strict=True)
    )

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            one, two, three = (writer(client, node) for node in (first, other, third))
            await one.apply(SICK)
            await two.apply(SICK)
            pool.patch(first, {"metadata": {"labels": racks[1]}})
            await one.apply(SICK)
            assert out(pool, [first, other]) == [first, other], "nothing is taken back"
            assert list(pool.slots(a).values()) == [first]
            assert "out already" in pool.report(first)["status"]["quarantine"]["reason"]
            await two.apply(HEALTHY)
            await tried(three)
            assert out(pool, [first, other, third]) == [first], "the one without a slot counts"
            await one.apply(SICK)
            assert list(pool.slots(b).values()) == [first]
            assert pool.slots(a) == {}
            assert pool.report(first)["status"]["quarantine"]["reason"] == ""

    asyncio.run(run())


def test_a_second_budget(plane: ControlPlane, pool: Pool) -> None:
    """A second budget counts nodes that are out already; a node that is out holds a slot of both."""
    one, two = pool.nodes(2)
    pool.budget(2)

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            first, second = writer(client, one), writer(client, two)
            await first.apply(SICK)
            beside = pool.budget(1, f"{pool.name}-beside")
            await tried(second)
            assert out(pool, [one, two]) == [one]
            await first.apply(SICK)
            assert list(pool.slots().values()) == list(pool.slots(beside).values()) == [one]

    asyncio.run(run())


def test_a_budget_that_is_away_for_a_while(plane: ControlPlane, pool: Pool) -> None:
    """Without a budget a node that is out keeps its slot and no other goes out; a new budget finds the slot taken."""
    one, two = pool.nodes(2)
    pool.budget(1)

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            first, second = writer(client, one), writer(client, two)
            await first.apply(SICK)
            remove(pool)
            await first.apply(SICK)
            await tried(second)
            assert list(pool.slots().values()) == [one]
            pool.budget(1)
            await tried(second)
            assert out(pool, [one, two]) == [one]

    asyncio.run(run())


def test_slots_that_were_deleted_under_a_running_agent(plane: ControlPlane, pool: Pool) -> None:
    """A person deletes the Leases: no other node goes out, and the one that is out takes a slot again."""
    one, two = pool.nodes(2)
    pool.budget(1)

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            first, second = writer(client, one), writer(client, two)
            await first.apply(SICK)
            plane.request("DELETE", f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/{pool.name}.0")
            await tried(second)
            await first.apply(SICK)
            assert out(pool, [one, two]) == [one]
            assert list(pool.slots().values()) == [one]

    asyncio.run(run())


def test_agents_that_race_while_budgets_change(plane: ControlPlane, pool: Pool) -> None:
    """Twelve sick nodes try without a pause while the budget is deleted and made again under other names, with nobody
    counting: there are never more out than the limit, and in the end each that is out holds a slot."""
    nodes = pool.nodes(12)
    limit, name = 2, pool.name
    pool.budget(limit)
    most = 0

    async def run() -> None:
        nonlocal most, name
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(Client.from_kubeconfig(plane.kubeconfig))
            done = asyncio.Event()

            async def persists(node: str) -> None:
                write = writer(client, node)
                while not done.is_set():
                    await write.apply(SICK)
                    write._slots._retry_at = 0.0

            agents = [asyncio.create_task(persists(node)) for node in nodes]
            for number in range(6):
                await until(lambda: len(out(pool, nodes)) >= min(limit, 1))
                await asyncio.to_thread(remove, pool, name)
                name = f"{pool.name}-{number}"
                await asyncio.to_thread(pool.budget, limit, name)
                for _ in range(10):
                    most = max(most, len(await asyncio.to_thread(out, pool, nodes)))
                    await asyncio.sleep(0)
            held = f"{pool.name}-5"
            await until(lambda: set(out(pool, nodes)) <= set(pool.slots(held).values()))
            done.set()
            await asyncio.gather(*agents)
            assert most <= limit
            assert len(out(pool, nodes)) <= limit

    asyncio.run(run())


def test_budgets_that_came_after_the_slots(plane: ControlPlane, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who took its slot before a budget was there, and is not out yet, finds it before it goes out."""
    pool.budget(1)
    late = f"{pool.name}-late"

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            slow, quick = SlotHolder(client, NAMESPACE, pool.node()), SlotHolder(client, NAMESPACE, pool.node())
            take = slow._take

            async def taking(needed: object) -> str | None:
                got = await take(needed)  # type: ignore[arg-type]
                if not pool.slots(late):
                    pool.budget(1, late)
                    remove(pool)
                    assert isinstance(await quick.acquire(pool.labels, "x"), Admitted | Blocked)
                return got

            monkeypatch.setattr(slow, "_take", taking)
            outcome = await slow.acquire(pool.labels, "x")
            holders = set(pool.slots(late).values())
            assert len(holders) <= 1
            assert isinstance(outcome, Blocked) or holders == {slow._node}
            for each in (slow, quick):
                await each.release()

    asyncio.run(run())


def test_what_looking_costs(plane: ControlPlane, pool: Pool) -> None:
    """A node that is out reads its slots and the budgets now and then, and writes nothing while nothing changes."""
    node = pool.node()
    pool.budget(1)

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            write = writer(client, node)
            async with watching(write):
                await write.apply(SICK)
                await write.apply(SICK)
                client.calls.clear()
                for _ in range(5):
                    await write.apply(SICK)
                assert writes(client) == 0
                assert client.calls["GET", 200] == 10

    asyncio.run(run())


def test_who_is_counted(plane: ControlPlane, pool: Pool) -> None:
    """Nodes that are out without a slot, and those that hold one of another budget; not those that a person has freed,
    other pools' nodes, or holders."""
    pool.budget(5)
    nodes = pool.nodes(4)
    other = Pool(plane)

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            for node in nodes[:3]:
                await writer(client, node).apply(SICK)
            elsewhere = other.budget(1)
            assert isinstance(await SlotHolder(client, NAMESPACE, nodes[3]).acquire(other.labels, "x"), Admitted)
            other.budget(1)
            for name, holder in pool.slots().items():
                if holder in nodes[:2]:
                    plane.request("DELETE", f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/{name}")
            pool.patch(nodes[1], {"spec": {"taints": None}})
            slots = [read_slot(item) for item in (await client.list(LEASES, NAMESPACE)).items]
            slots = [slot for slot in slots if not slot.seconds and slot.budget in (pool.name, elsewhere)]
            budget = await client.get(BUDGETS, pool.name)
            assert await node_counts.uncounted(client, budget, await node_counts.out(client, budget), slots) == {
                nodes[0],
                nodes[3],
            }
            await SlotHolder(client, NAMESPACE, nodes[3]).release()

    try:
        asyncio.run(run())
    finally:
        other.remove()
