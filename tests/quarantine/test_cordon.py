"""A node that pods of the GPU stack have to repair is cordoned, since they tolerate a cordon and not our taint."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
from kube import ControlPlane
from testing.cluster_objects import T0, Pool, verdict
from testing.node_writing import BOTH, HEALTHY, NO_DRIVER, SICK, Mode, node_object, ours, out_by

from gpuhealth.api.names import OUT_OF_SERVICE, OVERRIDE, QUARANTINE, TAINT
from gpuhealth.kube.client import Client
from gpuhealth.model.causes import Cause
from gpuhealth.model.codes import CODES
from gpuhealth.model.verdict import State
from gpuhealth.monitors.settings import Settings
from gpuhealth.quarantine.marks import is_out, marks_removed, may_be_out
from gpuhealth.quarantine.own_node import OwnNode
from gpuhealth.quarantine.target import Desired
from gpuhealth.quarantine.writer import NodeWriter

UNKNOWN = Desired(verdict=verdict(state=State.UNKNOWN))
Apply = Callable[..., Awaitable[list[str]]]


def with_agent(pool: Pool, node: str, work: Callable[[Apply], Awaitable[None]]) -> None:
    """Runs with a function that applies desired marks as an agent does that has just started, in a mode."""

    async def run() -> None:
        async with Client.from_kubeconfig(pool.plane.kubeconfig) as client:

            async def apply(desired: Desired, mode: Mode = "taint", **settings: Any) -> list[str]:
                made = Settings.model_validate({"mode": mode, **settings})
                return [act.kind for act in await NodeWriter(client, made, OwnNode(client, node)).apply(desired)]

            await work(apply)

    asyncio.run(run())


def recorded(pool: Pool, node: str) -> tuple[bool, bool] | None:
    """Whether our record claims the taint, and whether it claims the cordon; None without a record."""
    text = pool.get(node)["metadata"].get("annotations", {}).get(QUARANTINE)
    if text is None:
        return None
    found = msgspec.json.decode(text)
    return found.get("tainted", True), found.get("cordoned", False)


@pytest.fixture
def node(pool: Pool) -> str:
    """A node, and a budget with a slot for it."""
    pool.budget(1)
    return pool.node()


def cordon(pool: Pool, node: str, value: bool | None) -> None:
    """What a person does."""
    pool.patch(node, {"spec": {"unschedulable": value}})


def test_which_codes_cordon() -> None:
    """Those of the driver, of NVML and of the fabric, and no others."""
    stack = ("driver.", "nvml.", "fabric.")
    assert {name for name in CODES.names() if CODES.get(name).cordon} == {
        name for name in CODES.names() if name.startswith(stack)
    }


def test_by_a_cordon_and_back(plane: ControlPlane, pool: Pool, node: str) -> None:
    """The cordon comes with its record, a slot, the label and an Event; the report names it; all go together."""

    async def run(apply: Apply) -> None:
        assert await apply(NO_DRIVER) == ["slot_taken", "cordon", "label", "condition", "event", "report"]
        assert (out_by(pool, node), recorded(pool, node)) == ("cordon", (False, True))
        assert list(pool.slots().values()) == [node]
        assert pool.get(node)["metadata"]["labels"]["gpuhealth.io/state"] == "quarantined"
        found = pool.report(node)["status"]["quarantine"]
        assert (found["state"], found["mark"], found["code"]) == ("quarantined", "cordon", "driver.not_loaded")
        assert await apply(NO_DRIVER) == []
        await apply(HEALTHY)
        assert (out_by(pool, node), recorded(pool, node), pool.slots()) == ("none", None, {})
        assert pool.report(node)["status"]["quarantine"]["mark"] == ""
        assert [event["reason"] for event in pool.events(node)].count("QuarantineEnded") == 1

    with_agent(pool, node, run)


@pytest.mark.parametrize("first", [SICK, NO_DRIVER])
@pytest.mark.parametrize("last", [SICK, NO_DRIVER])
def test_both_kinds_of_findings(plane: ControlPlane, pool: Pool, node: str, first: Desired, last: Desired) -> None:
    """With both the node is cordoned; one mark replaces the other in one request, and slot and time stay."""

    async def run(apply: Apply) -> None:
        await apply(first)
        since = pool.report(node)["status"]["quarantine"]["since"]
        await apply(BOTH)
        assert (out_by(pool, node), recorded(pool, node)) == ("cordon", (False, True))
        assert await apply(BOTH) == []
        position = plane.audit_position()
        await apply(last)
        mark = "taint" if last is SICK else "cordon"
        assert (out_by(pool, node), recorded(pool, node)) == (mark, (last is SICK, last is not SICK))
        patches = [e for e in plane.audit(node, position) if e["verb"] == "patch" and e["requestURI"].endswith(node)]
        assert len([e for e in patches if "/nodes/" in e["requestURI"]]) == 1
        assert list(pool.slots().values()) == [node]
        assert pool.report(node)["status"]["quarantine"]["since"] == since
        assert "QuarantineEnded" not in [event["reason"] for event in pool.events(node)]

    with_agent(pool, node, run)


def test_the_mode_of_a_running_agent(plane: ControlPlane, pool: Pool, node: str) -> None:
    """Each change converts the marks; an older version's taint next to a cordon of ours is taken off, too."""

    async def run(apply: Apply) -> None:
        for mode, mark in (("taint", "taint"), ("cordon", "cordon"), ("taint", "taint")):
            await apply(SICK, mode)
            assert out_by(pool, node) == mark
        old = '{"code":"xid.79","since":"2026-03-01T12:00:00Z","cordoned":true}'
        pool.patch(node, {"spec": {"unschedulable": True}, "metadata": {"annotations": {QUARANTINE: old}}})
        await apply(SICK, "cordon")
        assert (out_by(pool, node), recorded(pool, node)) == ("cordon", (False, True))
        await apply(SICK, "observe")
        assert out_by(pool, node) == "cordon", "mode observe changes nothing"
        await apply(HEALTHY, "cordon")
        assert (out_by(pool, node), recorded(pool, node)) == ("none", None)

    with_agent(pool, node, run)


