"""The admission policies: what the real agent sends is allowed, what a stolen token could send is not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import suppress
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import pytest
from kube import ControlPlane, Document, MissingBinariesError, documents

from gpuhealth.cluster.client import MERGE_PATCH, STRATEGIC_MERGE_PATCH, Client
from gpuhealth.cluster.errors import ForbiddenError
from gpuhealth.cluster.kinds import OVERRIDE, PREFLIGHT_TAINT, QUARANTINE, STATE_LABEL, TAINT
from gpuhealth.cluster.node import Desired
from gpuhealth.cluster.writer import NodeWriter
from gpuhealth.config import Settings
from tests.cluster.admission import ALL, OF_AGENTS, POLICIES, Admission
from tests.cluster.builders import Pool, finding, until, verdict
from tests.conftest import BASE

PREFLIGHT = "gpuhealth-preflight"
SICK = Desired(verdict(finding()), ("xid.79",))
SICKER = Desired(verdict(finding("ecc.uncorrectable"), finding()), ("ecc.uncorrectable", "xid.79"))
HEALTHY = Desired(verdict())
LEASES = "/apis/coordination.k8s.io/v1/namespaces/gpuhealth/leases"
REPORTS = "/apis/gpuhealth.io/v1alpha1/gpuhealthreports"
THEIR_TAINT = {"key": "theirs", "value": "x", "effect": "NoExecute"}
OUR_TAINT = {"key": TAINT, "value": "xid.79", "effect": "NoSchedule"}
NEW_NODE = {"key": PREFLIGHT_TAINT, "value": "pending", "effect": "NoSchedule"}
THEIR_CONDITION = {"type": "Theirs", "status": "True", "reason": "R", "message": "m"}


class Guarded:
    """A control plane behind the policies, and tokens as pods get them."""

    def __init__(self, plane: ControlPlane, admission: Admission) -> None:
        self.plane = plane
        self.admission = admission

    def mode(self, mode: str) -> None:
        """As if somebody had changed the parameters."""
        for policy in self.admission.policies.values():
            if policy.params is not None:
                policy.params["data"]["mode"] = mode

    def token(self, node: str, account: str = "gpuhealth-agent") -> str:
        """The token of a pod that runs on the node."""
        pod = f"{account}-{node}"
        spec = {"serviceAccountName": account, "nodeName": node, "containers": [{"name": "c", "image": "i"}]}
        metadata = {"name": pod, "namespace": "gpuhealth"}
        self.plane.apply([{"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}])
        return self.plane.service_account_token("gpuhealth", account, pod=pod)

    def client(self, token: str) -> Client:
        """A client with that token, which does not try again."""
        return Client.from_kubeconfig(self.plane.write_kubeconfig(f"token-{hash(token)}", token), attempts=1)


@pytest.fixture(scope="module")
def guarded() -> Iterator[Guarded]:
    """A control plane of its own: the other tests' tokens are bound to no pod."""
    plane = ControlPlane()
    try:
        plane.start()
    except MissingBinariesError as error:
        pytest.skip(str(error))
    try:
        plane.apply(d for d in documents(BASE) if d["kind"] not in {"DaemonSet", "Deployment"})
        plane.apply(d for d in ALL if d["kind"] == "ConfigMap")
        with Admission(plane, deepcopy(OF_AGENTS)) as admission:
            lease = {"metadata": {"name": "is-it-there", "namespace": "gpuhealth"}, "spec": {}}
            body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", **lease}
            asyncio.run(until(lambda: plane.apply([body]) and admission.reviewed))
            yield Guarded(plane, admission)
    finally:
        plane.stop()


@pytest.fixture
def pool(guarded: Guarded) -> Iterator[Pool]:
    """A pool of nodes of the test's own."""
    made = Pool(guarded.plane)
    yield made
    made.remove()


