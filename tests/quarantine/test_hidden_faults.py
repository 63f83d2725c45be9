"""A fault that cannot be acted on is reported all the same, whatever happens to the budgets."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from kube import ControlPlane
from kube.proxy import FaultyProxy
from testing.cluster_objects import Pool
from testing.node_writing import HEALTHY, SICK, health, ours, watching, writer
from testing.waiting import until

from gpuhealth.kube.client import Client
from gpuhealth.quarantine.slots.holder import SlotHolder
from gpuhealth.quarantine.writer import NodeWriter

LEASES, BUDGETS = "/leases", "/quarantinebudgets"


def is_told(pool: Pool, node: str, why: str) -> None:
    """Everything that people and programs look at says that the node is sick, in service, and why."""
    assert ours(pool, node) == []
    said = health(pool, node)
    assert (said["status"], said["reason"]) == ("False", "Xid79")
    assert "stays in service: " in said["message"]
    assert why in said["message"]
    events = {event["reason"]: event["message"] for event in pool.events(node)}
    assert why in events["QuarantineBlocked"]
    quarantine = pool.report(node)["status"]["quarantine"]
    assert (quarantine["state"], quarantine["code"]) == ("blocked", "xid.79")
    assert why in quarantine["reason"]
    assert pool.get(node)["metadata"]["labels"]["gpuhealth.io/state"] == "unhealthy"


async def goes_out_later(pool: Pool, write: NodeWriter, node: str) -> None:
    """Once slots can be had again."""
    async with asyncio.timeout(120):
        while not ours(pool, node):
            await asyncio.sleep(write.retry_in or 0)
            await write.apply(SICK)
    assert list(pool.slots().values()) == [node]


@pytest.mark.parametrize("following", [True, False])
@pytest.mark.parametrize("path", [LEASES, BUDGETS])
@pytest.mark.parametrize("what", [400, 403, 404, 409, 422, 429, 500, "reset", "end", "hang"])
def test_slots_that_cannot_be_sought(
    plane: ControlPlane, pool: Pool, monkeypatch: pytest.MonkeyPatch, what: int | str, path: str, following: bool
) -> None:
    """Rights that were revoked, a definition that is missing, a server that refuses, fails or hangs: the fault is
    reported with the reason, and the node goes out when slots can be had."""
    monkeypatch.setattr("gpuhealth.quarantine.slots.manager.REQUEST_TIMEOUT", 1.0)
    node = pool.node()
    pool.budget(3)

    async def run() -> None:
        async with FaultyProxy(plane) as proxy, Client.from_kubeconfig(proxy.kubeconfig, attempts=2) as client:
            write = writer(client, node)

            async def sicken() -> None:
                proxy.fail(what, path=path, times=-1)
                await write.apply(SICK)
                is_told(pool, node, "no budget slot can be requested: ")
                assert write.blocked is not None
                assert (write.blocked.limit, write.blocked.code) == ("error", "xid.79")
                assert write.retry_in is not None
                proxy.heal()
                await goes_out_later(pool, write, node)

            if following:
                async with watching(write):
                    await sicken()
            else:
                await sicken()

    asyncio.run(run())


@pytest.mark.parametrize(
    "error", [RuntimeError("bug"), KeyError("spec"), ValueError("year 0 is out of range")], ids=repr
)
@pytest.mark.parametrize("method", ["acquire", "recall", "_take"])
def test_a_fault_of_our_own(
    plane: ControlPlane, pool: Pool, monkeypatch: pytest.MonkeyPatch, error: Exception, method: str
) -> None:
    """An unexpected exception while slots are requested hides no fault either."""
    node = pool.node()
    pool.budget(3)

    async def fails(*_: Any) -> Any:
        raise error

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            write = writer(client, node)
            with monkeypatch.context() as patched:
                patched.setattr(SlotHolder, method, fails)
                await write.apply(SICK)
            is_told(pool, node, f"unexpected {error!r}")
            await goes_out_later(pool, write, node)

    asyncio.run(run())


@pytest.mark.parametrize("sick", [False, True])
@pytest.mark.parametrize("what", [403, "hang"])
def test_slots_that_cannot_be_looked_at(
    plane: ControlPlane, pool: Pool, monkeypatch: pytest.MonkeyPatch, what: int | str, sick: bool
) -> None:
    """A healthy node and one that is out already say how they are, also where an agent starts that may see no Lease."""
    monkeypatch.setattr("gpuhealth.quarantine.slots.manager.REQUEST_TIMEOUT", 1.0)
    node = pool.node()
    pool.budget(3)

    async def run() -> None:
        async with FaultyProxy(plane) as proxy, Client.from_kubeconfig(proxy.kubeconfig, attempts=2) as client:
            if sick:
                await writer(client, node).apply(SICK)
            proxy.fail(what, path=LEASES, times=-1)
            await writer(client, node).apply(HEALTHY)
            assert ours(pool, node) == []
            assert health(pool, node)["status"] == "True"
            assert pool.report(node)["status"]["verdict"] == "healthy"
            proxy.heal()
            write = writer(client, node)
            await write.apply(HEALTHY)
            assert pool.slots() == {}, "what it held is given back when that can be done"
            assert write.is_settled

    asyncio.run(run())


def test_out_for_a_person_without_slots(plane: ControlPlane, pool: Pool) -> None:
    """A manual quarantine needs no slot: it works where none can be requested."""
    node = pool.node()
    pool.patch(node, {"metadata": {"annotations": {"gpuhealth.io/out-of-service": "fan is loud"}}})

    async def run() -> None:
        async with FaultyProxy(plane) as proxy, Client.from_kubeconfig(proxy.kubeconfig, attempts=2) as client:
            proxy.fail(403, path=LEASES, times=-1)
            await writer(client, node).apply(HEALTHY)
            assert ours(pool, node) == ["manual"]

    asyncio.run(run())


def test_no_loop_while_it_fails(plane: ControlPlane, pool: Pool) -> None:
    """What fails again and again is tried less and less often, and asked for in between not at all."""
    node = pool.node()
    pool.budget(3)

    async def run() -> None:
        async with FaultyProxy(plane) as proxy, Client.from_kubeconfig(proxy.kubeconfig, attempts=1) as client:
            write = writer(client, node)
            async with watching(write):
                proxy.fail(403, path=LEASES, times=-1)
                await write.apply(SICK)
                for _ in range(6):
                    await asyncio.sleep(write.retry_in or 0)
                    await write.apply(SICK)
                before = len(proxy.seen)
                for _ in range(20):
                    await write.apply(SICK)
                assert len(proxy.seen) == before
                await until(lambda: write.retry_in is not None)

    asyncio.run(run())