def test_settings_decide_for_each_code(plane: ControlPlane, pool: Pool, node: str) -> None:
    """`cordon` of a finding's settings, by code or pattern, for all nodes or those of a pool."""

    async def run(apply: Apply) -> None:
        await apply(NO_DRIVER, findings={"driver.*": {"cordon": False}})
        assert out_by(pool, node) == "taint"
        await apply(SICK, findings={"xid.79": {"cordon": True}})
        assert out_by(pool, node) == "cordon"
        other = {"node_labels": {"no": "such"}, "findings": {"xid.79": {"cordon": True}}}
        await apply(SICK, pools=[other])
        assert out_by(pool, node) == "taint"
        await apply(SICK, pools=[{**other, "node_labels": pool.labels}])
        assert out_by(pool, node) == "cordon"

    with_agent(pool, node, run)


@pytest.mark.parametrize("mode", ["taint", "cordon"])
def test_a_cordon_of_a_person_stays(plane: ControlPlane, pool: Pool, node: str, mode: Mode) -> None:
    """A node that a person has cordoned is out without another mark. It stays cordoned when the fault has cleared; and
    if the person uncordons it before that, ours comes."""

    async def run(apply: Apply) -> None:
        cordon(pool, node, True)
        await apply(NO_DRIVER, mode)
        assert (out_by(pool, node), recorded(pool, node)) == ("cordon", (False, False))
        assert (list(pool.slots().values()), is_out(pool.get(node))) == ([node], True)
        found = pool.report(node)["status"]["quarantine"]
        assert (found["state"], found["mark"]) == ("quarantined", "cordon")
        await apply(HEALTHY, mode)
        assert (out_by(pool, node), recorded(pool, node), pool.slots()) == ("cordon", None, {})
        await apply(NO_DRIVER, mode)
        cordon(pool, node, None)
        assert not marks_removed(pool.get(node))
        await apply(NO_DRIVER, mode)
        assert (out_by(pool, node), recorded(pool, node)) == ("cordon", (False, True))
        await apply(HEALTHY, mode)
        assert out_by(pool, node) == "none"

    with_agent(pool, node, run)


def test_a_person_cordons_beside_our_taint(plane: ControlPlane, pool: Pool, node: str) -> None:
    """A driver finding then takes the taint off and claims no cordon; when both have cleared the person's stays."""

    async def run(apply: Apply) -> None:
        await apply(SICK)
        cordon(pool, node, True)
        await apply(SICK)
        assert out_by(pool, node) == "taint and cordon"
        await apply(BOTH)
        assert (out_by(pool, node), recorded(pool, node)) == ("cordon", (False, False))
        await apply(SICK)
        assert (out_by(pool, node), recorded(pool, node)) == ("taint and cordon", (True, False))
        await apply(HEALTHY)
        assert out_by(pool, node) == "cordon"

    with_agent(pool, node, run)