# --- what the agent sends ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["taint", "cordon", "observe"])
def test_the_agent_is_not_refused(guarded: Guarded, pool: Pool, mode: Literal["taint", "cordon", "observe"]) -> None:
    """A node's whole life: sick, sicker, held, back, released by a person, overridden, among marks of others."""
    node, other = pool.nodes(2)
    pool.budget(1, maxPerWindow="100%", maxPerFault=1, window="1s")
    theirs = {"labels": {"a": "b"}, "annotations": {"c": "d", "e": ""}, "finalizers": ["f/g"]}
    spec = {"taints": [THEIR_TAINT, {"key": "also-theirs", "effect": "NoSchedule"}], "podCIDR": "10.0.0.0/24"}
    pool.patch(node, {"metadata": theirs, "spec": spec})
    status = {"conditions": [THEIR_CONDITION], "capacity": {"nvidia.com/gpu": "8"}, "addresses": []}
    strategic = STRATEGIC_MERGE_PATCH
    guarded.plane.request("PATCH", f"/api/v1/nodes/{node}/status", {"status": status}, content_type=strategic)
    guarded.mode(mode)
    acting = mode != "observe"
    seen = len(guarded.admission.reviewed)

    async def life(client: Client) -> None:
        write = NodeWriter(client, Settings(mode=mode), node)
        follow = asyncio.create_task(write.node.follow())
        await until(lambda: write.node.labels)
        for desired in (HEALTHY, SICK, SICKER, HEALTHY):
            await write.apply(desired)
            await _settled(write, desired, acting=acting)
        await _settled(write, SICK, acting=acting)
        pool.patch(node, {"spec": {"unschedulable": None} if mode == "cordon" else {"taints": [THEIR_TAINT]}})
        await until(lambda: len(write.node.taints) == 1 or mode == "cordon")
        await asyncio.sleep(0)
        await write.apply(SICK)
        await write.apply(HEALTHY)
        await _settled(write, SICK, acting=acting)
        pool.patch(node, {"metadata": {"annotations": {OVERRIDE: "healthy"}}})
        await until(lambda: write.node.override)
        await write.apply(SICK)
        follow.cancel()
        with suppress(asyncio.CancelledError):
            await follow
        assert write._events.dropped == 0

    async def run() -> None:
        async with guarded.client(guarded.token(node)) as client, guarded.client(guarded.token(other)) as second:
            held = NodeWriter(second, Settings(mode=mode), other)
            await life(client)
            await held.apply(SICK)
            await held.apply(HEALTHY)
            assert [call for call in client.calls if call[1] in {401, 403}] == []
            assert [call for call in second.calls if call[1] in {401, 403}] == []

    asyncio.run(run())
    ours = {name for name, r in guarded.admission.reviewed[seen:] if "gpuhealth-agent" in r["userInfo"]["username"]}
    assert ours == (set(guarded.admission.policies) if acting else {"gpuhealth-reports"})


async def _settled(write: NodeWriter, desired: Desired, *, acting: bool) -> None:
    """The taint as it should be, also when a place has to run out first."""
    wanted = {desired.quarantine[0]} if desired.quarantine and acting else set()
    async with asyncio.timeout(180):
        while {taint.get("value") for taint in write.node.taints if taint["key"] == TAINT} != wanted:
            await asyncio.sleep(min(write.retry_in or 0.05, 0.2))
            await write.apply(desired)


