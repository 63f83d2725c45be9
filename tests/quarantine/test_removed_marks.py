"""Who removed our marks: a person ends the quarantine thereby; what a program removes is put back."""

from __future__ import annotations

import asyncio
import shlex
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kube import ControlPlane
from testing.cluster_objects import Pool
from testing.kubectl import kubectl
from testing.node_writing import HEALTHY, NO_DRIVER, SICK, Mode, health, node_object, ours, out_by

from gpuhealth.api.names import AGENT, DISMISSED, PEOPLE, QUARANTINE, TAINT
from gpuhealth.kube.client import Client, Object
from gpuhealth.monitors.settings import Settings
from gpuhealth.quarantine.marks import ended_by_person, removers
from gpuhealth.quarantine.own_node import OwnNode
from gpuhealth.quarantine.target import Desired
from gpuhealth.quarantine.writer import NodeWriter

SKU = {"key": "sku", "value": "gpu", "effect": "NoSchedule"}
SOON = {"put_back_after": 0.05}
LATER = {"put_back_after": "1h"}
RECORD = {QUARANTINE: '{"code":"xid.79","since":"2026-03-01T11:00:00Z"}'}


@asynccontextmanager
async def writing(
    plane: ControlPlane, node: str, quarantine: dict[str, Any], mode: Mode = "taint"
) -> AsyncIterator[NodeWriter]:
    """A writer with these settings of the quarantine, known to the API server by the agent's name."""
    async with Client.from_kubeconfig(plane.kubeconfig, user_agent=AGENT) as client:
        yield NodeWriter(
            client, Settings.model_validate({"mode": mode, "quarantine": quarantine}), OwnNode(client, node)
        )


def write_as(pool: Pool, node: str, manager: str, spec: Object) -> None:
    """Changes the spec of a Node by a merge patch, as the client does whose field manager that is."""
    path = f"/api/v1/nodes/{node}?fieldManager={quote(manager)}"
    pool.plane.request("PATCH", path, {"spec": spec}, content_type="application/merge-patch+json")


async def put_back(writer: NodeWriter, pool: Pool, node: str) -> None:
    """Passes until the taint is on the Node again."""

    async def attempt() -> bool:
        await writer.apply(SICK)
        return ours(pool, node) == ["xid.79"]

    for _ in range(100):
        if await attempt():
            return
        await asyncio.sleep(writer.retry_in or 0.0)
    raise AssertionError("the taint was not put back")


def events(pool: Pool, node: str, reason: str) -> list[str]:
    """The messages of a node's Events of one reason."""
    return [event["message"] for event in pool.events(node) if event["reason"] == reason]


@pytest.fixture
def tainted(pool: Pool) -> str:
    """A node with a taint of its pool, and a budget with a slot for it."""
    node = pool.node()
    pool.patch(node, {"spec": {"taints": [SKU]}})
    pool.budget(1)
    return node


PROGRAMS = ["aks-reconciler", "cluster-autoscaler", "Go-http-client", "OpenAPI-Generator", "before-first-apply", "kube"]


@pytest.mark.parametrize("manager", PROGRAMS)
def test_what_a_program_removes_is_put_back(plane: ControlPlane, pool: Pool, tainted: str, manager: str) -> None:
    """Its list of taints without ours does not end the quarantine: the slot is kept, the Node and an Event name it."""

    async def run() -> None:
        async with writing(plane, tainted, LATER) as writer:
            await writer.apply(SICK)
            slots = pool.slots()
            write_as(pool, tainted, manager, {"taints": [SKU]})
            await writer.apply(SICK)
            await writer.apply(SICK)
            assert (ours(pool, tainted), pool.slots()) == ([], slots)
            assert f"stays in service: {manager} removed the taint" in health(pool, tainted)["message"]
            assert DISMISSED not in pool.get(tainted)["metadata"]["annotations"]
            assert pool.get(tainted)["metadata"]["labels"]["gpuhealth.io/state"] == "unhealthy"
            found = pool.report(tainted)["status"]["quarantine"]
            assert (found["state"], found["limit"], found["code"]) == ("blocked", "marks_removed", "xid.79")
            assert writer.marks_removed == {"person": 0, "program": 1}
            (event,) = events(pool, tainted, "MarksRemoved")
            assert event.startswith(f"{manager} removed the taint, which is put back at ")
            assert f"gpuhealth restore {tainted}" in event
        async with writing(plane, tainted, SOON) as writer:  # an agent that starts meanwhile
            await put_back(writer, pool, tainted)
            assert pool.slots() == slots
            assert [taint["key"] for taint in pool.get(tainted)["spec"]["taints"]] == ["sku", TAINT]
            assert pool.report(tainted)["status"]["quarantine"]["state"] == "quarantined"
            assert writer.blocked is None
            await writer.apply(HEALTHY)
            assert (ours(pool, tainted), pool.slots()) == ([], {})

    asyncio.run(run())


