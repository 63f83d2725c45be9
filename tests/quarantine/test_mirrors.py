"""Mirror conditions: written and cleared with the quarantine, never in a fight, and only if the settings name them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from kube import ControlPlane, Document, MissingBinariesError
from kube.policy_plugin import PolicyPlugin
from testing.admission import NODE_CLAIM, POLICIES, with_variable
from testing.cluster_objects import T0, Pool, finding, verdict
from testing.node_writing import HEALTHY, SICK, node_object, writes

from gpuhealth.kube.client import STRATEGIC_MERGE_PATCH, Client, Object
from gpuhealth.model.verdict import State
from gpuhealth.monitors.settings import Settings, load
from gpuhealth.quarantine.condition import REFRESH, Summary
from gpuhealth.quarantine.marks import condition
from gpuhealth.quarantine.mirrors import mirrored
from gpuhealth.quarantine.own_node import OwnNode
from gpuhealth.quarantine.target import Desired
from gpuhealth.quarantine.writer import NodeWriter
from gpuhealth.runtime.settings import MirrorCondition
from gpuhealth.runtime.settings_file import ConfigError

READY = MirrorCondition(type="AcceleratedHardwareReady", reason_map={"xid.*": "NvidiaXIDError", "xid.79": "OffTheBus"})
PROBLEM = MirrorCondition(type="GPUProblem", status_when_unhealthy="True")
ECC = Desired(verdict=verdict(finding("ecc.uncorrectable")), quarantine=("ecc.uncorrectable",))
OUT = node_object(
    annotations={"gpuhealth.io/quarantine": '{"code":"xid.79","since":"2026-03-01T12:00:00Z"}'},
    spec={"taints": [{"key": "gpuhealth.io/unhealthy", "value": "xid.79", "effect": "NoSchedule"}]},
)


@pytest.mark.parametrize(
    ("node", "ours", "ready", "problem"),
    [
        (node_object(), Summary("True", "Healthy", "no fault found"), "True", "False"),
        (node_object(), Summary("True", "PcieWidth", "narrow"), "True", "False"),
        (node_object(), Summary("False", "Xid79", "gone; stays in service: no slot"), "True", "False"),
        (node_object(), Summary("Unknown", "NotMeasured", "not measured"), "Unknown", "Unknown"),
        (OUT, Summary("False", "Xid79", "gone"), "False", "True"),
        (OUT, Summary("Unknown", "NotMeasured", "not measured"), "False", "True"),
    ],
    ids=["healthy", "degraded", "blocked", "unknown", "out", "out and unknown"],
)
def test_status(node: Object, ours: Summary, ready: str, problem: str) -> None:
    """It is unhealthy only for a node that is out of service, so that a platform's repairs keep to the budgets."""
    assert mirrored(READY, node, ours).status == ready
    assert mirrored(PROBLEM, node, ours).status == problem
    assert mirrored(READY, node, ours).message == ours.message


@pytest.mark.parametrize(
    ("reasons", "reason"),
    [
        ({}, "Xid79"),
        ({"xid.*": "Xid", "xid.79": "Gone", "*": "Any"}, "Gone"),
        ({"*": "Any", "xid.*": "Xid"}, "Xid"),
        ({"ecc.*": "Ecc"}, "Xid79"),
    ],
)
def test_reason(reasons: dict[str, str], reason: str) -> None:
    """The code's own entry wins, then the longest pattern; without any it is the code in CamelCase."""
    mirror = MirrorCondition(type="GPUProblem", reason_map=reasons)
    assert mirrored(mirror, OUT, Summary("False", "Xid79", "gone")).reason == reason


class Clock:
    """The time of the writer, which the test moves."""

    def __init__(self) -> None:
        self.time = T0

    def __call__(self) -> datetime:
        """The time that the test has set."""
        return self.time

    def forward(self, by: timedelta) -> None:
        """Let time pass for the writer."""
        self.time += by


