"""Requests that a stolen token of an agent could send, and honest ones: tables, and the cluster they refer to."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from kube import ControlPlane, Document

from gpuhealth.api.names import OVERRIDE, PREFLIGHT_TAINT, QUARANTINE, STATE_LABEL, TAINT
from gpuhealth.kube.client import MERGE_PATCH, STRATEGIC_MERGE_PATCH, Client
from testing.cluster_objects import Pool

LEASES = "/apis/coordination.k8s.io/v1/namespaces/gpuhealth/leases"
REPORTS = "/apis/gpuhealth.io/v1alpha1/gpuhealthreports"
EVENTS = "/api/v1/namespaces/default/events"
NODE = "/api/v1/nodes/MINE"
THEIR_TAINT = {"key": "theirs", "value": "x", "effect": "NoExecute"}
OUR_TAINT = {"key": TAINT, "value": "xid.79", "effect": "NoSchedule"}
NEW_NODE = {"key": PREFLIGHT_TAINT, "value": "pending", "effect": "NoSchedule"}
THEIR_CONDITION = {"type": "Theirs", "status": "True", "reason": "R", "message": "m"}
CONDITION = {"type": "GPUHealthy", "status": "False", "reason": "R", "message": "m"}
RECORD = {QUARANTINE: '{"code":"xid.79","since":"2026-03-01T12:00:00Z","cordoned":true}'}
UNCORDONED = {QUARANTINE: '{"code":"xid.79","since":"2026-03-01T12:00:00Z","cordoned":false}'}
NOT_LOADED = '"code":"driver.not_loaded","since":"2026-03-01T12:00:00Z"'
OUR_CORDON = {QUARANTINE: f'{{{NOT_LOADED},"cordoned":true,"tainted":false}}'}
NO_MARK = {QUARANTINE: f'{{{NOT_LOADED},"tainted":false}}'}
NO_MARK_FOR_XID = {QUARANTINE: '{"code":"xid.79","since":"2026-03-01T12:00:00Z","tainted":false}'}
WITH_XID = {
    QUARANTINE: '{"code":"xid.79","since":"2026-03-01T12:00:00Z","cordoned":true,"tainted":false,"causes":[{'
    f"{NOT_LOADED}}}]}}"
}
LONGER = {QUARANTINE: '{"code":"xid.48","since":"2026-03-01T12:00:00Z","cordoned":false,"more":{"b":[1]}}'}
OWNER = {"apiVersion": "v1", "kind": "Node", "name": "MINE", "uid": "UID"}
REPORT = {"apiVersion": "gpuhealth.io/v1alpha1", "kind": "GPUHealthReport", "metadata": {"name": "POOL-new"}}
FORGED = {
    "manager": "Python",
    "operation": "Update",
    "apiVersion": "coordination.k8s.io/v1",
    "time": "2099-01-01T00:00:00Z",
    "fieldsType": "FieldsV1",
    "fieldsV1": {"f:spec": {"f:renewTime": {}}},
}


_AGO = re.compile(r"(-?\d+) s ago")
"""A time in a row: it counts from when the row is sent, and not from when this file was read."""


def _time(age: float) -> str:
    return (datetime.now(UTC) - timedelta(seconds=age)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def with_times(text: str) -> str:
    """The text in which each "N s ago" is replaced by that time."""
    return _AGO.sub(lambda found: _time(int(found[1])), text)


def lease(
    budget: str,
    name: str,
    holder: str,
    *,
    node: str | None = None,
    of_set: str | None = None,
    seconds: int | None = None,
    age: int = 0,
    time: str = "",
    **metadata: Any,
) -> Document:
    """A budget slot, renewed `age` seconds before it is sent (see `with_times`); `node` and `of_set` replace the right
    values of its labels."""
    middle = name.removeprefix(budget).strip(".").rpartition(".")[0]
    labels = {
        "gpuhealth.io/budget": budget,
        "gpuhealth.io/slot-set": (middle or "unavailable") if of_set is None else of_set,
        "gpuhealth.io/node": holder if node is None else node,
    }
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": name, "namespace": "gpuhealth", "labels": labels, **metadata},
        "spec": {"holderIdentity": holder, "renewTime": time or f"{age} s ago", "leaseDurationSeconds": seconds},
    }


def event(name: str, about: Document, component: str = "gpuhealth-agent", **fields: Any) -> Document:
    """An Event of a component in the namespace default."""
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": "default", **fields.pop("metadata", {})},
        "involvedObject": {"apiVersion": "v1", **about},
        "reason": "R",
        "reportingComponent": component,
        "reportingInstance": "i",
        "source": {"component": component, **fields.pop("source", {})},
        "type": "Normal",
        **fields,
    }


def taints(*added: Document, kept: tuple[Document, ...] = (THEIR_TAINT, NEW_NODE), **metadata: Any) -> Document:
    """The body of a patch that sets a Node's taints."""
    return {"spec": {"taints": [*kept, *added]}, "metadata": metadata}