def test_a_taint_of_a_person_stays(plane: ControlPlane, pool: Pool, node: str) -> None:
    """A taint of our key that a person adds to a node that we have cordoned is not ours, whatever mark we want."""

    async def run(apply: Apply) -> None:
        await apply(NO_DRIVER)
        theirs = {"key": TAINT, "value": "by-hand", "effect": "NoSchedule"}
        pool.patch(node, {"spec": {"taints": [theirs]}})
        await apply(BOTH)
        await apply(SICK)
        assert (out_by(pool, node), recorded(pool, node)) == ("taint", (False, False))
        await apply(HEALTHY)
        assert (ours(pool, node), recorded(pool, node)) == (["by-hand"], None)

    with_agent(pool, node, run)


def test_without_memory_the_mark_stays(plane: ControlPlane, pool: Pool, node: str) -> None:
    """An agent that has measured nothing yet keeps the mark, by the codes in the record; also one of the old mode."""

    async def run(apply: Apply) -> None:
        await apply(BOTH)
        assert await apply(UNKNOWN) == ["condition", "report"]
        assert (out_by(pool, node), recorded(pool, node)) == ("cordon", (False, True))
        forgotten = Desired(
            verdict=verdict(state=State.UNHEALTHY),
            quarantine=("quarantine.memory_lost",),
            causes=(Cause("driver.not_loaded", T0),),
        )
        await apply(forgotten)
        assert out_by(pool, node) == "cordon"
        await apply(SICK, "cordon")
        await apply(UNKNOWN)
        assert out_by(pool, node) == "taint"

    with_agent(pool, node, run)


def test_override_and_a_lost_record(plane: ControlPlane, pool: Pool, node: str) -> None:
    """An override ends a cordon of ours. Without the record a cordon is nobody's that we know, and stays."""

    async def run(apply: Apply) -> None:
        await apply(NO_DRIVER)
        pool.patch(node, {"metadata": {"annotations": {OVERRIDE: "healthy"}}})
        await apply(NO_DRIVER)
        assert (out_by(pool, node), pool.slots()) == ("none", {})
        pool.patch(node, {"metadata": {"annotations": {OVERRIDE: None}}})
        await apply(NO_DRIVER)
        assert out_by(pool, node) == "cordon"
        pool.patch(node, {"metadata": {"annotations": {QUARANTINE: None}}})
        await apply(HEALTHY)
        assert (out_by(pool, node), pool.slots()) == ("cordon", {})

    with_agent(pool, node, run)


def test_manual_quarantine(plane: ControlPlane, pool: Pool, node: str) -> None:
    """A request of a person taints the node, unless a finding needs a cordon at the same time."""

    async def run(apply: Apply) -> None:
        pool.patch(node, {"metadata": {"annotations": {OUT_OF_SERVICE: "fan is loud"}}})
        await apply(HEALTHY)
        assert out_by(pool, node) == "taint"
        await apply(NO_DRIVER)
        assert out_by(pool, node) == "cordon"
        await apply(HEALTHY)
        assert out_by(pool, node) == "taint"

    with_agent(pool, node, run)


def test_mode_observe_says_so(plane: ControlPlane, pool: Pool, node: str) -> None:
    """The report names the cordon that would be set."""

    async def run(apply: Apply) -> None:
        await apply(NO_DRIVER, "observe")
        assert out_by(pool, node) == "none"
        would = pool.report(node)["status"]["wouldDo"]
        assert any(action.startswith("cordon ") for action in would)
        assert not any(action.startswith("taint ") for action in would)

    with_agent(pool, node, run)


@pytest.mark.parametrize(
    ("spec", "out"), [({"unschedulable": True}, True), ({"taints": [{"key": TAINT}]}, True), ({}, False)]
)
def test_an_unreadable_record_counts(spec: dict[str, Any], out: bool) -> None:
    """A node with a record that cannot be read counts as out while it has either mark: a slot is rather kept."""
    node = node_object(annotations={QUARANTINE: "edited"}, spec=spec)
    assert (is_out(node), may_be_out(node)) == (False, out)