def test_preflight_takes_its_taint_off(guarded: Guarded, pool: Pool) -> None:
    """Preflight changes and removes the taint of a new node, and that alone; its agent may only put it on again."""
    node = pool.node()
    pool.patch(node, {"spec": {"taints": [THEIR_TAINT, NEW_NODE]}})
    off = {"spec": {"taints": [THEIR_TAINT]}, "metadata": {"labels": {STATE_LABEL: None}}}

    async def run() -> None:
        async with guarded.client(guarded.token(node)) as agent:
            with pytest.raises(ForbiddenError, match="only by gpuhealth-preflight"):
                await agent.request("PATCH", f"/api/v1/nodes/{node}", body=off, content_type=MERGE_PATCH)
        async with guarded.client(guarded.token(node, PREFLIGHT)) as preflight:
            body: Document = {"spec": {"taints": None}}
            with pytest.raises(ForbiddenError, match="the taints of others"):
                await preflight.request("PATCH", f"/api/v1/nodes/{node}", body=body, content_type=MERGE_PATCH)
            failed: Document = {"spec": {"taints": [THEIR_TAINT, {**NEW_NODE, "value": "failed"}]}}
            await preflight.request("PATCH", f"/api/v1/nodes/{node}", body=failed, content_type=MERGE_PATCH)
            await preflight.request("PATCH", f"/api/v1/nodes/{node}", body=off, content_type=MERGE_PATCH)
        async with guarded.client(guarded.token(node)) as agent:  # after a reboot
            again: Document = {"spec": {"taints": [THEIR_TAINT, NEW_NODE]}}
            await agent.request("PATCH", f"/api/v1/nodes/{node}", body=again, content_type=MERGE_PATCH)
            with pytest.raises(ForbiddenError, match="only by gpuhealth-preflight"):
                await agent.request("PATCH", f"/api/v1/nodes/{node}", body=failed, content_type=MERGE_PATCH)

    asyncio.run(run())
    assert pool.get(node)["spec"]["taints"] == [THEIR_TAINT, NEW_NODE]


# --- what a stolen token could send -----------------------------------------------------------------------------------


def lease(budget: str, name: str, holder: str, node: str = "", seconds: int | None = None, age: float = 0) -> Document:
    """A place, renewed `age` seconds ago; `node` is who its label names, if not its holder."""
    time = (datetime.now(UTC) - timedelta(seconds=age)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    labels = {"gpuhealth.io/budget": budget, "gpuhealth.io/place-set": "s", "gpuhealth.io/node": node or holder}
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": name, "namespace": "gpuhealth", "labels": labels},
        "spec": {"holderIdentity": holder, "renewTime": time, "leaseDurationSeconds": seconds},
    }


def event(name: str, about: Document, component: str = "gpuhealth-agent") -> Document:
    """An Event in the namespace default."""
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": "default"},
        "involvedObject": {"apiVersion": "v1", **about},
        "reason": "R",
        "reportingComponent": component,
        "reportingInstance": "i",
        "source": {"component": component},
        "type": "Normal",
    }


class Scene:
    """Two nodes with everything about them; the token is that of the agent on `mine`."""

    def __init__(self, guarded: Guarded, pool: Pool) -> None:
        plane, self.name = guarded.plane, pool.name
        self.plane = plane
        self.mine, self.other = pool.nodes(2)
        for node in (self.mine, self.other):
            marks = {"labels": {"a": "b", STATE_LABEL: "healthy"}, "annotations": {"c": "d"}, "finalizers": ["f/g"]}
            pool.patch(node, {"metadata": marks, "spec": {"taints": [THEIR_TAINT, NEW_NODE]}})
            status = {"conditions": [THEIR_CONDITION], "capacity": {"cpu": "8"}, "allocatable": {"cpu": "8"}}
            path = f"/api/v1/nodes/{node}/status"
            plane.request("PATCH", path, {"status": status}, content_type=STRATEGIC_MERGE_PATCH)
            report = {"apiVersion": "gpuhealth.io/v1alpha1", "kind": "GPUHealthReport", "metadata": {"name": node}}
            plane.apply([report, event(f"{node}.1", {"kind": "Node", "name": node})])
            drain = {"status": {"drain": {"phase": "draining", "deadline": "2026-03-08T12:00:00Z"}}}
            plane.request("PATCH", f"{REPORTS}/{node}/status", drain, content_type=MERGE_PATCH)
        plane.apply(
            [
                lease(self.name, f"{self.name}.0", self.other),
                lease(self.name, f"{self.name}.1", self.mine),
                lease(self.name, f"{self.name}.window.0", self.other, seconds=3600),
                lease(self.name, f"{self.name}.window.1", self.mine, seconds=3600),
            ]
        )
        self.token = guarded.token(self.mine)

    def filled(self, value: Any) -> Any:
        """A row with the names of this scene in the place of MINE, OTHER and POOL."""
        text = json.dumps(value).replace("MINE", self.mine).replace("OTHER", self.other).replace("POOL", self.name)
        return json.loads(text)