@pytest.mark.parametrize("words", [("taint", "node"), ("edit", "node")])
def test_a_person_with_kubectl_ends_it(
    plane: ControlPlane, pool: Pool, tainted: str, words: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """kubectl taint and kubectl edit leave their names on the list of taints."""

    async def run() -> None:
        async with writing(plane, tainted, SOON) as writer:
            await writer.apply(SICK)
            if words[0] == "edit":
                monkeypatch.setenv("KUBE_EDITOR", _editor())
                kubectl(*words, tainted, kubeconfig=plane.kubeconfig)
            else:
                kubectl(*words, tainted, f"{TAINT}-", kubeconfig=plane.kubeconfig)
            assert ours(pool, tainted) == []
            for _ in range(2):
                await writer.apply(SICK)
                assert (ours(pool, tainted), pool.slots()) == ([], {})
            assert pool.report(tainted)["status"]["quarantine"]["state"] == "dismissed"
            assert writer.marks_removed == {"person": 1, "program": 0}

    asyncio.run(run())


def _editor() -> str:
    """A command that takes our taint out of a manifest."""
    program = (
        "import sys,yaml;p=sys.argv[1];n=yaml.safe_load(open(p));"
        f"n['spec']['taints']=[t for t in n['spec']['taints'] if t['key']!='{TAINT}'];open(p,'w').write(yaml.dump(n))"
    )
    return f"{sys.executable} -c {shlex.quote(program)}"


@pytest.mark.parametrize(
    "manager", ["k9s", "Lens", "OpenLens", "Mozilla", "node-fetch", "headlamp-server", "kubectl.exe"]
)
def test_programs_of_people_end_it(plane: ControlPlane, pool: Pool, tainted: str, manager: str) -> None:
    """So do web pages and desktop programs, which appear by the first part of their user agent."""

    async def run() -> None:
        async with writing(plane, tainted, SOON) as writer:
            await writer.apply(SICK)
            write_as(pool, tainted, manager, {"taints": [SKU]})
            await writer.apply(SICK)
            assert pool.report(tainted)["status"]["quarantine"]["state"] == "dismissed"

    asyncio.run(run())


@pytest.mark.parametrize("people", [(), ("",)])
def test_a_client_without_a_trace(plane: ControlPlane, pool: Pool, people: tuple[str, ...]) -> None:
    """An old copy of the Node without taints leaves none: ours is put back, unless the settings say otherwise."""
    node = pool.node()
    pool.budget(1)

    async def run() -> None:
        async with writing(plane, node, {**SOON, "people": (*PEOPLE, *people)}) as writer:
            await writer.apply(SICK)
            write_as(pool, node, "some-controller", {"taints": []})
            assert removers(pool.get(node)) == ()
            if people:
                await writer.apply(SICK)
                assert pool.report(node)["status"]["quarantine"]["state"] == "dismissed"
                return
            await put_back(writer, pool, node)
            assert "a client that left no trace removed the taint" in events(pool, node, "MarksRemoved")[0]

    asyncio.run(run())


def test_not_more_often_than_allowed(plane: ControlPlane, pool: Pool, tainted: str) -> None:
    """A program that removes the taint again and again: after so many times it stays off for the rest of the hour."""

    async def run() -> None:
        async with writing(plane, tainted, {**SOON, "put_back_per_hour": 2}) as writer:
            await writer.apply(SICK)
            for _ in range(2):
                write_as(pool, tainted, "pool-controller", {"taints": [SKU]})
                await put_back(writer, pool, tainted)
            write_as(pool, tainted, "pool-controller", {"taints": [SKU]})
            await writer.apply(SICK)
            assert writer.retry_in is not None
            assert writer.blocked is not None
            assert "after 2 times within an hour" in writer.blocked.reason
            assert writer.marks_removed["program"] == 3
            write_as(pool, tainted, "kubectl-edit", {"taints": [SKU, {**SKU, "key": "other"}]})
            await writer.apply(SICK)
            assert pool.report(tainted)["status"]["quarantine"]["state"] == "dismissed"

    asyncio.run(run())


@pytest.mark.parametrize(("mode", "desired"), [("cordon", SICK), ("taint", NO_DRIVER)])
def test_a_removed_cordon_is_put_back(
    plane: ControlPlane, pool: Pool, tainted: str, mode: Mode, desired: Desired
) -> None:
    """An upgrade that uncordons the node: it keeps its slot, says why it is in service, and is cordoned again."""

    async def run() -> None:
        async with writing(plane, tainted, LATER, mode) as writer:
            await writer.apply(desired)
            slots = pool.slots()
            write_as(pool, tainted, "gpu-operator", {"unschedulable": None})
            await writer.apply(desired)
            assert (out_by(pool, tainted), pool.slots()) == ("none", slots)
            assert "removed the cordon" in health(pool, tainted)["message"]
            assert pool.report(tainted)["status"]["quarantine"]["state"] == "blocked"
        async with writing(plane, tainted, SOON, mode) as writer:
            for _ in range(100):
                await writer.apply(desired)
                if out_by(pool, tainted) == "cordon":
                    break
                await asyncio.sleep(writer.retry_in or 0.0)
            found = pool.report(tainted)["status"]["quarantine"]
            assert (found["state"], found["mark"]) == ("quarantined", "cordon")
            assert pool.slots() == slots
            await writer.apply(HEALTHY)
            assert out_by(pool, tainted) == "none", "it is ours again, and so we remove it"
            assert "removed the cordon" in events(pool, tainted, "MarksRemoved")[0]

    asyncio.run(run())


def test_a_node_that_is_registered_again(plane: ControlPlane, pool: Pool, tainted: str) -> None:
    """A Node deleted and created again lost its marks with its record: nobody removed them, and they come at once."""

    async def run() -> None:
        async with writing(plane, tainted, LATER) as writer:
            await writer.apply(SICK)
            plane.request("DELETE", f"/api/v1/nodes/{tainted}")
            plane.create_node(tainted, pool.labels)
            await writer.apply(SICK)
            assert ours(pool, tainted) == ["xid.79"]
            assert writer.marks_removed == {"person": 0, "program": 0}

    asyncio.run(run())


def test_a_node_that_is_registered_without_its_labels(plane: ControlPlane, pool: Pool, tainted: str) -> None:
    """No budget selects it: it is unhealthy by label and condition meanwhile, and out as soon as it has the label."""

    async def run() -> None:
        async with writing(plane, tainted, LATER) as writer:
            await writer.apply(SICK)
            plane.request("DELETE", f"/api/v1/nodes/{tainted}")
            plane.create_node(tainted, {})
            await writer.apply(SICK)
            assert out_by(pool, tainted) == "none"
            assert pool.get(tainted)["metadata"]["labels"]["gpuhealth.io/state"] == "unhealthy"
            assert health(pool, tainted)["status"] == "False"
            assert "no QuarantineBudget selects" in health(pool, tainted)["message"]
            pool.patch(tainted, {"metadata": {"labels": pool.labels}})
            await writer.apply(SICK)
            assert ours(pool, tainted) == ["xid.79"]

    asyncio.run(run())


def test_the_agent_is_known_by_its_own_name(plane: ControlPlane, pool: Pool, tainted: str) -> None:
    """What the agent writes is recorded under its name, which is none of a person."""

    async def run() -> None:
        async with writing(plane, tainted, LATER) as writer:
            await writer.apply(SICK)

    asyncio.run(run())
    managers = {entry["manager"] for entry in pool.get(tainted)["metadata"]["managedFields"]}
    assert AGENT in managers
    assert not ended_by_person(pool.get(tainted), [AGENT])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["manager", "fieldsV1", "f:spec", "f:taints", "operation", "x"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_odd_managed_fields_name_nobody(fields: Any) -> None:
    """Whatever stands in managedFields is no error, and names a remover only by a readable entry."""
    node = node_object(annotations=RECORD)
    node["metadata"]["managedFields"] = fields
    assert all(isinstance(manager, str) for manager in removers(node))
    ended_by_person(node, PEOPLE)


@pytest.mark.parametrize(
    ("managers", "person"),
    [
        (["kubectl-taint"], True),
        (["kubectl", "aks-reconciler"], False),
        ([], False),
        (["gpuhealth-agent"], False),
        (["OC"], True),
        (["occasional"], False),
    ],
)
def test_every_owner_of_the_list_has_to_be_a_person(managers: list[str], person: bool) -> None:
    """Clients that applied the same list own it together: one program among them may have been first."""
    node = node_object(annotations=RECORD)
    node["metadata"]["managedFields"] = [
        {"manager": manager, "operation": "Update", "fieldsV1": {"f:spec": {"f:taints": {}}}} for manager in managers
    ]
    assert ended_by_person(node, PEOPLE) is person