def writer(client: Client, node: str, clock: Clock, *mirrors: MirrorCondition) -> NodeWriter:
    """A writer of a node's marks with these mirrors."""
    return NodeWriter(client, Settings(conditions=mirrors), OwnNode(client, node), now=clock)


def shown(pool: Pool, node: str, kind: str) -> Object:
    """A condition on a node; KeyError where it has none of that type."""
    found = condition(pool.get(node), kind)
    if found is None:
        raise KeyError(kind)
    return found


def test_fires_and_clears(plane: ControlPlane, pool: Pool) -> None:
    """Both kinds follow the quarantine; the transition time changes with the status alone, others' conditions stay."""
    node = pool.node()
    pool.budget(1)
    clock = Clock()
    before = list(pool.get(node)["status"].get("conditions", ()))

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            write = writer(client, node, clock, READY, PROBLEM)
            await write.apply(HEALTHY)
            assert shown(pool, node, READY.type)["status"] == "True"
            assert shown(pool, node, PROBLEM.type)["status"] == "False"
            clock.forward(timedelta(hours=1))
            acts = await write.apply(SICK)
            assert {READY.type, PROBLEM.type} <= {act.target for act in acts if act.kind == "condition"}
            out = shown(pool, node, READY.type)
            assert (out["status"], out["reason"]) == ("False", "OffTheBus")
            assert "fallen off the bus" in out["message"]
            assert out["lastTransitionTime"] == "2026-03-01T13:00:00Z"
            assert (shown(pool, node, PROBLEM.type)["status"], shown(pool, node, PROBLEM.type)["reason"]) == (
                "True",
                "Xid79",
            )
            clock.forward(timedelta(hours=1))
            await write.apply(ECC)
            worse = shown(pool, node, READY.type)
            assert worse["reason"] == "EccUncorrectable"
            assert worse["lastTransitionTime"] == "2026-03-01T13:00:00Z"
            clock.forward(timedelta(hours=1))
            await write.apply(HEALTHY)
            back = shown(pool, node, READY.type)
            assert (back["status"], back["reason"], back["lastTransitionTime"]) == (
                "True",
                "Healthy",
                "2026-03-01T15:00:00Z",
            )
            before_it = writes(client)
            assert await write.apply(HEALTHY) == []
            assert writes(client) == before_it, "a healthy node writes nothing"

    asyncio.run(run())
    after = [each for each in pool.get(node)["status"]["conditions"] if each in before]
    assert after == before


def test_a_blocked_node_is_not_for_repair(plane: ControlPlane, pool: Pool) -> None:
    """Without a slot in its budget a sick node keeps the mirror's healthy status, and the message has the reason."""
    node = pool.node()
    pool.budget(0)

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            await writer(client, node, Clock(), READY).apply(SICK)

    asyncio.run(run())
    assert shown(pool, node, "GPUHealthy")["status"] == "False"
    assert shown(pool, node, READY.type)["status"] == "True"
    assert "stays in service" in shown(pool, node, READY.type)["message"]


def test_an_unknown_node_is_unknown(plane: ControlPlane, pool: Pool) -> None:
    """What is not measured is neither healthy nor for repair."""
    node = pool.node()

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            await writer(client, node, Clock(), READY).apply(Desired(verdict=verdict(state=State.UNKNOWN)))

    asyncio.run(run())
    assert shown(pool, node, READY.type)["status"] == "Unknown"