@pytest.fixture(scope="module")
def scene(guarded: Guarded) -> Iterator[Scene]:
    """One for all rows: what is refused changes nothing."""
    pool = Pool(guarded.plane)
    made = Scene(guarded, pool)
    yield made
    for node in (made.mine, made.other):
        pool.patch(node, {"metadata": {"finalizers": None}})
    pool.remove()


def taints(*added: Document, kept: tuple[Document, ...] = (THEIR_TAINT, NEW_NODE), **metadata: Any) -> Document:
    """A change of a Node's taints."""
    return {"spec": {"taints": [*kept, *added]}, "metadata": metadata}


RECORD = {QUARANTINE: '{"code":"xid.79","since":"2026-03-01T12:00:00Z","cordoned":true}'}
CONDITION = {"type": "GPUHealthy", "status": "False", "reason": "R", "message": "m"}
NODE = "/api/v1/nodes/MINE"
EVENTS = "/api/v1/namespaces/default/events"
NOT_YOURS = "that its own pod runs on"
REPORT = {"apiVersion": "gpuhealth.io/v1alpha1", "kind": "GPUHealthReport", "metadata": {"name": "POOL-new"}}
OWNER = {"apiVersion": "v1", "kind": "Node", "name": "MINE", "uid": "u"}
Row = tuple[str, str, Any, str]
FORBIDDEN: list[Row] = [
    ("PATCH", "/api/v1/nodes/OTHER", {"metadata": {"labels": {STATE_LABEL: "degraded"}}}, NOT_YOURS),
    ("PATCH", "/api/v1/nodes/OTHER", taints(OUR_TAINT, annotations=RECORD), NOT_YOURS),
    ("PATCH", NODE, {"metadata": {"labels": {"a": "c"}}}, "labels"),
    ("PATCH", NODE, {"metadata": {"labels": {"a": None}}}, "labels"),
    ("PATCH", NODE, {"metadata": {"labels": {"node-role.kubernetes.io/control-plane": ""}}}, "labels"),
    ("PATCH", NODE, {"metadata": {"annotations": {OVERRIDE: "unmanaged"}}}, "annotations"),
    ("PATCH", NODE, {"metadata": {"annotations": {"c": None}}}, "annotations"),
    ("PATCH", NODE, {"metadata": {"annotations": {"c": "e"}}}, "annotations"),
    ("PATCH", NODE, {"metadata": {"finalizers": None}}, "finalizers"),
    ("PATCH", NODE, {"metadata": {"ownerReferences": [OWNER]}}, "finalizers and owners"),
    ("PATCH", NODE, taints({"key": "new", "effect": "NoExecute"}), "taints of others"),
    ("PATCH", NODE, taints(kept=(NEW_NODE,)), "taints of others"),
    ("PATCH", NODE, taints(kept=({**THEIR_TAINT, "value": "y"}, NEW_NODE)), "taints of others"),
    ("PATCH", NODE, taints(OUR_TAINT), "comes and goes with the annotation"),
    ("PATCH", NODE, taints({**OUR_TAINT, "effect": "NoExecute"}, annotations=RECORD), "its effect is NoSchedule"),
    ("PATCH", NODE, taints(kept=(THEIR_TAINT,)), "only by gpuhealth-preflight"),
    ("PATCH", NODE, taints({**NEW_NODE, "effect": "NoExecute"}), "has the effect NoSchedule"),
    ("PATCH", NODE, {"spec": {"unschedulable": True}}, "in mode cordon"),
    ("PATCH", NODE, {"spec": {"providerID": "aws:///x"}}, "nothing of a Node's spec"),
    ("PATCH", "/api/v1/nodes/OTHER/status", {"status": {"conditions": [CONDITION]}}, NOT_YOURS),
    ("PATCH", f"{NODE}/status", {"status": {"conditions": [{"type": "Ready", "status": "False"}]}}, "conditions"),
    ("PATCH", f"{NODE}/status", {"status": {"conditions": [{**THEIR_CONDITION, "message": "x"}]}}, "conditions"),
    ("PATCH", f"{NODE}/status", {"status": {"conditions": [{"type": "Theirs", "$patch": "delete"}]}}, "conditions"),
    ("PATCH", f"{NODE}/status", {"status": {"capacity": {"nvidia.com/gpu": "1000"}}}, "status"),
    ("PATCH", f"{NODE}/status", {"status": {"allocatable": {"cpu": None}}}, "status"),
    ("PATCH", f"{NODE}/status", {"status": {"allocatable": {"cpu": "0"}}}, "status"),
    ("PATCH", f"{NODE}/status", {"metadata": {"labels": {"a": "c"}}}, "by way of its status"),
    ("PATCH", f"{NODE}/status", {"metadata": {"annotations": {OVERRIDE: "healthy"}}}, "by way of its status"),
    ("PATCH", f"{REPORTS}/OTHER", {"metadata": {"labels": {"a": "b"}}}, NOT_YOURS),
    ("PATCH", f"{REPORTS}/OTHER/status", {"status": {"verdict": "healthy"}}, NOT_YOURS),
    ("POST", REPORTS, REPORT, NOT_YOURS),
    ("PATCH", f"{REPORTS}/MINE/status", {"status": {"drain": {"deadline": "2020-01-01T00:00:00Z"}}}, "controller's"),
    ("PATCH", f"{REPORTS}/MINE/status", {"status": {"drain": None}}, "controller's"),
    ("PATCH", f"{REPORTS}/MINE", {"metadata": {"finalizers": ["x/y"]}}, "finalizers"),
    ("PATCH", f"{REPORTS}/MINE", {"metadata": {"ownerReferences": [{**OWNER, "name": "OTHER"}]}}, "owned by"),
    ("PATCH", f"{REPORTS}/MINE", {"metadata": {"ownerReferences": [{**OWNER, "kind": "Pod"}]}}, "owned by"),
    ("PATCH", f"{REPORTS}/MINE", {"metadata": {"ownerReferences": [OWNER | {"blockOwnerDeletion": True}]}}, "owned by"),
    ("POST", LEASES, lease("POOL", "POOL.7", "OTHER", node="MINE"), NOT_YOURS),
    ("POST", LEASES, lease("POOL", "gpuhealth-controller", "MINE"), "named after its budget"),
    ("POST", LEASES, lease("POOL", "POOL.7", "MINE", node="OTHER"), "named after its budget"),
    ("DELETE", f"{LEASES}/POOL.0", None, "only the holder"),
    ("PUT", f"{LEASES}/POOL.0", lease("POOL", "POOL.0", "MINE"), "has not run out"),
    ("PUT", f"{LEASES}/POOL.window.0", lease("POOL", "POOL.window.0", "MINE", seconds=3600), "has not run out"),
    ("PUT", f"{LEASES}/POOL.1", lease("POOL", "POOL.1", "OTHER"), NOT_YOURS),
    ("PUT", f"{LEASES}/POOL.window.1", lease("POOL.window", "POOL.window.1", "MINE"), "stays with its budget"),
    ("POST", EVENTS, event("POOL.2", {"kind": "Node", "name": "OTHER"}), NOT_YOURS),
    ("POST", EVENTS, event("POOL.2", {"kind": "Pod", "name": "MINE"}), NOT_YOURS),
    ("POST", EVENTS, event("POOL.2", {"kind": "Node", "name": "MINE"}, "kubelet"), "in the name of a component"),
    ("PATCH", f"{EVENTS}/OTHER.1", {"count": 7}, NOT_YOURS),
    ("PATCH", f"{EVENTS}/OTHER.1", {"involvedObject": {"name": "MINE"}}, NOT_YOURS),
]


