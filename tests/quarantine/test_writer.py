"""The writer on a real API server: what is written, in which order, how often, and what survives."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from kube import ControlPlane
from testing.cluster_objects import Pool, finding, verdict
from testing.node_writing import HEALTHY, SICK, health, ours, watching, writer, writes

from gpuhealth.api.names import QUARANTINE, STATE_LABEL
from gpuhealth.kube import errors
from gpuhealth.kube.client import Client
from gpuhealth.model.verdict import State
from gpuhealth.quarantine.target import Desired
from gpuhealth.quarantine.writer import MAX_DEFERRAL, AppliedAction


def test_quarantine_and_recovery(plane: ControlPlane, pool: Pool) -> None:
    """Slot, taint, condition, Events and report, in this order; recovery takes all of it back but the condition."""
    node = pool.node()
    pool.budget(1)
    reported: list[AppliedAction] = []

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            write = writer(client, node, on_action=reported.append)
            acts = await write.apply(SICK)
            assert [act.kind for act in acts] == ["slot_taken", "taint", "label", "condition", "event", "report"]
            assert acts == reported
            assert ours(pool, node) == ["xid.79"]
            assert (health(pool, node)["status"], health(pool, node)["reason"]) == ("False", "Xid79")
            assert pool.get(node)["metadata"]["labels"][STATE_LABEL] == "quarantined"
            assert pool.slots() == {f"{pool.name}.0": node}
            assert [event["reason"] for event in pool.events(node)] == ["Quarantined"]
            status = pool.report(node)["status"]
            assert status["quarantine"] | {"since": ""} == {
                "state": "quarantined",
                "mark": "taint",
                "code": "xid.79",
                "since": "",
                "drain": True,
                "budget": "",
                "limit": "",
                "reason": "",
                "slots": [f"{pool.name}.0"],
            }
            acts = await write.apply(HEALTHY)
            assert [act.kind for act in acts][:4] == ["untaint", "label", "slot_released", "condition"]
            assert ours(pool, node) == []
            assert QUARANTINE not in pool.get(node)["metadata"].get("annotations", {})
            assert health(pool, node)["status"] == "True"
            assert pool.slots() == {}

    asyncio.run(run())


def test_cost_of_a_quarantine(plane: ControlPlane, pool: Pool) -> None:
    """One write for the slot, two for the Node, an Event, one for the report; two reads, of the budgets."""
    node = pool.node()
    pool.budget(3)
    pool.counted()

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            write = writer(client, node)
            async with watching(write):
                await write.apply(HEALTHY)
                client.calls.clear()
                await write.apply(SICK)
                assert writes(client) == 5
                assert client.calls["GET", 200] == 2, "the list of budgets, before the slot was taken and after that"

    asyncio.run(run())


def test_healthy_node_writes_once_then_nothing(plane: ControlPlane, pool: Pool) -> None:
    """The first healthy verdict is written; after that there is not one request but the watch."""
    node = pool.node()

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            write = writer(client, node)
            async with watching(write):
                first = await write.apply(HEALTHY)
                assert [act.kind for act in first] == ["label", "condition", "report"]
                client.calls.clear()
                for _ in range(20):
                    assert await write.apply(HEALTHY) == []
                assert client.calls == {}
            again = writer(client, node)
            assert await again.apply(HEALTHY) == [], "nor after a restart"
            assert writes(client) == 0
        assert pool.events(node) == []

    asyncio.run(run())


def test_audited_silence(plane: ControlPlane, pool: Pool) -> None:
    """The audit log of the API server shows no writes for a healthy node."""
    node = pool.node()

    def audited() -> int:
        reads = {"get", "list", "watch"}
        return sum(node in event["requestURI"] and event["verb"] not in reads for event in plane.audit(node))

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            write = writer(client, node)
            async with watching(write):
                await write.apply(HEALTHY)
                before = audited()
                for _ in range(20):
                    await write.apply(HEALTHY)
                assert audited() == before

    asyncio.run(run())


def test_other_peoples_taints_and_cordons_stay(plane: ControlPlane, pool: Pool) -> None:
    """Neither quarantine nor recovery touches them, even when they change under our hands."""
    node = pool.node()
    pool.budget(1)
    theirs = {"key": "theirs", "value": "x", "effect": "NoExecute"}
    pool.patch(node, {"spec": {"taints": [theirs], "unschedulable": True}})

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            write = writer(client, node, "cordon")
            await write.apply(SICK)
            assert theirs in pool.get(node)["spec"]["taints"]
            await write.apply(HEALTHY)
            assert theirs in pool.get(node)["spec"]["taints"]
            assert pool.get(node)["spec"]["unschedulable"] is True

    asyncio.run(run())


def test_cordon_is_undone_by_who_did_it(plane: ControlPlane, pool: Pool) -> None:
    """In mode cordon the node is cordoned by us, and uncordoned by us."""
    node = pool.node()
    pool.budget(1)

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            await writer(client, node, "cordon").apply(SICK)
            assert pool.get(node)["spec"]["unschedulable"] is True
            await writer(client, node, "cordon").apply(HEALTHY)
            assert "unschedulable" not in pool.get(node)["spec"]

    asyncio.run(run())


def test_a_patient_writer_tells_later(plane: ControlPlane, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where marking took long the taint is there at once, and condition, Event and report come when they are due."""
    node = pool.node()
    pool.budget(1)
    monkeypatch.setattr("random.uniform", lambda _, longest: longest)

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            write = writer(client, node)
            answer = client.request

            async def slow(*arguments: Any, **options: Any) -> Any:
                await asyncio.sleep(0.3)
                return await answer(*arguments, **options)

            client.request = slow  # type: ignore[method-assign]
            acts = await write.apply(SICK, defer_status=True)
            client.request = answer  # type: ignore[method-assign]
            assert [act.kind for act in acts] == ["slot_taken", "taint", "label"]
            assert ours(pool, node) == ["xid.79"]
            assert pool.events(node) == []
            assert (write.retry_in or 0) <= MAX_DEFERRAL
            async with asyncio.timeout(120):
                while not write.is_settled:
                    await asyncio.sleep(write.retry_in or 0)
                    acts += await write.apply(SICK, defer_status=True)
            assert [act.kind for act in acts] == ["slot_taken", "taint", "label", "condition", "event", "report"]
            assert health(pool, node)["status"] == "False"
            assert pool.report(node)["status"]["quarantine"]["state"] == "quarantined"

    asyncio.run(run())