def noted(**metadata: Any) -> Document:
    """The body of a patch that changes an object's metadata."""
    return {"metadata": metadata}


class Row(NamedTuple):
    """A request of an agent on the node `who`: the policy that refuses it, and a part of the refusal's text."""

    policy: str  # empty: it is allowed
    method: str
    path: str
    body: Any
    why: str = ""
    who: str = "MINE"

    def __str__(self) -> str:
        body = {key: value for key, value in (self.body or {}).items() if key not in {"apiVersion", "kind"}}
        said = json.dumps(body).replace("gpuhealth.io/", "").replace('"', "")
        return f"{self.policy or 'allowed'}: {self.method} {self.path.rpartition('v1')[2]} {said[:160]}"


NOT_YOURS = "that its own pod runs on"
PERSONS, OUT, CORDONED = "/api/v1/nodes/PERSONS", "/api/v1/nodes/OUT", "/api/v1/nodes/CORDONED"
_OF_NODES = [
    ("/api/v1/nodes/OTHER", noted(labels={STATE_LABEL: "degraded"}), NOT_YOURS),
    ("/api/v1/nodes/OTHER", taints(OUR_TAINT, annotations=RECORD), NOT_YOURS),
    (NODE, noted(labels={"a": "c"}), "labels"),
    (NODE, noted(labels={"a": None}), "labels"),
    (NODE, noted(labels={"node-role.kubernetes.io/control-plane": ""}), "labels"),
    (NODE, noted(annotations={OVERRIDE: "unmanaged"}), "annotations"),
    (NODE, noted(annotations={"c": None}), "annotations"),
    (NODE, noted(annotations={"c": "e"}), "annotations"),
    (NODE, noted(finalizers=None), "finalizers"),
    (NODE, noted(ownerReferences=[OWNER]), "finalizers and owners"),
    (NODE, noted(managedFields=[{}]), "stays theirs"),
    (NODE, noted(managedFields=[{**FORGED, "apiVersion": "v1"}]), "stays theirs"),
    (NODE, taints({"key": "new", "effect": "NoExecute"}), "taints of others"),
    (NODE, taints(kept=(NEW_NODE,)), "taints of others"),
    (NODE, taints(kept=({**THEIR_TAINT, "value": "y"}, NEW_NODE)), "taints of others"),
    (NODE, taints(OUR_TAINT), "comes and goes with the annotation"),
    (NODE, taints({**OUR_TAINT, "effect": "NoExecute"}, annotations=RECORD), "its effect is NoSchedule"),
    (NODE, taints(kept=(THEIR_TAINT,)), "only by gpuhealth-preflight"),
    (NODE, taints({**NEW_NODE, "effect": "NoExecute"}), "has the effect NoSchedule"),
    (NODE, {"spec": {"unschedulable": True}}, "in mode cordon"),
    (NODE, {"spec": {"providerID": "aws:///x"}}, "nothing of a Node's spec"),
    (NODE, noted(annotations={QUARANTINE: "{}"}), "only together with the taint"),
    (NODE, noted(annotations=UNCORDONED), "only together with the taint"),
    (PERSONS, noted(annotations={QUARANTINE: "{}"}), "only together with the taint"),
    (PERSONS, noted(annotations=RECORD), "only together with the taint"),
    (PERSONS, {"spec": {"taints": None}, **noted(annotations=RECORD)}, "comes and goes"),
    (PERSONS, {"spec": {"taints": None}, **noted(annotations=NO_MARK)}, "comes and goes"),
    (PERSONS, noted(annotations=OUR_CORDON), "only a cordon that the same request sets"),
    (PERSONS, {"spec": {"unschedulable": None}, **noted(annotations=NO_MARK)}, "only"),
    (NODE, noted(annotations=NO_MARK), "only together with the taint"),
    (NODE, noted(annotations=OUR_CORDON), "only"),
    (NODE, {"spec": {"unschedulable": True}, **noted(annotations=NO_MARK)}, "in mode cordon"),
    (NODE, taints(OUR_TAINT, annotations=NO_MARK), "comes and goes"),
    (CORDONED, {"spec": {"taints": None}}, "comes and goes"),
    (CORDONED, {"spec": {"taints": None}, **noted(annotations={QUARANTINE: None})}, "comes and goes"),
    (CORDONED, noted(annotations=UNCORDONED), "only together with the taint"),
    (CORDONED, {"spec": {"taints": None}, **noted(annotations=UNCORDONED)}, "comes and goes"),
    (PERSONS, {"spec": {"taints": None}}, "comes and goes"),
    (PERSONS, {"spec": {"unschedulable": None}}, "only what that says we cordoned"),
    (OUT, noted(annotations=RECORD), "only a cordon that the same request sets"),
    (OUT, {"spec": {"unschedulable": None}}, "only what that says we cordoned"),
    (OUT, {"spec": {"unschedulable": None}, **noted(annotations=RECORD)}, "only a cordon that the same request sets"),
]
_OF_STATUS = [
    ("/api/v1/nodes/OTHER/status", {"status": {"conditions": [CONDITION]}}, NOT_YOURS),
    (f"{NODE}/status", {"status": {"conditions": [{"type": "Ready", "status": "False"}]}}, "conditions"),
    (f"{NODE}/status", {"status": {"conditions": [{**THEIR_CONDITION, "message": "x"}]}}, "conditions"),
    (f"{NODE}/status", {"status": {"conditions": [{"type": "Theirs", "$patch": "delete"}]}}, "conditions"),
    (f"{NODE}/status", {"status": {"capacity": {"nvidia.com/gpu": "1000"}}}, "status"),
    (f"{NODE}/status", {"status": {"allocatable": {"cpu": None}}}, "status"),
    (f"{NODE}/status", {"status": {"allocatable": {"cpu": "0"}}}, "status"),
    (f"{NODE}/status", noted(labels={"a": "c"}), "by way of its status"),
    (f"{NODE}/status", noted(annotations={OVERRIDE: "healthy"}), "by way of its status"),
]
_OF_REPORTS: list[tuple[str, str, Any, str]] = [
    ("PATCH", f"{REPORTS}/OTHER", noted(labels={"a": "b"}), NOT_YOURS),
    ("PATCH", f"{REPORTS}/OTHER/status", {"status": {"verdict": "healthy"}}, NOT_YOURS),
    ("POST", REPORTS, REPORT, NOT_YOURS),
    (
        "PATCH",
        f"{REPORTS}/MINE/status",
        {"status": {"drain": {"deadline": "2020-01-01T00:00:00Z"}}},
        "only the controller",
    ),
    ("PATCH", f"{REPORTS}/MINE/status", {"status": {"drain": None}}, "only the controller"),
    ("PATCH", f"{REPORTS}/MINE", noted(finalizers=["x/y"]), "finalizers"),
    ("PATCH", f"{REPORTS}/MINE", noted(ownerReferences=[{**OWNER, "name": "OTHER"}]), "owned by"),
    ("PATCH", f"{REPORTS}/MINE", noted(ownerReferences=[{**OWNER, "kind": "Pod"}]), "owned by"),
    ("PATCH", f"{REPORTS}/MINE", noted(ownerReferences=[OWNER | {"blockOwnerDeletion": True}]), "owned by"),
    ("PATCH", f"{REPORTS}/MINE", noted(ownerReferences=[{**OWNER, "uid": "u"}]), "keeps its Node"),
    ("PATCH", f"{REPORTS}/MINE", noted(ownerReferences=None), "keeps its Node"),
]
_NAMED, _CLOCK = "named after its budget", "is the API server's time"
_WINDOW = "POOL.window.1"
_OF_PLACES: list[tuple[str, str, Any, str]] = [
    ("POST", LEASES, lease("POOL", "POOL.7", "OTHER", node="MINE"), NOT_YOURS),
    ("POST", LEASES, lease("POOL", "gpuhealth-controller", "MINE"), _NAMED),
    ("POST", LEASES, lease("POOL", "POOL.7", "MINE", node="OTHER"), _NAMED),
    ("POST", LEASES, lease("POOL", "POOL.7", "MINE", node=""), _NAMED),
    ("POST", LEASES, lease("POOL", "POOL.7", "MINE", node="1"), _NAMED),
    ("POST", LEASES, lease("POOL", "POOL.7", "MINE", of_set=""), _NAMED),
    ("POST", LEASES, lease("POOL", "POOL.7", "MINE", of_set="window"), _NAMED),
    ("POST", LEASES, lease("POOL", "POOL.window.7", "MINE", of_set="unavailable", seconds=60), _NAMED),
    ("POST", LEASES, lease("POOL", "POOL.fault.x.7", "MINE", of_set="x", seconds=60), _NAMED),
    ("POST", LEASES, lease("POOL.window", "POOL.window.7", "MINE"), _NAMED),
    ("POST", LEASES, lease("POOL", "POOL.x", "MINE"), _NAMED),
    ("POST", LEASES, lease("POOL", "POOL.7", "MINE", finalizers=["x.y/z"]), "neither finalizers nor owners"),
    ("POST", LEASES, lease("POOL", "POOL.7", "MINE", ownerReferences=[OWNER]), "neither finalizers nor owners"),
    ("POST", LEASES, lease("POOL", "POOL.7", "MINE", age=-3600), _CLOCK),
    ("POST", LEASES, lease("POOL", "POOL.7", "MINE", age=3600), _CLOCK),
    ("POST", LEASES, lease("POOL", "POOL.7", "MINE", time="9999-12-31T23:59:59.000000Z"), _CLOCK),
    ("POST", LEASES, lease("POOL", "POOL.7", "MINE", time="0000-01-01T00:00:00.000000Z"), "renewTime"),
    (
        "POST",
        LEASES,
        lease("POOL", "POOL.7", "MINE", time="2099-01-01T00:00:00.000000Z", managedFields=[FORGED]),
        _CLOCK,
    ),
    ("POST", LEASES, lease("POOL", "POOL.7", "MINE", seconds=60), "has no duration"),
    ("POST", LEASES, lease("POOL", "POOL.window.7", "MINE", seconds=2**31 - 1), "a year at the most"),
    ("DELETE", f"{LEASES}/POOL.0", None, "only the holder"),
    ("PUT", f"{LEASES}/POOL.0", lease("POOL", "POOL.0", "MINE"), "has not run out"),
    ("PUT", f"{LEASES}/POOL.window.0", lease("POOL", "POOL.window.0", "MINE", seconds=3600), "has not run out"),
    ("PUT", f"{LEASES}/POOL.window.0", lease("POOL", "POOL.window.0", "MINE", seconds=3600, age=-7200), _CLOCK),
    ("PUT", f"{LEASES}/POOL.1", lease("POOL", "POOL.1", "OTHER"), NOT_YOURS),
    ("PUT", f"{LEASES}/POOL.1", lease("POOL", "POOL.1", "MINE", finalizers=["x.y/z"]), "neither finalizers nor owners"),
    ("PUT", f"{LEASES}/POOL.1", lease("POOL", "POOL.1", "MINE", managedFields=[{}]), _CLOCK),
    ("PUT", f"{LEASES}/POOL.1", lease("POOL", "POOL.1", "MINE", age=-3600, managedFields=[FORGED]), _CLOCK),
    ("PUT", f"{LEASES}/POOL.1", lease("POOL", "POOL.1", "MINE", age=-3600, managedFields=[FORGED, FORGED]), _CLOCK),
    ("PUT", f"{LEASES}/{_WINDOW}", lease("POOL.window", _WINDOW, "MINE"), _NAMED),
    ("PUT", f"{LEASES}/POOL.5", lease("POOL", "POOL.5", "MINE"), "stays with its budget"),
]
_MINE = {"kind": "Node", "name": "MINE"}
_OF_EVENTS: list[tuple[str, str, Any, str]] = [
    ("POST", EVENTS, event("POOL.2", {"kind": "Node", "name": "OTHER"}), NOT_YOURS),
    ("POST", EVENTS, event("POOL.2", {"kind": "Pod", "name": "MINE"}), NOT_YOURS),
    ("POST", EVENTS, event("POOL.2", {**_MINE, "apiVersion": "x.y/v1"}), NOT_YOURS),
    ("POST", EVENTS, event("POOL.2", {**_MINE, "uid": "OTHER"}), NOT_YOURS),
    ("POST", EVENTS, event("POOL.2", _MINE, related={"kind": "Node", "name": "OTHER"}), NOT_YOURS),
    ("POST", EVENTS, event("POOL.2", _MINE, "kubelet"), "as a component of gpuhealth"),
    ("POST", EVENTS, event("POOL.2", _MINE, source={"host": "OTHER"}), "as a component of gpuhealth"),
    ("POST", EVENTS, event("POOL.2", _MINE, metadata={"finalizers": ["x/y"]}), "neither finalizers nor owners"),
    ("POST", EVENTS, event("POOL.2", _MINE, metadata={"ownerReferences": [OWNER]}), "neither finalizers nor owners"),
    ("PATCH", f"{EVENTS}/OTHER.1", {"count": 7}, NOT_YOURS),
    ("PATCH", f"{EVENTS}/OTHER.1", {"involvedObject": {"name": "MINE"}}, NOT_YOURS),
]


