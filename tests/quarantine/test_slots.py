"""Quarantine budgets: never more nodes out than slots, and every slot given back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from kube import ControlPlane
from kube.proxy import FaultyProxy
from testing.cluster_objects import Pool, finding, verdict

from gpuhealth.kube import errors
from gpuhealth.kube.client import Client
from gpuhealth.kube.selectors import matches, query_text
from gpuhealth.quarantine.slots.budget import Limit, SlotSet, limit_of, slot_sets
from gpuhealth.quarantine.slots.holder import NO_BUDGET, Admitted, Blocked, SlotHolder
from gpuhealth.quarantine.target import Desired

NAMESPACE = "gpuhealth"
HEALTHY = Desired(verdict=verdict())
SICK = Desired(verdict=verdict(finding()), quarantine=("xid.79",))


@pytest.mark.parametrize(
    ("amount", "size", "limit"),
    [
        (3, 0, 3),
        (0, 100, 0),
        ("5%", 100, 5),
        ("5%", 119, 5),
        ("5%", 3, 1),
        ("0%", 100, 0),
        ("100%", 7, 7),
        ("5%", 0, 0),
        (10**18, 0, 100_000),
        ("5%", 10**18, 100_000),
    ],
)
def test_limit(amount: int | str, size: int, limit: int) -> None:
    """A percentage is rounded down, but to one at least unless it is nothing; no limit is boundless."""
    assert limit_of(amount, size) == limit


def test_every_limit_is_a_set() -> None:
    """Every limit of a budget is a set of slots, the finding's code in the name of its own."""
    spec = {"maxUnavailable": "10%", "maxPerWindow": 5, "maxPerFault": 2, "window": "30m"}
    assert slot_sets({"metadata": {"name": "b"}, "spec": spec}, 100, "gpu.recovery_action") == [
        SlotSet(prefix="b", budget="b", kind=Limit.UNAVAILABLE, limit=10),
        SlotSet(prefix="b.window", budget="b", kind=Limit.PER_WINDOW, limit=5, seconds=1800),
        SlotSet(prefix="b.fault.gpu.recovery-action", budget="b", kind=Limit.PER_FAULT, limit=2, seconds=1800),
    ]


