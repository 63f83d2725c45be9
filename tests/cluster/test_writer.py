"""The writer on a real API server: what is written, in which order, how often, and what survives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import pytest
from kube import ControlPlane
from kube.proxy import FaultyProxy

from gpuhealth.cluster import errors
from gpuhealth.cluster.client import Client
from gpuhealth.cluster.kinds import OVERRIDE, QUARANTINE, RELEASED, STATE_LABEL, TAINT
from gpuhealth.cluster.node import Act, Desired, Override
from gpuhealth.cluster.report import Facts, Gpu, Inventory
from gpuhealth.cluster.writer import FIRST_HELD, LONGEST_PATIENCE, NodeWriter
from gpuhealth.config import Settings
from gpuhealth.model import Severity, State
from tests.cluster.builders import Pool, finding, until, verdict

HEALTHY = Desired(verdict())
SICK = Desired(verdict(finding()), ("xid.79",), drain=True)
Mode = Literal["observe", "taint", "cordon"]


def settings(mode: Mode = "taint") -> Settings:
    """Settings in which only the mode matters."""
    return Settings(mode=mode)


def writer(client: Client, node: str, mode: Mode = "taint", **options: Any) -> NodeWriter:
    """A writer for the node."""
    return NodeWriter(client, settings(mode), node, **options)


def writes(client: Client) -> int:
    """How many attempts were not reads."""
    return sum(count for (method, _), count in client.calls.items() if method not in {"GET", "WATCH"})


def ours(pool: Pool, node: str) -> list[str]:
    """The values of our taint on the node."""
    return [taint["value"] for taint in pool.get(node)["spec"].get("taints", []) if taint["key"] == TAINT]


def health(pool: Pool, node: str) -> dict[str, str]:
    """Our condition on the node."""
    conditions = pool.get(node)["status"]["conditions"]
    return next(condition for condition in conditions if condition["type"] == "GPUHealthy")


@asynccontextmanager
async def watching(writing: NodeWriter) -> AsyncIterator[None]:
    """Follow the Node meanwhile, as the agent does."""
    task = asyncio.create_task(writing.node.follow())
    try:
        await until(lambda: writing.node.labels)
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def test_quarantine_and_recovery(plane: ControlPlane, pool: Pool) -> None:
    """Place, taint, condition, Events and report, in this order; recovery takes all of it back but the condition."""
    node = pool.node()
    pool.budget(1)
    told: list[Act] = []

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            write = writer(client, node, on_act=told.append)
            acts = await write.apply(SICK)
            assert [act.kind for act in acts] == ["place", "taint", "label", "condition", "event", "report"]
            assert acts == told
            assert ours(pool, node) == ["xid.79"]
            assert (health(pool, node)["status"], health(pool, node)["reason"]) == ("False", "Xid79")
            assert pool.get(node)["metadata"]["labels"][STATE_LABEL] == "quarantined"
            assert pool.places() == {f"{pool.name}.0": node}
            assert [event["reason"] for event in pool.events(node)] == ["Quarantined"]
            status = pool.report(node)["status"]
            assert status["quarantine"] | {"since": ""} == {
                "state": "quarantined",
                "code": "xid.79",
                "since": "",
                "drain": True,
                "budget": "",
                "limit": "",
                "reason": "",
                "places": [f"{pool.name}.0"],
            }
            acts = await write.apply(HEALTHY)
            assert [act.kind for act in acts][:4] == ["untaint", "label", "give_back", "condition"]
            assert ours(pool, node) == []
            assert QUARANTINE not in pool.get(node)["metadata"].get("annotations", {})
            assert health(pool, node)["status"] == "True"
            assert pool.places() == {}

    asyncio.run(run())


def test_cost_of_a_quarantine(plane: ControlPlane, pool: Pool) -> None:
    """One write for the place, two for the Node, an Event, one for the report; one read, of the budgets."""
    node = pool.node()
    pool.budget(3)

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            write = writer(client, node)
            async with watching(write):
                await write.apply(HEALTHY)
                client.calls.clear()
                await write.apply(SICK)
                assert writes(client) == 5
                assert client.calls["GET", 200] == 1, "the list of budgets"

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


def test_audited_silence(plane: ControlPlane, pool: Pool) -> None:
    """The API server's own audit log says the same of a healthy node."""
    node = pool.node()

    def audited() -> int:
        requests = [e for e in plane.audit() if node in e["requestURI"] and e["verb"] not in {"get", "list", "watch"}]
        return len(requests)

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


