"""Slots and time: windows, clocks that are off, the API server's time, and requests that are done late."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta

import pytest
from kube import ControlPlane
from testing.cluster_objects import Pool
from testing.node_writing import HEALTHY, SICK

from gpuhealth.kube.client import Client
from gpuhealth.kube.kinds import LEASES
from gpuhealth.kube.objects import parse_time
from gpuhealth.monitors.settings import Settings
from gpuhealth.quarantine.own_node import OwnNode
from gpuhealth.quarantine.slots.holder import Admitted, Blocked, SlotHolder
from gpuhealth.quarantine.writer import NodeWriter

NAMESPACE = "gpuhealth"


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.time = datetime.now(UTC)

    def __call__(self) -> datetime:
        """The time it is set to."""
        return self.time


def test_written_anew_in_the_same_moment(plane: ControlPlane, pool: Pool) -> None:
    """A slot that is used again is another version of it, whatever the clock says: who is about to free the last one
    fails."""
    pool.budget(1)
    clock = Clock()

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            versions, name = [], f"{pool.name}-n"
            for _ in range(3):
                holder = SlotHolder(client, NAMESPACE, name, now=clock)
                assert isinstance(await holder.acquire(pool.labels, "x"), Admitted)
                versions.append((await client.get(LEASES, f"{pool.name}.0", NAMESPACE))["metadata"]["resourceVersion"])
            assert len(set(versions)) == 3

    asyncio.run(run())


def test_window(plane: ControlPlane, pool: Pool) -> None:
    """Going out counts for the whole window, also when the node is back; then the slot may be taken over."""
    pool.budget(10, maxPerWindow=2, window="1h")
    clock = Clock()

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            nodes = [SlotHolder(client, NAMESPACE, f"n{k}", now=clock) for k in range(4)]
            for node in nodes[:2]:
                assert isinstance(await node.acquire(pool.labels, "xid.79"), Admitted)
                await node.release()
            held = await nodes[2].acquire(pool.labels, "xid.79")
            assert isinstance(held, Blocked)
            assert "within 3600 s" in held.reason
            assert sorted(pool.slots()) == [f"{pool.name}.window.0", f"{pool.name}.window.1"]
            clock.time += timedelta(hours=1)
            outcomes = await asyncio.gather(*[node.acquire(pool.labels, "xid.79") for node in nodes])
            assert sum(isinstance(outcome, Admitted) for outcome in outcomes) == 2

    asyncio.run(run())


@pytest.mark.parametrize("looks", range(2, 8))
def test_an_estimate_of_the_time_that_goes_back(plane: ControlPlane, pool: Pool, looks: int) -> None:
    """A slot is taken over at a time at which it has expired, also when the next estimate of the time is
    earlier: after any number of looks at the clock."""
    pool.budget(10, maxPerWindow=1, window="1h")
    began = datetime.now(UTC)
    expired = began + timedelta(hours=1)
    late = iter([expired] * looks)

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            first = SlotHolder(client, NAMESPACE, "first", now=lambda: began)
            assert isinstance(await first.acquire(pool.labels, "xid.79"), Admitted)
            await first.release()
            second = SlotHolder(client, NAMESPACE, "second", now=lambda: next(late, expired - timedelta(seconds=1)))
            outcome = await second.acquire(pool.labels, "xid.79")
            slot = await client.get(LEASES, f"{pool.name}.window.0", NAMESPACE)
            assert isinstance(outcome, Blocked) or parse_time(slot["spec"]["renewTime"]) >= expired

    asyncio.run(run())


@pytest.mark.parametrize("off", [timedelta(days=1), -timedelta(days=1)], ids=str)
def test_a_node_whose_clock_is_off(plane: ControlPlane, pool: Pool, off: timedelta) -> None:
    """It takes over no slot that has not expired, and nobody takes over its own: the API server's time counts."""
    pool.budget(10, maxPerWindow=2, window="1h")
    fine, wrong, other = pool.nodes(3)

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:

            async def goes_out(node: str, error: timedelta) -> bool:
                write = NodeWriter(client, Settings(), OwnNode(client, node), now=lambda: datetime.now(UTC) + error)
                await write.apply(SICK)
                return any(
                    taint["key"] == "gpuhealth.io/unhealthy" for taint in pool.get(node)["spec"].get("taints", [])
                )

            assert await goes_out(fine, timedelta())
            assert await goes_out(wrong, off)
            assert not await goes_out(other, off)
            assert not await goes_out(other, timedelta())
            window = {k: v for k, v in pool.slots().items() if ".window." in k}
            assert sorted(window.values()) == sorted([fine, wrong])
            for node in (fine, wrong):
                await NodeWriter(client, Settings(), OwnNode(client, node)).apply(HEALTHY)

    asyncio.run(run())


def test_the_servers_time(plane: ControlPlane) -> None:
    """It is that of the last answer and the time since; without one, and with one that makes no sense, our own."""

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            assert abs(client.server_time() - datetime.now(UTC)) < timedelta(seconds=30)
            await client.list(LEASES)
            assert abs(client.server_time() - datetime.now(UTC)) < timedelta(seconds=30)
            client._server_date = "Sun, 01 Mar 2026 12:00:00 GMT", time.monotonic() - 60.0
            server_time = client.server_time() - datetime(2026, 3, 1, 12, 1, tzinfo=UTC)
            assert timedelta() <= server_time < timedelta(seconds=30)
            client._server_date = "yesterday", 0.0
            assert abs(client.server_time() - datetime.now(UTC)) < timedelta(seconds=30)

    asyncio.run(run())


def test_a_request_of_a_dead_agent_that_is_done_late(
    plane: ControlPlane, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second slot, taken in our name after we had looked, is given back while we are out."""
    node = pool.node()
    pool.budget(3)
    monkeypatch.setattr("gpuhealth.quarantine.slots.manager.LATE_SECONDS", 0.0)

    async def late(client: Client, but: str) -> None:
        name = next(f"{pool.name}.{k}" for k in range(3) if f"{pool.name}.{k}" != but)
        labels = {"gpuhealth.io/budget": pool.name, "gpuhealth.io/slot-set": "unavailable", "gpuhealth.io/node": node}
        body = {"metadata": {"name": name, "labels": labels}, "spec": {"holderIdentity": node}}
        await client.create(LEASES, body, NAMESPACE)

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            write = NodeWriter(client, Settings(), OwnNode(client, node))
            await write.apply(SICK)
            (slot,) = pool.slots()
            await late(client, slot)
            assert len(pool.slots()) == 2
            await write.apply(SICK)
            assert list(pool.slots().values()) == [node]
            calls = sum(client.calls.values())
            await write.apply(SICK)
            assert sum(client.calls.values()) - calls <= 1, (
                "it is looked for once: what is left is the read of the Node"
            )
            await write.apply(HEALTHY)
            assert pool.slots() == {}

    asyncio.run(run())