@pytest.mark.parametrize(
    ("selector", "chosen", "text"),
    [
        ({}, True, ""),
        ({"matchLabels": {"a": "1"}}, True, "a=1"),
        ({"matchLabels": {"a": "2"}}, False, "a=2"),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1", "2"]}]}, True, "a in (1,2)"),
        ({"matchExpressions": [{"key": "b", "operator": "NotIn", "values": ["1"]}]}, True, "b notin (1)"),
        ({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}, False, "a notin (1)"),
        ({"matchExpressions": [{"key": "a", "operator": "Exists"}]}, True, "a"),
        ({"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}, False, "!a"),
    ],
)
def test_selectors(plane: ControlPlane, pool: Pool, selector: dict[str, Any], chosen: bool, text: str) -> None:
    """We choose the nodes that the API server chooses for the same selector."""
    assert matches(selector, {"a": "1"}) is chosen
    assert query_text(selector) == text
    pool.node(labels={"a": "1"})
    query = ",".join(filter(None, [f"pool={pool.name}", text])).replace(" ", "%20").replace("!", "%21")
    assert bool(plane.request("GET", f"/api/v1/nodes?labelSelector={query}")["items"]) is chosen


def test_no_selector_chooses_nothing() -> None:
    """An absent selector is not an empty one."""
    assert not matches(None, {})


def test_without_a_budget_nobody_is_admitted(plane: ControlPlane, pool: Pool) -> None:
    """No budget that selects the node: no slot, and nothing written."""

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            assert await SlotHolder(client, NAMESPACE, "n").acquire(pool.labels, "xid.79") == Blocked(
                "xid.79", "", NO_BUDGET, "no QuarantineBudget selects this node"
            )
            assert not [call for call in client.calls if call[0] != "GET"]

    asyncio.run(run())


def test_one_call_when_there_is_room(plane: ControlPlane, pool: Pool) -> None:
    """Where a controller has counted, a slot costs one request and two lists of the budgets; its release costs one."""
    pool.budget(5)
    pool.counted()

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            holder = SlotHolder(client, NAMESPACE, "n")
            assert await holder.recall() == ()
            client.calls.clear()
            assert isinstance(await holder.acquire(pool.labels, "xid.79"), Admitted)
            assert client.calls == {("GET", 200): 2, ("POST", 201): 1}
            await holder.release()
            assert client.calls == {("GET", 200): 2, ("POST", 201): 1, ("DELETE", 200): 1}
        assert pool.slots() == {}

    asyncio.run(run())


def test_never_more_than_the_limit(plane: ControlPlane, pool: Pool) -> None:
    """Eighty agents request seven slots at once: seven get one, and the others are blocked."""
    pool.budget(7)

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            agents = [SlotHolder(client, NAMESPACE, f"n{k}") for k in range(80)]
            outcomes = await asyncio.gather(*[agent.acquire(pool.labels, "xid.79") for agent in agents])
            admitted = [outcome for outcome in outcomes if isinstance(outcome, Admitted)]
            held = [outcome for outcome in outcomes if isinstance(outcome, Blocked)]
            assert (len(admitted), len(held)) == (7, 73)
            assert sorted(pool.slots()) == [f"{pool.name}.{k}" for k in range(7)]
            await asyncio.gather(*[agent.release() for agent in agents])
            assert pool.slots() == {}
            second = await asyncio.gather(*[agent.acquire(pool.labels, "xid.79") for agent in agents[:7]])
            assert all(isinstance(outcome, Admitted) for outcome in second), "all slots can be taken again"

    asyncio.run(run())


def test_race_under_errors(plane: ControlPlane, pool: Pool) -> None:
    """Lost responses and server errors neither leak a slot nor assign one twice."""
    pool.budget(5)

    async def run() -> None:
        async with FaultyProxy(plane) as proxy, Client.from_kubeconfig(proxy.kubeconfig) as client:
            for what in ("lost", 503, 429, "reset"):
                proxy.fail(what, method="POST", times=6)
            agents = [SlotHolder(client, NAMESPACE, f"n{k}") for k in range(50)]

            async def persist(agent: SlotHolder) -> bool:
                while True:
                    try:
                        return isinstance(await agent.acquire(pool.labels, "xid.79"), Admitted)
                    except (errors.UnavailableError, errors.TooManyRequestsError):
                        await asyncio.sleep(0.05)

            admitted = await asyncio.gather(*[persist(agent) for agent in agents])
            holders = list(pool.slots().values())
            assert sum(admitted) == len(holders) == len(set(holders)) == 5

    asyncio.run(run())


def test_found_again_after_a_restart(plane: ControlPlane, pool: Pool) -> None:
    """A slot that this node holds is used, not a second one taken."""
    pool.budget(50)

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            first = await SlotHolder(client, NAMESPACE, "n").acquire(pool.labels, "xid.79")
            assert isinstance(first, Admitted)
            again = SlotHolder(client, NAMESPACE, "n")
            assert await again.acquire(pool.labels, "ecc.uncorrectable") == Admitted(first.slots, taken=())
            assert len(pool.slots()) == 1
            assert len(await again.release()) == 1
            assert pool.slots() == {}

    asyncio.run(run())


def test_all_budgets_or_none(plane: ControlPlane, pool: Pool) -> None:
    """A node that two budgets select needs both; held by the second, it gives the first back."""
    rack, whole = pool.budget(5, f"{pool.name}-a"), pool.budget(1, f"{pool.name}-b")

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            one, two = SlotHolder(client, NAMESPACE, "one"), SlotHolder(client, NAMESPACE, "two")
            outcome = await one.acquire(pool.labels, "xid.79")
            assert isinstance(outcome, Admitted)
            assert [slot.rpartition(".")[0] for slot in outcome.slots] == [rack, whole]
            held = await two.acquire(pool.labels, "xid.79")
            assert isinstance(held, Blocked)
            assert held.budget == whole
            assert "at most 1 node out of service at once" in held.reason
            assert list(pool.slots(rack).values()) == ["one"]
            await one.release()
            assert isinstance(await two.acquire(pool.labels, "xid.79"), Admitted)

    asyncio.run(run())


def test_per_fault(plane: ControlPlane, pool: Pool) -> None:
    """One code on many nodes suggests a bad driver: it is blocked by maxPerFault, and another code is not."""
    pool.budget("100%", maxPerFault=1)
    pool.nodes(5)

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            codes = ["xid.79", "xid.79", "gpu.recovery_action"]
            nodes = [SlotHolder(client, NAMESPACE, f"n{k}") for k in range(3)]
            outcomes = [await node.acquire(pool.labels, code) for node, code in zip(nodes, codes, strict=True)]
            assert [type(outcome) for outcome in outcomes] == [Admitted, Blocked, Admitted]
            assert f"{pool.name}.fault.gpu.recovery-action.0" in pool.slots()

    asyncio.run(run())


def test_percentage_of_the_nodes(plane: ControlPlane, pool: Pool) -> None:
    """Without a controller the nodes are counted here; with one, its count holds."""
    name = pool.budget("40%")
    pool.nodes(5)

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            agents = [SlotHolder(client, NAMESPACE, f"n{k}") for k in range(6)]
            outcomes = await asyncio.gather(*[agent.acquire(pool.labels, "xid.79") for agent in agents])
            assert sum(isinstance(outcome, Admitted) for outcome in outcomes) == 2
            path = f"/apis/gpuhealth.io/v1alpha1/quarantinebudgets/{name}/status"
            plane.request("PATCH", path, {"status": {"size": 10}}, content_type="application/merge-patch+json")
            outcomes = await asyncio.gather(*[agent.acquire(pool.labels, "xid.79") for agent in agents])
            assert sum(isinstance(outcome, Admitted) for outcome in outcomes) == 4

    asyncio.run(run())


def test_a_place_taken_over_is_not_given_back(plane: ControlPlane, pool: Pool) -> None:
    """Only the Lease that we wrote is deleted: what somebody changed meanwhile is looked at again first."""
    pool.budget(1)

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            node = SlotHolder(client, NAMESPACE, "n")
            await node.acquire(pool.labels, "xid.79")
            path = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/{pool.name}.0"
            other = {"spec": {"holderIdentity": "other"}, "metadata": {"labels": {"gpuhealth.io/node": "other"}}}
            plane.request("PATCH", path, other, content_type="application/merge-patch+json")
            with pytest.raises(errors.ConflictError):
                await node.release()
            assert await node.release() == ()
            assert pool.slots() == {f"{pool.name}.0": "other"}

    asyncio.run(run())


@pytest.mark.parametrize(
    ("limit", "held", "size"),
    [(5, "", 5), (5, "0 4", 5), (5, "2 6 7", 3), (5, "3 5", 4), (5, "0 1 2 3 4 5", 0), (2, "7 8 9", 0)],
)
def test_places_beyond_the_limit_count(limit: int, held: str, size: int) -> None:
    """As many names are open as leave no more than the limit held, with those that are held beyond them."""
    slot_set = SlotSet(prefix="b", budget="b", kind=Limit.UNAVAILABLE, limit=limit)
    names = slot_set.open_names([f"b.{k}" for k in held.split()])
    assert names == [f"b.{k}" for k in range(size)]
    beyond = {f"b.{k}" for k in held.split()} - set(names)
    assert len(beyond) + len(names) <= max(limit, len(held.split()))


def test_a_lowered_limit_counts_who_is_out(plane: ControlPlane, pool: Pool) -> None:
    """After the limit was lowered no node goes out until fewer are out than the limit, whatever names are free."""
    pool.budget(6)

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            out = [SlotHolder(client, NAMESPACE, f"{pool.name}-{k}") for k in range(6)]
            await asyncio.gather(*[each.acquire(pool.labels, "xid.79") for each in out])
            lowest_first = sorted(out, key=lambda each: each.known)
            waiting = SlotHolder(client, NAMESPACE, "waiting")
            pool.budget(3)
            for each in lowest_first[:3]:
                assert isinstance(await waiting.acquire(pool.labels, "xid.79"), Blocked)
                assert len(await each.release()) == 1
            assert isinstance(await waiting.acquire(pool.labels, "xid.79"), Blocked), "three are out yet"
            await lowest_first[3].release()
            assert isinstance(await waiting.acquire(pool.labels, "xid.79"), Admitted)
            assert len(pool.slots()) == 3

    asyncio.run(run())


def test_a_suspect_driver_takes_no_places_of_others(plane: ControlPlane, pool: Pool) -> None:
    """A node blocked by maxPerFault has taken no other slot, writes nothing at its next try, and names the limit."""
    pool.budget(6, maxPerFault=1, maxPerWindow=4)
    pool.counted()

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            assert isinstance(await SlotHolder(client, NAMESPACE, "first").acquire(pool.labels, "xid.79"), Admitted)
            second = SlotHolder(client, NAMESPACE, "second")
            await second.recall()
            client.calls.clear()
            held = await second.acquire(pool.labels, "xid.79")
            assert isinstance(held, Blocked)
            assert held.limit is Limit.PER_FAULT
            assert client.calls == {("GET", 200): 2, ("POST", 409): 1}, "the budgets, a try, the slots of the set"
            client.calls.clear()
            assert await second.acquire(pool.labels, "xid.79") == held
            assert client.calls == {("GET", 200): 2}, "the budgets, the slots of the set"
            assert set(pool.slots().values()) == {"first"}

    asyncio.run(run())


def test_a_place_that_was_ours_after_all(plane: ControlPlane, pool: Pool) -> None:
    """The answer to a creation is lost and the name is taken at the second try: it is looked at, and it is ours."""
    pool.budget(1)

    async def run() -> None:
        async with FaultyProxy(plane) as proxy, Client.from_kubeconfig(proxy.kubeconfig) as client:
            proxy.fail("lost", method="POST")
            outcome = await SlotHolder(client, NAMESPACE, "n").acquire(pool.labels, "xid.79")
            assert outcome == Admitted((f"{pool.name}.0",), taken=(f"{pool.name}.0",))

    asyncio.run(run())