def test_unknown_lifts_nothing(plane: ControlPlane, pool: Pool) -> None:
    """Silence is no evidence: a verdict of unknown keeps the taint."""
    node = pool.node()
    pool.budget(1)

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            await writer(client, node).apply(SICK)
            await writer(client, node).apply(Desired(verdict=verdict(state=State.UNKNOWN)))
            assert ours(pool, node) == ["xid.79"]
            assert health(pool, node)["status"] == "Unknown"

    asyncio.run(run())


@pytest.mark.parametrize("dry_run", [True, False])
def test_observe_and_dry_run_mark_nothing(plane: ControlPlane, pool: Pool, dry_run: bool) -> None:
    """What would have been done is returned, reported once, and in the report; the Node is unchanged."""
    node = pool.node()
    pool.budget(1)
    before = pool.get(node)["metadata"]["resourceVersion"]
    reported: list[AppliedAction] = []

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            write = writer(client, node, "taint" if dry_run else "observe", dry_run=dry_run, on_action=reported.append)
            for _ in range(2):
                acts = await write.apply(SICK)
                assert [act.kind for act in acts if not act.done] == ["taint", "label", "condition"]
            assert [act.kind for act in reported if not act.done] == ["taint", "label", "condition"]
            assert pool.get(node)["metadata"]["resourceVersion"] == before
            assert pool.slots() == {}
            if dry_run:
                assert writes(client) == 0
            else:
                assert "taint gpuhealth.io/unhealthy xid.79" in pool.report(node)["status"]["wouldDo"]

    asyncio.run(run())


def test_worse_finding_changes_the_taint(plane: ControlPlane, pool: Pool) -> None:
    """The taint's value is the worst code; since when the node is out does not change."""
    node = pool.node()
    pool.budget(1)
    worse = Desired(
        verdict=verdict(finding(), finding("ecc.uncorrectable")), quarantine=("ecc.uncorrectable", "xid.79")
    )

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            write = writer(client, node)
            await write.apply(SICK)
            since = pool.report(node)["status"]["quarantine"]["since"]
            await write.apply(worse)
            assert ours(pool, node) == ["ecc.uncorrectable"]
            assert pool.report(node)["status"]["quarantine"]["since"] == since
            assert len(pool.slots()) == 1

    asyncio.run(run())


def test_long_messages_are_whole(plane: ControlPlane, pool: Pool) -> None:
    """The API server takes a condition message of the greatest length, and it is complete."""
    node = pool.node()
    many = verdict(*[finding(f"xid.{k}", message="m" * 150) for k in range(190)])

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            await writer(client, node).apply(Desired(verdict=many))
        assert health(pool, node)["message"].count("m" * 150) == 190
        assert len(pool.report(node)["status"]["findings"]) == 190

    asyncio.run(run())


def test_node_that_is_gone(plane: ControlPlane, pool: Pool) -> None:
    """Without a Node there is nothing to mark, and the caller gets an error."""

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            with pytest.raises(errors.NotFoundError):
                await writer(client, "no-such-node").apply(SICK)

    asyncio.run(run())
