"""The writer when the API server fails, loses answers or is written to by others: nothing lost, nothing twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

import pytest
from kube import ControlPlane
from kube.proxy import FaultyProxy
from testing.cluster_objects import Pool
from testing.node_writing import HEALTHY, SICK, health, ours, watching, writer
from testing.waiting import until

from gpuhealth.api.names import TAINT
from gpuhealth.kube import errors
from gpuhealth.kube.client import Client
from gpuhealth.quarantine.target import Desired
from gpuhealth.quarantine.writer import AppliedAction


def test_silence_returns_after_an_outage(plane: ControlPlane, pool: Pool) -> None:
    """Once the watch goes on, a healthy node is silent again: no reads instead of the watch."""
    node = pool.node()

    async def run() -> None:
        async with FaultyProxy(plane) as proxy, Client.from_kubeconfig(proxy.kubeconfig, attempts=1) as client:
            write = writer(client, node)
            async with watching(write):
                await write.apply(HEALTHY)
                proxy.fail("reset", times=-1)
                proxy.break_streams()
                await until(lambda: not write.node.following)
                with pytest.raises(errors.UnavailableError):
                    await write.apply(HEALTHY)
                proxy.heal()
                await until(lambda: write.node.following)
                client.calls.clear()
                assert await write.apply(HEALTHY) == []
                assert client.calls == {}

    asyncio.run(run())


def test_conflicts_are_resolved(plane: ControlPlane, pool: Pool) -> None:
    """Somebody else's write in between is read and respected, not overwritten."""
    node = pool.node()
    pool.budget(1)
    theirs = {"key": "theirs", "value": "x", "effect": "NoSchedule"}

    async def run() -> None:
        async with FaultyProxy(plane) as proxy, Client.from_kubeconfig(proxy.kubeconfig) as client:
            write = writer(client, node)
            async with watching(write):
                # The watch is cut off and kept off, so that what the writer has seen is old.
                proxy.fail(503, path="watch=true", times=-1)
                proxy.break_streams()
                write.node.following = True
                pool.patch(node, {"spec": {"taints": [theirs]}})
                await write.apply(SICK)
        assert [taint["key"] for taint in pool.get(node)["spec"]["taints"]] == ["theirs", TAINT]

    asyncio.run(run())


def test_conflicts_are_bounded(plane: ControlPlane, pool: Pool) -> None:
    """A Node that changes all the time ends in an error for the caller, not in a loop."""
    node = pool.node()

    async def run() -> None:
        async with FaultyProxy(plane) as proxy, Client.from_kubeconfig(proxy.kubeconfig) as client:
            proxy.fail(409, method="PATCH", times=-1)
            with pytest.raises(errors.ConflictError):
                await writer(client, node).apply(HEALTHY)

    asyncio.run(run())


STEPS: list[Callable[[FaultyProxy], None]] = [
    lambda proxy: proxy.fail("lost", method="POST", path="/leases", times=1),
    lambda proxy: proxy.fail("reset", method="POST", path="/leases", times=-1),
    lambda proxy: proxy.fail(503, method="PATCH", path="/api/v1/nodes/", times=-1),
    lambda proxy: proxy.fail("lost", method="PATCH", path="/api/v1/nodes/", times=1),
    lambda proxy: proxy.fail(500, method="PATCH", path="/status", times=-1),
    lambda proxy: proxy.fail(429, method="POST", path="/events", times=-1),
    lambda proxy: proxy.fail(503, method="POST", path="/gpuhealthreports", times=-1),
    lambda proxy: proxy.fail("reset", times=-1),
]
NO_SLOT = 1
"""The step at which no slot can be requested: the writer tries again after a while."""
ALSO_WHEN_BLOCKED = {"label", "condition", "report"}


@pytest.mark.parametrize("step", range(len(STEPS)))
def test_outage_at_every_step(plane: ControlPlane, pool: Pool, step: int) -> None:
    """Wherever the API server goes away, a later call ends in the same state, with one slot and no act twice."""
    node = pool.node()
    pool.budget(9)
    actions: list[AppliedAction] = []

    async def run() -> None:
        async with FaultyProxy(plane) as proxy, Client.from_kubeconfig(proxy.kubeconfig, attempts=2) as client:
            write = writer(client, node, on_action=actions.append)
            STEPS[step](proxy)
            with suppress(errors.UnavailableError, errors.TooManyRequestsError):
                await write.apply(SICK)
            proxy.heal()
            if step == NO_SLOT:
                await asyncio.sleep(write.retry_in or 0)
            await write.apply(SICK)
            assert await write.apply(SICK) == []
        assert ours(pool, node) == ["xid.79"]
        assert health(pool, node)["status"] == "False"
        assert list(pool.slots().values()) == [node]
        before = {"QuarantineBlocked", "Xid79"} if step == NO_SLOT else set()  # while no slot could be sought
        assert {event["reason"] for event in pool.events(node)} == {"Quarantined"} | before
        assert pool.report(node)["status"]["quarantine"]["state"] == "quarantined"
        twice = {"event"} | (ALSO_WHEN_BLOCKED if step == NO_SLOT else set())
        kinds = [action.kind for action in actions if action.kind not in twice]
        assert len(kinds) == len(set(kinds))

    asyncio.run(run())


def test_crash_between_place_and_taint(plane: ControlPlane, pool: Pool) -> None:
    """A slot that a crash left behind is used by the next agent, or given back if the fault is gone."""
    pool.budget(9)
    for desired, held in ((SICK, 1), (HEALTHY, 0)):
        node = pool.node()

        async def run(desired: Desired = desired, held: int = held, node: str = node) -> None:
            async with FaultyProxy(plane) as proxy, Client.from_kubeconfig(proxy.kubeconfig, attempts=1) as client:
                proxy.fail("reset", method="PATCH", times=-1)
                with pytest.raises(errors.UnavailableError):
                    await writer(client, node).apply(SICK)
                assert list(pool.slots().values()).count(node) == 1
                proxy.heal()
                await writer(client, node).apply(desired)
                assert list(pool.slots().values()).count(node) == held

        asyncio.run(run())


def test_places_lost_are_taken_again(plane: ControlPlane, pool: Pool) -> None:
    """If the Leases were deleted under a node that is out, its next agent takes a slot again."""
    node = pool.node()
    pool.budget(9)

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            await writer(client, node).apply(SICK)
            for name in pool.slots():
                plane.request("DELETE", f"/apis/coordination.k8s.io/v1/namespaces/gpuhealth/leases/{name}")
            await writer(client, node).apply(SICK)
            assert list(pool.slots().values()) == [node]

    asyncio.run(run())


def test_latest_wish_wins_after_an_outage(plane: ControlPlane, pool: Pool) -> None:
    """What was wanted during the outage is not replayed: only what is wanted now is done."""
    node = pool.node()
    pool.budget(1)

    async def run() -> None:
        async with FaultyProxy(plane) as proxy, Client.from_kubeconfig(proxy.kubeconfig, attempts=1) as client:
            write = writer(client, node)
            proxy.fail("reset", times=-1)
            with pytest.raises(errors.UnavailableError):
                await write.apply(SICK)
            proxy.heal()
            acts = await write.apply(HEALTHY)
            assert [act.kind for act in acts] == ["label", "condition", "report"]

    asyncio.run(run())