def _who(path: str) -> str:
    return next((name for name in ("PERSONS", "OUT", "CORDONED") if path.endswith(name)), "MINE")


FORBIDDEN = [
    *(Row("gpuhealth-nodes", "PATCH", path, body, why, _who(path)) for path, body, why in _OF_NODES),
    *(Row("gpuhealth-node-status", "PATCH", path, body, why) for path, body, why in _OF_STATUS),
    *(Row("gpuhealth-reports", *row) for row in _OF_REPORTS),
    *(Row("gpuhealth-slots", *row) for row in _OF_PLACES),
    *(Row("gpuhealth-events", *row) for row in _OF_EVENTS),
]
ALLOWED = [
    Row("", "PATCH", NODE, noted(labels={STATE_LABEL: "degraded"})),
    Row("", "PATCH", NODE, taints(OUR_TAINT, annotations=UNCORDONED)),
    Row("", "PATCH", NODE, taints(OUR_TAINT, annotations=LONGER)),
    Row("", "PATCH", NODE, {"spec": {**taints(OUR_TAINT)["spec"], "unschedulable": True}, **noted(annotations=RECORD)}),
    Row("", "PATCH", NODE, {"spec": {"unschedulable": True}, **noted(annotations=OUR_CORDON)}),
    Row("", "PATCH", PERSONS, noted(annotations=NO_MARK), who="PERSONS"),
    Row(
        "",
        "PATCH",
        CORDONED,
        {"spec": {"unschedulable": None}, **noted(annotations={QUARANTINE: None})},
        who="CORDONED",
    ),
    Row("", "PATCH", CORDONED, noted(annotations=WITH_XID), who="CORDONED"),
    Row("", "PATCH", OUT, {"spec": {"taints": None}, **noted(annotations=NO_MARK)}, who="OUT"),
    Row("", "PATCH", OUT, noted(annotations=LONGER), who="OUT"),
    Row("", "PATCH", OUT, {"spec": {"taints": None}, **noted(annotations={QUARANTINE: None})}, who="OUT"),
    Row("", "PATCH", f"{NODE}/status", {"status": {"conditions": [CONDITION]}}),
    Row("", "PATCH", f"{REPORTS}/MINE", noted(ownerReferences=[OWNER])),
    Row("", "PATCH", f"{REPORTS}/MINE/status", {"status": {"verdict": "healthy"}}),
    Row("", "POST", LEASES, lease("POOL", "POOL.7", "MINE")),
    Row("", "POST", LEASES, lease("POOL", "POOL.7", "MINE", age=540)),
    Row("", "POST", LEASES, lease("POOL", "POOL.window.7", "MINE", seconds=365 * 86400)),
    Row("", "POST", LEASES, lease("POOL", "POOL.fault.xid.79.7", "MINE", seconds=60)),
    Row("", "PUT", f"{LEASES}/POOL.1", lease("POOL", "POOL.1", "MINE")),
    Row("", "PUT", f"{LEASES}/POOL.window.2", lease("POOL", "POOL.window.2", "MINE", seconds=60)),
    Row("", "DELETE", f"{LEASES}/POOL.1", None),
    Row("", "POST", EVENTS, event("POOL.2", {**_MINE, "uid": "MINE"}, source={"host": "MINE"})),
    Row("", "PATCH", f"{EVENTS}/MINE.1", {"count": 7}),
]


