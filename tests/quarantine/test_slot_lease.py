"""The requests for the Leases of slots, as the controller makes them in the name of nodes."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest
from kube import ControlPlane
from testing.cluster_objects import Pool

from gpuhealth.api.names import RESERVED_SLOT_PREFIX
from gpuhealth.kube.client import Client
from gpuhealth.kube.errors import AlreadyExistsError, ConflictError, NotFoundError
from gpuhealth.quarantine.slots.budget import Limit, SlotSet
from gpuhealth.quarantine.slots.lease import Slot, SlotStore

NAMESPACE = "gpuhealth"
GONE = (ConflictError, NotFoundError)  # which of them is a matter of the server's version


def identity(slot: Slot) -> dict[str, str]:
    """The version of a slot's Lease, as a release names it."""
    metadata = slot.lease["metadata"]
    return {"uid": metadata["uid"], "version": metadata["resourceVersion"]}


def test_slots_reserved_for_nodes(plane: ControlPlane, pool: Pool) -> None:
    """A free slot is reserved for a node and counts as that node's; one that is held is not; each is freed once."""
    slot_set = SlotSet(prefix=pool.name, budget=pool.name, kind=Limit.UNAVAILABLE, limit=2)
    name = f"{pool.name}.0"

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            store = SlotStore(client, NAMESPACE)
            assert await store.get(name) is None
            assert await store.reserve(slot_set, name, "n1")
            assert not await store.reserve(slot_set, name, "n2")
            slot = await store.get(name)
            assert slot is not None
            assert (slot.holder, slot.node, slot.prefix) == (f"{RESERVED_SLOT_PREFIX}n1", "n1", pool.name)
            assert slot_set.free_names([name]) == [f"{pool.name}.1"]
            renewed = await store.renew(slot, datetime.now(UTC))
            assert not await store.free(name, **identity(slot)), "another version"
            assert await store.free(name, **identity(renewed))
            assert not await store.free(name, **identity(renewed))
            assert pool.slots() == {}

    asyncio.run(run())


def test_errors_of_a_holder(plane: ControlPlane, pool: Pool) -> None:
    """A holder learns from the error what became of its slot: taken before, changed meanwhile, or gone."""
    slot_set = SlotSet(prefix=pool.name, budget=pool.name, kind=Limit.UNAVAILABLE, limit=1)
    name, now = f"{pool.name}.0", datetime.now(UTC)

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            store = SlotStore(client, NAMESPACE)
            first = await store.take(slot_set, name, "n1", now)
            with pytest.raises(AlreadyExistsError):
                await store.take(slot_set, name, "n2", now)
            second = await store.renew(first, now)
            with pytest.raises(ConflictError):
                await store.renew(first, now)
            with pytest.raises(ConflictError):
                await store.release(name, **identity(first))
            await store.release(name, **identity(second))
            with pytest.raises(GONE):
                await store.renew(second, now)
            with pytest.raises(GONE):
                await store.take_over(slot_set, second, "n2", now)
            with pytest.raises(NotFoundError):
                await store.release(name, **identity(second))

    asyncio.run(run())
