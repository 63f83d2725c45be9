"""What people do to a node: removed taints, overrides, and manual quarantines by annotation."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from kube import ControlPlane
from testing.cluster_objects import Pool, finding, verdict
from testing.node_writing import HEALTHY, SICK, Mode, health, ours, out_by, watching, writer
from testing.waiting import until

from gpuhealth.api.names import DISMISSED, OUT_OF_SERVICE, OVERRIDE, PEOPLE, Override
from gpuhealth.kube.client import Client
from gpuhealth.model.verdict import State
from gpuhealth.monitors.settings import Settings
from gpuhealth.quarantine.marks import restored
from gpuhealth.quarantine.own_node import OwnNode
from gpuhealth.quarantine.target import Desired
from gpuhealth.quarantine.writer import NodeWriter
from gpuhealth.runtime.settings import Quarantine

WHY = "fan is loud (ann)"


def annotate(pool: Pool, node: str, key: str, value: str | None) -> None:
    """What a person does."""
    pool.patch(node, {"metadata": {"annotations": {key: value}}})


def with_writer(pool: Pool, node: str, work: Callable[[NodeWriter], Awaitable[None]]) -> None:
    """Runs with the node's writer."""

    async def run() -> None:
        async with Client.from_kubeconfig(pool.plane.kubeconfig) as client:
            await work(NodeWriter(client, Settings(), OwnNode(client, node)))

    asyncio.run(run())


@pytest.mark.parametrize("limit", [None, 0, 1])
def test_out_and_back(plane: ControlPlane, pool: Pool, limit: int | None) -> None:
    """A healthy node goes out whatever the budgets say, counts where there is a slot, and says why; then back."""
    node = pool.node()
    if limit is not None:
        pool.budget(limit)
    annotate(pool, node, OUT_OF_SERVICE, WHY)

    async def run(writer: NodeWriter) -> None:
        await writer.apply(HEALTHY)
        assert ours(pool, node) == ["manual"]
        assert list(pool.slots().values()) == [node] * (limit or 0)
        assert (health(pool, node)["status"], health(pool, node)["reason"]) == ("True", "OutOfService")
        assert health(pool, node)["message"] == f"manually out of service: {WHY}; no fault found"
        assert pool.get(node)["metadata"]["labels"]["gpuhealth.io/state"] == "quarantined"
        said = pool.report(node)["status"]
        assert (said["verdict"], said["quarantine"]["code"], said["quarantine"]["reason"]) == (
            "healthy",
            "manual",
            WHY,
        )
        assert not said["quarantine"]["drain"]
        version = pool.get(node)["metadata"]["resourceVersion"]
        await writer.apply(HEALTHY)
        assert pool.get(node)["metadata"]["resourceVersion"] == version
        annotate(pool, node, OUT_OF_SERVICE, None)
        await writer.apply(HEALTHY)

    with_writer(pool, node, run)
    assert ours(pool, node) == []
    assert pool.slots() == {}
    assert health(pool, node)["message"] == "no fault found"
    messages = {event["reason"]: event["message"] for event in pool.events(node)}
    assert WHY in messages["Quarantined"]
    assert "QuarantineEnded" in messages


@pytest.mark.parametrize("room", [False, True])
def test_a_fault_outlasts_the_wish(plane: ControlPlane, pool: Pool, room: bool) -> None:
    """After a manual quarantine a node stays out for a finding if a budget has a slot, and only then."""
    node = pool.node()
    budget = pool.budget(0)
    annotate(pool, node, OUT_OF_SERVICE, WHY)

    async def run(writer: NodeWriter) -> None:
        await writer.apply(SICK)
        assert ours(pool, node) == ["manual"]
        if room:
            pool.plane.request(
                "PATCH",
                f"/apis/gpuhealth.io/v1alpha1/quarantinebudgets/{budget}",
                {"spec": {"maxUnavailable": 1}},
                content_type="application/merge-patch+json",
            )
        annotate(pool, node, OUT_OF_SERVICE, None)
        await writer.apply(SICK)

    with_writer(pool, node, run)
    assert ours(pool, node) == (["xid.79"] if room else [])
    assert pool.report(node)["status"]["quarantine"]["state"] == ("quarantined" if room else "blocked")
    assert list(pool.slots().values()) == [node] * room