async def send(client: Client, scene: Scene, row: Row) -> None:
    """Send a row's request; strategic merge patches to a status, merge patches elsewhere."""
    method, path, body, _ = scene.filled(row)
    content = "application/json"
    if method == "PATCH":
        content = STRATEGIC_MERGE_PATCH if "/nodes/" in path and path.endswith("/status") else MERGE_PATCH
    if method == "PUT":
        body["metadata"]["resourceVersion"] = scene.plane.request("GET", path)["metadata"]["resourceVersion"]
    await client.request(method, path, body=body, content_type=content)


def identity(row: Row) -> str:
    """A row's name in a test report."""
    return f"{row[0]} {row[1].partition('/v1')[2]} {json.dumps(row[2])[:60]}"


@pytest.mark.parametrize("row", FORBIDDEN, ids=identity)
def test_a_stolen_token_is_refused(guarded: Guarded, scene: Scene, row: Row) -> None:
    """What RBAC would let pass, the policies refuse, and say why."""
    guarded.mode("cordon")

    async def run() -> None:
        async with guarded.client(scene.token) as client:
            with pytest.raises(ForbiddenError, match=f"denied the request: .*{row[3]}"):
                await send(client, scene, row)

    asyncio.run(run())


def test_every_rule_is_needed(guarded: Guarded, scene: Scene) -> None:
    """For each rule there is a request that nothing but this rule refuses."""
    guarded.mode("cordon")
    seen = len(guarded.admission.reviewed)

    async def run() -> None:
        async with guarded.client(scene.token) as client:
            for row in FORBIDDEN:
                with suppress(ForbiddenError):
                    await send(client, scene, row)

    asyncio.run(run())
    needed = set()
    for name, request in guarded.admission.reviewed[seen:]:
        broken = guarded.admission.policies[name].broken(request)
        if len(broken) == 1:
            needed.add(broken[0][0]["message"])
    bound = [document for document in POLICIES if document in OF_AGENTS]
    assert needed == {validation["message"] for document in bound for validation in document["spec"]["validations"]}