def test_two_writers_do_not_flood(plane: ControlPlane, pool: Pool) -> None:
    """What another program writes is written again at most once a minute, and an Event names the condition."""
    node = pool.node()
    clock = Clock()
    theirs = {"type": READY.type, "status": "False", "reason": "Theirs", "message": "m"}

    async def run() -> int:
        written = 0
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            write = writer(client, node, clock, READY)
            for _ in range(6):
                for _ in range(5):
                    acts = await write.apply(HEALTHY)
                    written += sum(act.kind == "condition" and act.target == READY.type for act in acts)
                    body = {"status": {"conditions": [{**theirs, "message": str(clock())}]}}
                    path = f"/api/v1/nodes/{node}/status"
                    plane.request("PATCH", path, body, content_type=STRATEGIC_MERGE_PATCH)
                    clock.forward(REFRESH / 5)
        return written

    assert asyncio.run(run()) == 6
    (event,) = [each for each in pool.events(node) if each["reason"] == "SecondWriter"]
    assert f"the condition {READY.type} of this Node" in event["message"]


@pytest.fixture(scope="module")
def policies() -> Iterator[PolicyPlugin]:
    """The policies with the mirror AcceleratedHardwareReady allowed."""
    try:
        with PolicyPlugin() as made:
            changed = with_variable(POLICIES, "conditions", f"['GPUHealthy', '{READY.type}']")
            bindings = [
                {
                    "apiVersion": "admissionregistration.k8s.io/v1",
                    "kind": "ValidatingAdmissionPolicyBinding",
                    "metadata": {"name": each["metadata"]["name"]},
                    "spec": {"policyName": each["metadata"]["name"], "validationActions": ["Deny"]},
                }
                for each in changed
            ]
            made.put([*changed, *bindings])
            yield made
    except MissingBinariesError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    ("kinds", "allowed"),
    [([READY.type], True), (["GPUHealthy", READY.type], True), ([PROBLEM.type], False), (["Ready"], False)],
)
def test_the_policy_allows_only_the_mirrors(policies: PolicyPlugin, kinds: list[str], allowed: bool) -> None:
    """An agent's token writes the conditions that the policy names, on its own Node, and no other."""

    def node(*conditions: str) -> Document:
        found = [{"type": each, "status": "True", "reason": "R", "message": "m"} for each in conditions]
        return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "mine"}, "status": {"conditions": found}}

    user = {"username": "system:serviceaccount:gpuhealth:gpuhealth-agent", "extra": {NODE_CLAIM: ["mine"]}}
    request = {
        "uid": "u",
        "kind": {"group": "", "version": "v1", "kind": "Node"},
        "resource": {"group": "", "version": "v1", "resource": "nodes"},
        "subResource": "status",
        "name": "mine",
        "operation": "UPDATE",
        "object": node("MemoryPressure", *kinds),
        "oldObject": node("MemoryPressure"),
        "userInfo": user,
    }
    assert policies.review(request)["allowed"] is allowed


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[{type: Ready}]", "gpuhealth or the kubelet writes the condition Ready"),
        ("[{type: GPUHealthy}]", "gpuhealth or the kubelet writes the condition GPUHealthy"),
        ("[{type: 'a b'}]", "conditions.0.type"),
        ("[{type: ''}]", "conditions.0.type"),
        ("[{type: A, status_when_unhealthy: Unknown}]", "conditions.0.status_when_unhealthy"),
        ("[{type: A, reason_map: {xid.79: 'two words'}}]", "'two words' is no reason of a condition"),
        ("[{type: A, reasons: {}}]", "conditions.0.reasons is not a known setting"),
        (str([{"type": f"A{number}"} for number in range(9)]), "conditions"),
    ],
)
def test_settings_that_are_refused(tmp_path: Path, text: str, words: str) -> None:
    """A condition of the kubelet, a name that is none, an unknown key: one sentence names the place."""
    path = tmp_path / "gpuhealth.yaml"
    path.write_text(f"conditions: {text}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=words):
        load(path)


def test_a_status_without_quotes(tmp_path: Path) -> None:
    """True is a truth value in YAML, and the status True here."""
    path = tmp_path / "gpuhealth.yaml"
    path.write_text("conditions: [{type: GPUProblem, status_when_unhealthy: True}]\n", encoding="utf-8")
    assert load(path).conditions == (PROBLEM,)