@pytest.mark.parametrize("mode", ["taint", "cordon"])
def test_a_person_ends_it(plane: ControlPlane, pool: Pool, mode: Mode) -> None:
    """A taint or cordon of ours that a person takes away is not put back for that finding, but is for another."""
    node = pool.node()
    pool.budget(1)
    other = Desired(verdict(finding(), finding("ecc.uncorrectable")), ("ecc.uncorrectable", "xid.79"))

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            await writer(client, node, mode).apply(SICK)
            pool.patch(node, {"spec": {"taints": None} if mode == "taint" else {"unschedulable": None}})
            acts = await writer(client, node, mode).apply(SICK)
            assert "released" in {act.kind for act in acts}
            for _ in range(2):  # also after another restart
                await writer(client, node, mode).apply(SICK)
                assert ours(pool, node) == []
                assert "unschedulable" not in pool.get(node)["spec"]
            assert pool.places() == {}
            assert pool.report(node)["status"]["quarantine"]["state"] == "released"
            await writer(client, node, mode).apply(other)
            assert ours(pool, node) == ["ecc.uncorrectable"]
            await writer(client, node, mode).apply(HEALTHY)
            assert RELEASED not in pool.get(node)["metadata"].get("annotations", {})
            await writer(client, node, mode).apply(SICK)
            assert ours(pool, node) == ["xid.79"], "the finding was cleared in between: this is a new one"

    asyncio.run(run())


def test_override_healthy(plane: ControlPlane, pool: Pool) -> None:
    """A person's word lifts the quarantine at once and says so in the condition; without it, it is back."""
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
                assert pool.places() == {}
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
            assert pool.places() == {}

    asyncio.run(run())


def test_held_by_the_budget(plane: ControlPlane, pool: Pool) -> None:
    """Without a place: condition False, no taint, an Event, the budget's name; admitted when a place is free."""
    one, two = pool.nodes(2)
    pool.budget(1)

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            first, second = writer(client, one), writer(client, two)
            await first.apply(SICK)
            acts = await second.apply(SICK)
            assert "held" in {act.kind for act in acts}
            held = second.held
            assert held is not None
            assert (held[0].budget, held[0].limit, held[1]) == (pool.name, "maxUnavailable", "xid.79")
            assert ours(pool, two) == []
            assert health(pool, two)["status"] == "False"
            assert pool.report(two)["status"]["quarantine"]["budget"] == pool.name
            assert "QuarantineHeld" in {event["reason"] for event in pool.events(two)}
            assert await second.apply(SICK) == []
            await first.apply(HEALTHY)
            async with asyncio.timeout(120):
                while not ours(pool, two):
                    await asyncio.sleep(second.retry_in or 0)
                    await second.apply(SICK)
            assert second.held is None
            assert second.retry_in is None

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
                assert each.held is not None
                assert (each.retry_in or 0) <= FIRST_HELD
            pool.budget(3)

            async def persist(each: NodeWriter) -> None:
                while True:
                    await asyncio.sleep(each.retry_in or FIRST_HELD)
                    await each.apply(SICK)

            trying = [asyncio.create_task(persist(each)) for each in writers]
            await until(lambda: sum(bool(ours(pool, node)) for node in nodes) == 3, seconds=120)
            for task in trying:
                task.cancel()
            await asyncio.gather(*trying, return_exceptions=True)
            assert sorted(each.held is None for each in writers) == [False, True, True, True]

    asyncio.run(run())


def test_a_patient_writer_tells_later(plane: ControlPlane, pool: Pool) -> None:
    """Where marking took long the taint is there at once, and condition, Event and report come when they are due."""
    node = pool.node()
    pool.budget(1)

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            write = writer(client, node)
            answer = client.request

            async def slow(*arguments: Any, **options: Any) -> Any:
                await asyncio.sleep(1.0)
                return await answer(*arguments, **options)

            client.request = slow  # type: ignore[method-assign]
            acts = await write.apply(SICK, patient=True)
            client.request = answer  # type: ignore[method-assign]
            assert [act.kind for act in acts] == ["place", "taint", "label"]
            assert ours(pool, node) == ["xid.79"]
            assert pool.events(node) == []
            assert (write.retry_in or 0) <= LONGEST_PATIENCE
            async with asyncio.timeout(120):
                while write.retry_in is not None:
                    await asyncio.sleep(write.retry_in)
                    acts += await write.apply(SICK, patient=True)
            assert [act.kind for act in acts] == ["place", "taint", "label", "condition", "event", "report"]
            assert health(pool, node)["status"] == "False"
            assert pool.report(node)["status"]["quarantine"]["state"] == "quarantined"

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