def test_what_a_person_did_stays(guarded: Guarded, pool: Pool) -> None:
    """A taint of our key and a cordon without our record are somebody's; outside of mode cordon nobody cordons."""
    node = pool.node()
    pool.patch(node, {"spec": {"taints": [OUR_TAINT], "unschedulable": True}})
    path = f"/api/v1/nodes/{node}"

    async def run() -> None:
        async with guarded.client(guarded.token(node)) as client:

            async def refused(body: Document, why: str) -> None:
                with pytest.raises(ForbiddenError, match=why):
                    await client.request("PATCH", path, body=body, content_type=MERGE_PATCH)

            guarded.mode("cordon")
            await refused({"spec": {"taints": None}}, "comes and goes with the annotation")
            await refused({"spec": {"taints": None}, "metadata": {"annotations": RECORD}}, "comes and goes")
            await refused({"spec": {"unschedulable": None}}, "only what that says we cordoned")
            pool.patch(node, {"spec": {"taints": None, "unschedulable": None}})
            guarded.mode("taint")
            out = {"spec": {"taints": [OUR_TAINT], "unschedulable": True}, "metadata": {"annotations": RECORD}}
            await refused(out, "in mode cordon")
            guarded.mode("cordon")
            await client.request("PATCH", path, body=out, content_type=MERGE_PATCH)
            guarded.mode("taint")
            back = {"spec": {"taints": None, "unschedulable": None}, "metadata": {"annotations": dict.fromkeys(RECORD)}}
            await client.request("PATCH", path, body=back, content_type=MERGE_PATCH)

    asyncio.run(run())


def test_a_token_without_a_node_is_refused(guarded: Guarded, pool: Pool) -> None:
    """A token that is bound to no pod, as older servers and long-lived Secrets give them, may change nothing."""
    node = pool.node()
    token = guarded.plane.service_account_token("gpuhealth", "gpuhealth-agent")

    async def run() -> None:
        async with guarded.client(token) as client:
            with pytest.raises(ForbiddenError, match=NOT_YOURS):
                await NodeWriter(client, Settings(), node).apply(HEALTHY)

    asyncio.run(run())
