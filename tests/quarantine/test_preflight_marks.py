"""The patches of the preflight taint: as pure functions, and on a real API server where others change the same list."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import pytest
from kube import ControlPlane
from testing.cluster_objects import Pool, finding, verdict

from gpuhealth.api.names import PREFLIGHT_TAINT, STATE_LABEL
from gpuhealth.kube.client import JSON_PATCH, Client
from gpuhealth.kube.errors import InvalidError
from gpuhealth.kube.kinds import NODES
from gpuhealth.monitors.settings import Settings
from gpuhealth.quarantine import preflight_taint as preflight
from gpuhealth.quarantine.marks import taints
from gpuhealth.quarantine.own_node import OwnNode
from gpuhealth.quarantine.target import Desired
from gpuhealth.quarantine.writer import NodeWriter
from gpuhealth.runtime.settings import Preflight

KEY = PREFLIGHT_TAINT
THEIRS = {"key": "example.com/theirs", "value": "x", "effect": "NoSchedule"}
OURS = {"key": KEY, "value": "pending", "effect": "NoSchedule"}
OTHER_KEY = "startup-taint.cluster-autoscaler.kubernetes.io/gpuhealth"
PREFLIGHT = {STATE_LABEL: "preflight"}


def tainted(pool: Pool, *taints: dict[str, Any], labels: dict[str, str] | None = None) -> str:
    """The name of a new Node with these taints."""
    name = pool.node(labels=labels)
    pool.patch(name, {"spec": {"taints": list(taints)}})
    return name


def sent(plane: ControlPlane, node: str, patch: list[Any]) -> None:
    """The patch is sent to the Node."""

    async def send() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            await client.patch(NODES, node, patch, content_type=JSON_PATCH)

    asyncio.run(send())


def test_passed_takes_off_ours_alone(plane: ControlPlane, pool: Pool) -> None:
    """Our taint goes in all its effects, with the label; others' taints stay where they are."""
    executing = {**OURS, "effect": "NoExecute"}
    node = tainted(pool, OURS, THEIRS, executing, labels=PREFLIGHT)
    sent(plane, node, preflight.passed(pool.get(node), KEY))
    assert taints(pool.get(node)) == [THEIRS]
    assert STATE_LABEL not in pool.get(node)["metadata"]["labels"]
    assert preflight.passed(pool.get(node), KEY) == [], "nothing is left to do"


def test_failed_stays_and_says_so(plane: ControlPlane, pool: Pool) -> None:
    """The taint keeps its effect and its position and says that the tests failed; the label stays."""
    node = tainted(pool, THEIRS, OURS, labels=PREFLIGHT)
    assert preflight.value(pool.get(node), KEY) == "pending"
    sent(plane, node, preflight.failed(pool.get(node), KEY))
    assert taints(pool.get(node)) == [THEIRS, {**OURS, "value": "failed"}]
    assert pool.get(node)["metadata"]["labels"][STATE_LABEL] == "preflight"
    assert preflight.failed(pool.get(node), KEY) == []


@pytest.mark.parametrize("patch_of", [preflight.passed, preflight.failed])
def test_a_list_that_has_moved_is_not_touched(plane: ControlPlane, pool: Pool, patch_of: Any) -> None:
    """When another taint goes meanwhile the indexes have changed: the patch is refused as a whole."""
    node = tainted(pool, THEIRS, OURS, labels=PREFLIGHT)
    patch = patch_of(pool.get(node), KEY)
    pool.patch(node, {"spec": {"taints": [OURS, THEIRS]}})
    with pytest.raises(InvalidError):
        sent(plane, node, patch)
    assert taints(pool.get(node)) == [OURS, THEIRS]


def test_no_value_and_no_taint() -> None:
    """A taint may have no value; a Node may have no taint."""
    bare: dict[str, Any] = {"metadata": {}, "spec": {"taints": [{"key": KEY, "effect": "NoSchedule"}]}}
    assert preflight.value(bare, KEY) == ""
    assert preflight.value({"metadata": {}, "spec": {}}, KEY) is None
    assert preflight.failed(bare, KEY)[1]["value"]["value"] == "failed"


@pytest.mark.parametrize("key", [KEY, OTHER_KEY])
def test_the_agent_keeps_the_label_as_long_as_the_taint(plane: ControlPlane, pool: Pool, key: str) -> None:
    """Whatever the agent finds, the label is preflight while the taint is there, and its own afterwards."""
    pool.budget(1)
    node = tainted(pool, THEIRS, {**OURS, "key": key})
    settings = Settings(preflight=Preflight(taint=key))

    def label() -> str:
        return str(pool.get(node)["metadata"]["labels"].get(STATE_LABEL))

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            writer = NodeWriter(client, settings, OwnNode(client, node))
            await writer.apply(Desired(verdict=verdict()))
            assert label() == "preflight"
            await writer.apply(Desired(verdict=verdict(finding()), quarantine=("xid.79",)))
            assert label() == "preflight"
            assert len(taints(pool.get(node))) == 3
            await client.patch(NODES, node, preflight.passed(pool.get(node), key), content_type=JSON_PATCH)
            await writer.apply(Desired(verdict=verdict(finding()), quarantine=("xid.79",)))
            assert label() == "quarantined"
            await writer.apply(Desired(verdict=verdict()))
            assert label() == "healthy"

    asyncio.run(run())


def test_a_label_without_the_taint_means_nothing(plane: ControlPlane, pool: Pool) -> None:
    """Somebody took the taint off and left the label: the agent puts that right."""
    node = pool.node(labels=PREFLIGHT)

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            await NodeWriter(client, Settings(), OwnNode(client, node)).apply(Desired(verdict=verdict()))

    asyncio.run(run())
    assert pool.get(node)["metadata"]["labels"][STATE_LABEL] == "healthy"


@pytest.mark.parametrize(
    ("mode", "override", "closed"), [("taint", None, True), ("observe", None, False), ("taint", "healthy", False)]
)
def test_a_rebooted_node_is_closed_again(
    plane: ControlPlane, pool: Pool, mode: Literal["taint", "observe"], override: str | None, closed: bool
) -> None:
    """Taint and label are added once, and other taints stay; not in mode observe, and not against an override."""
    node = tainted(pool, THEIRS)
    if override:
        pool.patch(node, {"metadata": {"annotations": {"gpuhealth.io/override": override}}})
    wanted = Desired(verdict=verdict(), preflight=True)

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            writer = NodeWriter(client, Settings(mode=mode), OwnNode(client, node))
            first = {act.kind for act in await writer.apply(wanted) if act.done}
            assert ("preflight" in first) is closed
            assert writer.node.has_taint(KEY) is closed
            assert "preflight" not in {act.kind for act in await writer.apply(wanted) if act.done}

    asyncio.run(run())
    assert taints(pool.get(node)) == [THEIRS, OURS] if closed else [THEIRS]
    assert ("Preflight" in {event["reason"] for event in pool.events(node)}) is closed
    if closed:
        assert pool.get(node)["metadata"]["labels"][STATE_LABEL] == "preflight"