def test_unknown_lifts_nothing(plane: ControlPlane, pool: Pool) -> None:
    """Silence is no evidence: a verdict of unknown keeps the taint."""
    node = pool.node()
    pool.budget(1)

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            await writer(client, node).apply(SICK)
            await writer(client, node).apply(Desired(verdict(state=State.UNKNOWN)))
            assert ours(pool, node) == ["xid.79"]
            assert health(pool, node)["status"] == "Unknown"

    asyncio.run(run())


@pytest.mark.parametrize("dry_run", [True, False])
def test_observe_and_dry_run_mark_nothing(plane: ControlPlane, pool: Pool, dry_run: bool) -> None:
    """What would have been done is returned, told once, and in the report; the Node is as it was."""
    node = pool.node()
    pool.budget(1)
    before = pool.get(node)["metadata"]["resourceVersion"]
    told: list[Act] = []

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            write = writer(client, node, "taint" if dry_run else "observe", dry_run=dry_run, on_act=told.append)
            for _ in range(2):
                acts = await write.apply(SICK)
                assert [act.kind for act in acts if not act.done] == ["taint", "label", "condition"]
            assert [act.kind for act in told if not act.done] == ["taint", "label", "condition"]
            assert pool.get(node)["metadata"]["resourceVersion"] == before
            assert pool.places() == {}
            if dry_run:
                assert writes(client) == 0
            else:
                assert "taint gpuhealth.io/unhealthy xid.79" in pool.report(node)["status"]["wouldDo"]

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


@pytest.mark.parametrize("step", range(len(STEPS)))
def test_outage_at_every_step(plane: ControlPlane, pool: Pool, step: int) -> None:
    """Wherever the API server goes away, a later call ends in the same state, with one place and no act twice."""
    node = pool.node()
    pool.budget(9)
    told: list[Act] = []

    async def run() -> None:
        async with FaultyProxy(plane) as proxy, Client.from_kubeconfig(proxy.kubeconfig, attempts=2) as client:
            write = writer(client, node, on_act=told.append)
            STEPS[step](proxy)
            with suppress(errors.UnavailableError, errors.TooManyRequestsError):
                await write.apply(SICK)
            proxy.heal()
            await write.apply(SICK)
            assert await write.apply(SICK) == []
        assert ours(pool, node) == ["xid.79"]
        assert health(pool, node)["status"] == "False"
        assert list(pool.places().values()) == [node]
        assert [event["reason"] for event in pool.events(node)] == ["Quarantined"]
        assert pool.report(node)["status"]["quarantine"]["state"] == "quarantined"
        kinds = [act.kind for act in told if act.kind != "event"]
        assert len(kinds) == len(set(kinds))

    asyncio.run(run())


def test_crash_between_place_and_taint(plane: ControlPlane, pool: Pool) -> None:
    """A place that a crash left behind is used by the next agent, or given back if the fault is gone."""
    pool.budget(9)
    for desired, held in ((SICK, 1), (HEALTHY, 0)):
        node = pool.node()

        async def run(desired: Desired = desired, held: int = held, node: str = node) -> None:
            async with FaultyProxy(plane) as proxy, Client.from_kubeconfig(proxy.kubeconfig, attempts=1) as client:
                proxy.fail("reset", method="PATCH", times=-1)
                with pytest.raises(errors.UnavailableError):
                    await writer(client, node).apply(SICK)
                assert list(pool.places().values()).count(node) == 1
                proxy.heal()
                await writer(client, node).apply(desired)
                assert list(pool.places().values()).count(node) == held

        asyncio.run(run())


def test_places_lost_are_taken_again(plane: ControlPlane, pool: Pool) -> None:
    """If the Leases were deleted under a node that is out, its next agent takes a place again."""
    node = pool.node()
    pool.budget(9)

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            await writer(client, node).apply(SICK)
            for name in pool.places():
                plane.request("DELETE", f"/apis/coordination.k8s.io/v1/namespaces/gpuhealth/leases/{name}")
            await writer(client, node).apply(SICK)
            assert list(pool.places().values()) == [node]

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