class Scene:
    """Nodes with all objects about them: the thief's, another, one tainted and cordoned by a person, one quarantined by
    a taint, and one by a cordon, which a person has tainted."""

    def __init__(self, plane: ControlPlane, pool: Pool) -> None:
        self.plane, self.name = plane, pool.name
        self.mine, self.other, self.persons, self.out, self.cordoned = pool.nodes(5)
        for node in (self.mine, self.other):
            marks = {"labels": {"a": "b", STATE_LABEL: "healthy"}, "annotations": {"c": "d"}, "finalizers": ["f/g"]}
            pool.patch(node, {"metadata": marks, "spec": {"taints": [THEIR_TAINT, NEW_NODE]}})
            status = {"conditions": [THEIR_CONDITION], "capacity": {"cpu": "8"}, "allocatable": {"cpu": "8"}}
            path = f"/api/v1/nodes/{node}/status"
            plane.request("PATCH", path, {"status": status}, content_type=STRATEGIC_MERGE_PATCH)
            owner = {**OWNER, "name": node, "uid": pool.get(node)["metadata"]["uid"]}
            report: Document = {"apiVersion": "gpuhealth.io/v1alpha1", "kind": "GPUHealthReport"}
            report |= {"metadata": {"name": node, "ownerReferences": [owner]}}
            discovered = {"metadata": {"name": node, "labels": {"feature": "x"}}}
            plane.apply([report, event(f"{node}.1", {"kind": "Node", "name": node})])
            plane.apply([{"apiVersion": "v1", "kind": "Node", **discovered}])
            drain = {"status": {"drain": {"phase": "draining", "deadline": "2026-03-08T12:00:00Z"}}}
            plane.request("PATCH", f"{REPORTS}/{node}/status", drain, content_type=MERGE_PATCH)
        for node, notes in ((self.persons, {}), (self.out, UNCORDONED), (self.cordoned, OUR_CORDON)):
            pool.patch(node, {"spec": {"taints": [OUR_TAINT], "unschedulable": True}, **noted(annotations=notes)})
        self.uid = pool.get(self.mine)["metadata"]["uid"]
        unmarked = lease(self.name, f"{self.name}.5", self.other, seconds=1, age=60)
        del unmarked["metadata"]["labels"]
        leases = [
            lease(self.name, f"{self.name}.0", self.other),
            lease(self.name, f"{self.name}.1", self.mine),
            lease(self.name, f"{self.name}.window.0", self.other, seconds=3600),
            lease(self.name, f"{self.name}.window.1", self.mine, seconds=3600),
            lease(self.name, f"{self.name}.window.2", self.other, seconds=60, age=120),
            unmarked,
        ]
        plane.apply(json.loads(with_times(json.dumps(leases))))

    def filled(self, value: Any) -> Any:
        """A row with the names of this scene in the place of MINE, OTHER, PERSONS, OUT, POOL and UID."""
        text = json.dumps(value)
        names = {
            "MINE": self.mine,
            "OTHER": self.other,
            "PERSONS": self.persons,
            "/OUT": f"/{self.out}",
            "CORDONED": self.cordoned,
        }
        for word, name in {**names, "POOL": self.name, "UID": self.uid}.items():
            text = text.replace(word, name)
        return json.loads(with_times(text))

    def node(self, who: str) -> str:
        """The name of the node whose agent sends a row."""
        return {"MINE": self.mine, "PERSONS": self.persons, "OUT": self.out, "CORDONED": self.cordoned}[who]

    async def send(self, client: Client, row: Row, *, dry_run: bool = False) -> None:
        """Sends a row's request; strategic merge patches to a status, merge patches elsewhere."""
        path, body = self.filled([row.path, row.body])
        content = "application/json"
        if row.method == "PATCH":
            content = STRATEGIC_MERGE_PATCH if "/nodes/" in path and path.endswith("/status") else MERGE_PATCH
        if row.method == "PUT":
            body["metadata"]["resourceVersion"] = self.plane.request("GET", path)["metadata"]["resourceVersion"]
        query = {"dryRun": "All"} if dry_run else None
        await client.request(row.method, path, query=query, body=body, content_type=content)
