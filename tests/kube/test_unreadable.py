"""Objects that somebody has spoiled: they are logged and counted once, and stop no agent's marks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kube import ControlPlane
from testing.cluster_objects import Pool
from testing.node_writing import HEALTHY, SICK, health, ours, writer
from testing.paths import BASE
from testing.started_plane import started_plane

from gpuhealth.kube.client import Client
from gpuhealth.monitors.settings import Settings
from gpuhealth.quarantine.own_node import OwnNode
from gpuhealth.quarantine.slots.budget import BudgetError, is_counted, selects, slot_sets
from gpuhealth.quarantine.slots.lease import read_slot
from gpuhealth.quarantine.writer import NodeWriter

LEASES = "/apis/coordination.k8s.io/v1/namespaces/gpuhealth/leases"
BUDGETS = "/apis/gpuhealth.io/v1alpha1/quarantinebudgets"
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
TIMES = ["0000-01-01T00:00:00.000000Z", "9999-12-31T23:59:59.000000Z", "2026-03-01T12:00:00.000000+99:99"]


def poison(pool: Pool, name: str, spec: dict[str, Any] | None, *, place_set: str = "unavailable") -> bool:
    """A Lease in the place of a slot; whether the API server takes it."""
    labels = {"gpuhealth.io/budget": pool.name, "gpuhealth.io/slot-set": place_set, "gpuhealth.io/node": "x"}
    body: dict[str, Any] = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease"}
    body |= {"metadata": {"name": name, "labels": labels}} | ({} if spec is None else {"spec": spec})
    try:
        pool.plane.request("POST", LEASES, body)
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize("renewed", TIMES)
@pytest.mark.parametrize("lasts", [None, 1, 2147483647])
def test_a_poisoned_lease(plane: ControlPlane, pool: Pool, renewed: str, lasts: int | None) -> None:
    """A Lease with a time that is none, in every set: another node goes out, too, and the slot counts as taken."""
    node, other = pool.nodes(2)
    pool.budget(2, maxPerWindow=2, maxPerFault=2)
    spec = {"holderIdentity": "x", "renewTime": renewed} | ({} if lasts is None else {"leaseDurationSeconds": lasts})
    sets = {"": "unavailable", ".window": "window", ".fault.xid.79": "fault.xid.79"}
    made = [poison(pool, f"{pool.name}{part}.0", spec, place_set=label) for part, label in sets.items()]
    if not all(made):
        pytest.skip("this API server takes no such time")

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            await writer(client, node).apply(SICK)
            assert ours(pool, node) == ["xid.79"]
            write = writer(client, other)
            for _ in range(2):
                await write.apply(SICK)
            assert ours(pool, other) == [], "the slots of others count as taken"
            assert health(pool, other)["status"] == "False"
            assert client.unreadable.counts.get("Lease", 0) <= 3, "each once"

    try:
        asyncio.run(run())
    finally:
        for part in sets:
            plane.request("DELETE", f"{LEASES}/{pool.name}{part}.0")


@pytest.mark.parametrize("spec", [None, {}, {"holderIdentity": ""}, {"leaseDurationSeconds": 5}], ids=str)
def test_a_lease_that_names_nobody(plane: ControlPlane, pool: Pool, spec: dict[str, Any] | None) -> None:
    """It counts as a taken slot that nobody releases: logged once, and the others are used."""
    node, other = pool.nodes(2)
    pool.budget(2, maxPerWindow=2)
    assert poison(pool, f"{pool.name}.0", spec)

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            first, second = writer(client, node), writer(client, other)
            await first.apply(SICK)
            await second.apply(SICK)
            assert (ours(pool, node), ours(pool, other)) == (["xid.79"], [])
            assert client.unreadable.counts["Lease"] == 1
            await first.apply(HEALTHY)

    try:
        asyncio.run(run())
    finally:
        plane.request("DELETE", f"{LEASES}/{pool.name}.0")


def test_a_lease_of_our_own_that_somebody_has_spoiled(plane: ControlPlane, pool: Pool) -> None:
    """The slot of the node itself with a time that is none is used, and given back."""
    node = pool.node()
    pool.budget(1)
    labels = {"gpuhealth.io/budget": pool.name, "gpuhealth.io/slot-set": "unavailable", "gpuhealth.io/node": node}
    spec = {"holderIdentity": node, "renewTime": TIMES[0]}
    body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "spec": spec}
    plane.request("POST", LEASES, body | {"metadata": {"name": f"{pool.name}.0", "labels": labels}})

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            write = writer(client, node)
            await write.apply(SICK)
            assert ours(pool, node) == ["xid.79"]
            assert list(pool.slots()) == [f"{pool.name}.0"]
            await write.apply(HEALTHY)
            assert pool.slots() == {}

    asyncio.run(run())


# --- budgets of a cluster whose definition bounds nothing ------------------------------------------------------------


@pytest.fixture(scope="module")
def lax() -> Iterator[ControlPlane]:
    """A control plane whose QuarantineBudgets may say anything, as those of an older definition may."""
    with started_plane() as with_lax:
        with_lax.apply(BASE)
        name = "quarantinebudgets.gpuhealth.io"
        path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}"
        found = with_lax.request("GET", path)
        schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        found["spec"]["versions"][0]["schema"] = {"openAPIV3Schema": schema}
        with_lax.request("PUT", path, found)
        yield with_lax


SPECS: list[Any] = [
    {"window": "100000d", "maxPerWindow": 1},
    {"window": "99999999999999999999d", "maxPerFault": 1},
    {"window": "0s", "maxPerWindow": 1},
    {"window": "soon", "maxPerWindow": 1},
    {"window": 7, "maxPerWindow": []},
    {"window": None, "maxPerWindow": 1},
    {"maxUnavailable": None},
    {"maxUnavailable": "many"},
    {"maxUnavailable": "nan%"},
    {"maxUnavailable": "1e999%"},
    {"maxUnavailable": {"a": 1}},
    {"maxUnavailable": -3},
]


def applied(lax: ControlPlane, name: str, spec: Any) -> None:
    """Makes the budget, as soon as the definition lets it."""
    body = {"apiVersion": "gpuhealth.io/v1alpha1", "kind": "QuarantineBudget", "metadata": {"name": name}, "spec": spec}
    for attempt in range(100):
        try:
            lax.request("POST", BUDGETS, body)
        except RuntimeError:
            if attempt == 99:
                raise
        else:
            return


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_budget_that_cannot_be_read(lax: ControlPlane, spec: dict[str, Any]) -> None:
    """It allows nothing, with the reason in condition, Event and report; mended, it lets the node go out."""
    pool = Pool(lax)
    node = pool.node()
    applied(lax, pool.name, {"nodeSelector": {"matchLabels": pool.labels}, "maxUnavailable": 1, **spec})

    async def run() -> None:
        async with Client.from_kubeconfig(lax.kubeconfig) as client:
            write = NodeWriter(client, Settings(), OwnNode(client, node))
            for _ in range(2):
                await write.apply(SICK)
            assert ours(pool, node) == []
            assert f"stays in service: budget {pool.name} " in health(pool, node)["message"]
            assert pool.name in pool.report(node)["status"]["quarantine"]["reason"]
            assert client.unreadable.counts.get("QuarantineBudget", 0) <= 1
            change = {"spec": {"maxUnavailable": 1, "window": "1h", "maxPerWindow": None, "maxPerFault": None}}
            lax.request("PATCH", f"{BUDGETS}/{pool.name}", change, content_type="application/merge-patch+json")
            again = NodeWriter(client, Settings(), OwnNode(client, node))
            await again.apply(SICK)
            assert ours(pool, node) == ["xid.79"]

    try:
        asyncio.run(run())
    finally:
        lax.request("DELETE", f"{BUDGETS}/{pool.name}")
        pool.remove()


@pytest.mark.parametrize(
    "spec",
    [None, {}, {"nodeSelector": 5}, {"nodeSelector": {"matchExpressions": [{"key": "pool", "operator": "Near"}]}}],
    ids=str,
)
def test_a_budget_that_selects_nobody_knows_what(lax: ControlPlane, spec: Any) -> None:
    """One whose selector cannot be read is left out, counted once, and keeps no node of another budget in service."""
    pool = Pool(lax)
    node = pool.node()
    applied(lax, f"{pool.name}-odd", spec)
    applied(lax, pool.name, {"nodeSelector": {"matchLabels": pool.labels}, "maxUnavailable": 1})

    async def run() -> None:
        async with Client.from_kubeconfig(lax.kubeconfig) as client:
            await NodeWriter(client, Settings(), OwnNode(client, node)).apply(SICK)
            assert ours(pool, node) == ["xid.79"]
            assert client.unreadable.counts == {"QuarantineBudget": 1}

    try:
        asyncio.run(run())
    finally:
        for name in (pool.name, f"{pool.name}-odd"):
            lax.request("DELETE", f"{BUDGETS}/{name}")
        pool.remove()


# --- whatever can be written -----------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["5%", "1h", *TIMES]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
SPEC_KEYS = ["nodeSelector", "maxUnavailable", "maxPerWindow", "maxPerFault", "window", "matchLabels"]
LEASE_KEYS = ["holderIdentity", "renewTime", "acquireTime", "leaseDurationSeconds"]


def some(keys: list[str]) -> st.SearchStrategy[Any]:
    """Anything, most of the time with keys that mean something."""
    return VALUES | st.dictionaries(st.sampled_from(keys), VALUES, max_size=len(keys))


@given(spec=some(SPEC_KEYS), status=VALUES, selected=st.booleans())
def test_any_budget(spec: Any, status: Any, selected: bool) -> None:
    """Whatever a budget says it is read, or refused with the one error that says so."""
    if selected and isinstance(spec, dict):
        spec["nodeSelector"] = {}
    budget = {"metadata": {"name": "b", "generation": 1}, "spec": spec, "status": status}
    is_counted(budget)
    for read in (lambda: selects(budget, {"a": "1"}), lambda: slot_sets(budget, 7, "xid.79")):
        with suppress(BudgetError):
            read()


@given(spec=some(LEASE_KEYS), labels=VALUES)
def test_any_lease(spec: Any, labels: Any) -> None:
    """Whatever a Lease says its slot is taken; one that cannot be read never runs out."""
    slot = read_slot({"metadata": {"name": "b.0", "labels": labels}, "spec": spec})
    assert not (slot.fault and slot.has_expired(datetime.max.replace(tzinfo=UTC)))
    assert isinstance(slot.holder, str)
    assert isinstance(slot.has_expired(NOW), bool)