def test_the_last_hand_wins(plane: ControlPlane, pool: Pool) -> None:
    """`override healthy` and a manually removed taint end a manual quarantine; a later request starts a new one."""
    node = pool.node()
    annotate(pool, node, OUT_OF_SERVICE, WHY)

    async def run(writer: NodeWriter) -> None:
        await writer.apply(HEALTHY)
        annotate(pool, node, OVERRIDE, "healthy")
        await writer.apply(HEALTHY)
        assert ours(pool, node) == []
        annotate(pool, node, OVERRIDE, None)
        await writer.apply(HEALTHY)
        assert ours(pool, node) == ["manual"]
        pool.dismiss(node)
        await writer.apply(HEALTHY)
        await writer.apply(HEALTHY)
        assert ours(pool, node) == []
        assert pool.get(node)["metadata"]["annotations"][DISMISSED] == "manual"
        annotate(pool, node, OUT_OF_SERVICE, None)
        await writer.apply(Desired(verdict=verdict(state=State.UNKNOWN)))
        annotate(pool, node, OUT_OF_SERVICE, "again")
        await writer.apply(Desired(verdict=verdict(state=State.UNKNOWN)))
        assert ours(pool, node) == ["manual"]

    with_writer(pool, node, run)


def test_unknown_does_not_outlast_the_wish(plane: ControlPlane, pool: Pool) -> None:
    """The end of a manual quarantine shows on the Node itself: nothing has to be measured for that."""
    node = pool.node()
    annotate(pool, node, OUT_OF_SERVICE, WHY)

    async def run(writer: NodeWriter) -> None:
        await writer.apply(HEALTHY)
        annotate(pool, node, OUT_OF_SERVICE, None)
        await writer.apply(Desired(verdict=verdict(state=State.UNKNOWN)))

    with_writer(pool, node, run)
    assert ours(pool, node) == []


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2026-03-01T12:00:00Z", "2026-03-01 12:00:00+00:00"),
        ("2026-03-01T12:00:00", "2026-03-01 12:00:00+00:00"),
        ("yes", "None"),
    ],
)
def test_when_it_was_restored(text: str, time: str) -> None:
    """The annotation is a time, in UTC where it says nothing else; anything else says nothing."""
    assert str(restored({"gpuhealth.io/restored": text})) == time


@pytest.mark.parametrize("mode", ["taint", "cordon"])
def test_a_person_ends_it(plane: ControlPlane, pool: Pool, mode: Mode) -> None:
    """A taint or cordon of ours that a person takes away is not put back for that finding, but is for another.

    Nothing shows who uncordoned a node: here the settings take a client without a trace for a person.
    """
    node = pool.node()
    pool.budget(1)
    other = Desired(
        verdict=verdict(finding(), finding("ecc.uncorrectable")), quarantine=("ecc.uncorrectable", "xid.79")
    )
    settings = Settings(mode=mode, quarantine=Quarantine(people=(*PEOPLE, "")))

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:

            async def apply(desired: Desired) -> set[str]:
                return {act.kind for act in await NodeWriter(client, settings, OwnNode(client, node)).apply(desired)}

            await apply(SICK)
            assert out_by(pool, node) == mode
            pool.dismiss(node)
            assert "dismissed" in await apply(SICK)
            for _ in range(2):  # also after another restart
                await apply(SICK)
                assert out_by(pool, node) == "none"
            assert pool.slots() == {}
            assert pool.report(node)["status"]["quarantine"]["state"] == "dismissed"
            await apply(other)
            assert (out_by(pool, node), pool.get(node)["metadata"]["annotations"][DISMISSED]) == (mode, "xid.79")
            await apply(HEALTHY)
            assert DISMISSED not in pool.get(node)["metadata"].get("annotations", {})
            await apply(SICK)
            assert out_by(pool, node) == mode, "the finding was cleared in between: this is a new one"

    asyncio.run(run())


def test_override_healthy(plane: ControlPlane, pool: Pool) -> None:
    """An override ends the quarantine at once and shows in the condition; without it the quarantine returns."""
    node = pool.node()
    pool.budget(1)

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            write = writer(client, node)
            async with watching(write):
                await write.apply(SICK)
                pool.patch(node, {"metadata": {"annotations": {OVERRIDE: "healthy"}}})
                await until(lambda: write.node.override is Override.HEALTHY)
                await write.apply(SICK)
                assert ours(pool, node) == []
                assert (health(pool, node)["status"], health(pool, node)["reason"]) == ("True", "Override")
                assert pool.slots() == {}
                pool.patch(node, {"metadata": {"annotations": {OVERRIDE: None}}})
                await until(lambda: write.node.override is None)
                await write.apply(SICK)
                assert ours(pool, node) == ["xid.79"]

    asyncio.run(run())


def test_override_unmanaged(plane: ControlPlane, pool: Pool) -> None:
    """A node that is not ours to manage is not touched: neither marked nor unmarked; the report is still written."""
    node = pool.node()
    pool.budget(1)
    pool.patch(node, {"metadata": {"annotations": {OVERRIDE: "unmanaged"}}})
    before = pool.get(node)

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            acts = await writer(client, node).apply(SICK)
            assert [act.kind for act in acts] == ["report"]
            assert pool.get(node)["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
            assert pool.slots() == {}

    asyncio.run(run())