def test_worse_finding_changes_the_taint(plane: ControlPlane, pool: Pool) -> None:
    """The taint's value is the worst code; since when the node is out does not change."""
    node = pool.node()
    pool.budget(1)
    worse = Desired(verdict(finding(), finding("ecc.uncorrectable")), ("ecc.uncorrectable", "xid.79"))

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            write = writer(client, node)
            await write.apply(SICK)
            since = pool.report(node)["status"]["quarantine"]["since"]
            await write.apply(worse)
            assert ours(pool, node) == ["ecc.uncorrectable"]
            assert pool.report(node)["status"]["quarantine"]["since"] == since
            assert len(pool.places()) == 1

    asyncio.run(run())


def test_long_messages_are_whole(plane: ControlPlane, pool: Pool) -> None:
    """The API server takes a condition message of the greatest length, and it is complete."""
    node = pool.node()
    many = verdict(*[finding(f"xid.{k}", message="m" * 150) for k in range(190)])

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            await writer(client, node).apply(Desired(many))
        assert health(pool, node)["message"].count("m" * 150) == 190
        assert len(pool.report(node)["status"]["findings"]) == 190

    asyncio.run(run())


def test_report_says_what_there_is(plane: ControlPlane, pool: Pool) -> None:
    """Inventory, findings, counters; owned by its Node; rewritten only for what matters."""
    node = pool.node()
    facts = Facts(Inventory("570.1", (Gpu(0, "GPU-0", "0000:01:00.0", "H100", "S1"),)), "boot", {"xid.79": 1}, "0.1")
    clock = [datetime(2026, 3, 1, tzinfo=UTC)]

    def degraded(celsius: int, minute: int = 0) -> Desired:
        seen = clock[0] + timedelta(minutes=minute)
        hot = finding("thermal.gpu", Severity.WARNING, message=f"{celsius} degrees", last_seen=seen)
        return Desired(verdict(hot))

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            write = writer(client, node, now=lambda: clock[0])
            await write.apply(degraded(80), facts)
            report = pool.report(node)
            assert report["metadata"]["ownerReferences"][0]["uid"] == pool.get(node)["metadata"]["uid"]
            assert report["status"]["inventory"]["gpus"][0]["serial"] == "S1"
            assert report["status"]["counters"] == {"xid.79": 1}
            assert await write.apply(degraded(80, minute=1), facts) == [], "seen again is no news"
            assert await write.apply(degraded(81), facts) == [], "another number can wait"
            clock[0] += timedelta(seconds=61)
            assert [act.kind for act in await write.apply(degraded(81), facts)] == ["condition", "report"]
            acts = await write.apply(HEALTHY, Facts())
            assert "report" in {act.kind for act in acts}, "another verdict cannot wait"
            assert pool.report(node)["status"]["counters"] == {}

    asyncio.run(run())


def test_report_leaves_the_controllers_part_alone(plane: ControlPlane, pool: Pool) -> None:
    """What the controller writes into the status stays when the agent writes its part."""
    node = pool.node()

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            write = writer(client, node)
            await write.apply(HEALTHY)
            path = f"/apis/gpuhealth.io/v1alpha1/gpuhealthreports/{node}/status"
            drain = {"status": {"drain": {"phase": "draining"}}}
            plane.request("PATCH", path, drain, content_type="application/merge-patch+json")
            await write.apply(SICK)
            assert pool.report(node)["status"]["drain"] == {"phase": "draining"}
            plane.request("DELETE", path.removesuffix("/status"))
            await write.apply(HEALTHY)
            assert pool.report(node)["status"]["verdict"] == "healthy", "deleted by somebody, made again"

    asyncio.run(run())


def test_node_that_is_gone(plane: ControlPlane, pool: Pool) -> None:
    """Without a Node there is nothing to mark, and the caller is told."""

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            with pytest.raises(errors.NotFoundError):
                await writer(client, "no-such-node").apply(SICK)

    asyncio.run(run())


def test_what_the_node_says_is_followed(plane: ControlPlane, pool: Pool) -> None:
    """Labels, taints, and the request to let go of the driver come by the watch, also after an outage."""
    node = pool.node()

    async def run() -> None:
        async with FaultyProxy(plane) as proxy, Client.from_kubeconfig(proxy.kubeconfig) as client:
            write = writer(client, node)
            async with watching(write):
                assert write.node.labels["pool"] == pool.name
                assert write.node.release_requests == ()
                proxy.break_streams()
                note = {"gpuhealth.io/release-gpus": "true"}
                pool.patch(
                    node,
                    {"metadata": {"annotations": note}, "spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}},
                )
                await until(lambda: write.node.release_requests == ("annotation",))
                assert write.node.taints[0]["key"] == "a"
                assert write.node.changed.is_set()

    asyncio.run(run())
