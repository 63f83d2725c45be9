"""Attacks with the token of the controller on all but pods."""

from __future__ import annotations

from kube import Document

from gpuhealth.api.names import OVERRIDE, STATE_LABEL
from testing.attacks.nodes import BARE_NODE, MANY_OWNERS, TEXT
from testing.attacks.objects import (
    CONDITION,
    EVENTS,
    LABEL_OWNER,
    LEASES,
    NODE,
    OTHERS,
    OUR_TAINT,
    OWNER,
    PODS,
    REPORT,
    REPORTS,
    conditions,
    event,
    lease,
    noted,
    taints,
)
from testing.attacks.reports import BUDGETS, WIDE
from testing.attacks.row import RBAC, Request, Row, Who, apply, delete, get, json_patch, merge, post, put, strategic

FINDINGS = "gpuhealth.io/fleet-findings"
STATUS = f"{NODE}/status"
SPEC, MARKS, REST, OWNED, ROOM = (
    "taints, cordon",
    "labels and annotations",
    "the rest of its metadata",
    "theirs alone",
    "leave room",
)
CONDITIONS, UNKNOWN, STATES, DRAIN = "of a Node's status", "only to Unknown", "states of drains", "only status.drain"
RESERVE, NAME, ABOUT = "may only reserve slots", "only in its own name", "only about Nodes and pods"
LEADER: Document = {
    "apiVersion": "coordination.k8s.io/v1",
    "kind": "Lease",
    "metadata": {"name": "gpuhealth-controller", "namespace": "gpuhealth"},
    "spec": {"holderIdentity": "x"},
}
SILENT = {**CONDITION, "status": "Unknown", "reason": "AgentSilent"}


def _refused(by: str, what: str, why: str, *requests: Request) -> Row:
    return Row(Who.CONTROLLER, what, by, why, requests)


def _node(what: str, why: str, *requests: Request) -> Row:
    return _refused("gpuhealth-controller", what, why, *requests)


def _allowed(what: str, why: str, *requests: Request) -> Row:
    return Row(Who.CONTROLLER, what, "", why, requests)


_NODES = [
    _node("taint a node", SPEC, merge(NODE, {"spec": {"taints": [OUR_TAINT]}})),
    _node("evict all pods by a taint", SPEC, strategic(NODE, taints({**OUR_TAINT, "effect": "NoExecute"}))),
    _node("remove all taints", SPEC, merge(NODE, {"spec": {"taints": None}})),
    _node("cordon a node", SPEC, merge(NODE, {"spec": {"unschedulable": True}})),
    _node(
        "cordon a node, JSON patch", SPEC, json_patch(NODE, {"op": "add", "path": "/spec/unschedulable", "value": True})
    ),
    _node(
        "cordon a node, server-side apply",
        SPEC,
        apply(NODE, "Node", {**noted(name="MINE"), "spec": {"unschedulable": True}}),
    ),
    _node("uncordon a node", SPEC, merge("/api/v1/nodes/PERSONS", {"spec": {"unschedulable": None}})),
    _node("change the provider's id", SPEC, merge(NODE, {"spec": {"providerID": "x"}})),
    _node(
        "make a node one of the control plane", MARKS, merge(NODE, noted(labels={"node-role.kubernetes.io/master": ""}))
    ),
    _node("take a node out of its pool", MARKS, merge(NODE, noted(labels={"pool": None}))),
    _node("override the verdict", MARKS, merge(NODE, noted(annotations={OVERRIDE: "healthy"}))),
    _node(
        "take a node out in a person's name",
        MARKS,
        merge(NODE, noted(annotations={"gpuhealth.io/out-of-service": "x"})),
    ),
    _node("forge the record of a quarantine", MARKS, merge(NODE, noted(annotations={"gpuhealth.io/quarantine": "{}"}))),
    _node("remove a person's annotation", MARKS, merge(NODE, noted(annotations={"c": None}))),
    _node("write an annotation of ours as a label", MARKS, merge(NODE, noted(labels={FINDINGS: "x"}))),
    _node("start the preflight on a node in service", STATES, merge(NODE, noted(labels={STATE_LABEL: "preflight"}))),
    _node("remove the state label", STATES, merge(NODE, noted(labels={STATE_LABEL: None}))),
    _node("fill the annotations of a node", ROOM, merge(NODE, noted(annotations={FINDINGS: TEXT}))),
    _node(
        "fill the object with managed fields",
        ROOM,
        json_patch(NODE, *({"op": "add", "path": "/metadata/managedFields/-", "value": each} for each in MANY_OWNERS)),
    ),
    _node("wipe the managed fields", OWNED, merge(NODE, noted(managedFields=[{}]))),
    _node(
        "claim the ownership of a label of others",
        OWNED,
        json_patch(NODE, {"op": "add", "path": "/metadata/managedFields/-", "value": LABEL_OWNER}),
    ),
    _node(
        "own a label of others by server-side apply",
        OWNED,
        apply(NODE, "Node", noted(name="MINE", labels={"feature": "x"})),
    ),
    _node("add a finalizer", REST, merge(NODE, noted(finalizers=["f/g", "x/y"]))),
    _node("add an owner", REST, merge(NODE, noted(ownerReferences=[OWNER]))),
    _node(
        "say that a node is not ready", CONDITIONS, strategic(STATUS, conditions({"type": "Ready", "status": "False"}))
    ),
    _node("offer no GPUs", CONDITIONS, strategic(STATUS, {"status": {"allocatable": {"cpu": "0"}}})),
    _node("change a label by way of the status", MARKS, strategic(STATUS, noted(labels={"a": "c"}))),
    _node("call a node unhealthy", UNKNOWN, strategic(STATUS, conditions(CONDITION))),
    _node("call a node healthy", UNKNOWN, strategic(STATUS, conditions({**CONDITION, "status": "True"}))),
    _node(
        "fill the object with the message", UNKNOWN, strategic(STATUS, conditions({**SILENT, "message": "x" * 40_000}))
    ),
    _refused(RBAC, "delete a node", "cannot delete", delete(OTHERS)),
    _refused(RBAC, "create a node", "cannot create", post("/api/v1/nodes", {**BARE_NODE, "metadata": {"name": "new"}})),
    _refused(RBAC, "replace a node", "cannot update", put(OTHERS, {**BARE_NODE})),
    _allowed(
        "set the state label of a drain",
        "what the controller does",
        merge(NODE, noted(labels={STATE_LABEL: "draining"})),
    ),
    _allowed(
        "publish findings of the fleet",
        "what the controller does; the budgets bound what agents do",
        merge(NODE, noted(annotations={FINDINGS: "[]"})),
    ),
    _allowed("say that an agent is silent", "what the controller does", strategic(STATUS, conditions(SILENT))),
]
_OTHERS = [
    _refused(
        "gpuhealth-controller-reports",
        "call a node healthy in its report",
        DRAIN,
        merge(f"{REPORTS}/MINE/status", {"status": {"verdict": "healthy"}}),
    ),
    _refused(
        "gpuhealth-controller-reports",
        "request a drain in a report",
        DRAIN,
        merge(f"{REPORTS}/MINE/status", {"status": {"quarantine": {"state": "quarantined", "drain": True}}}),
    ),
    _refused(
        "gpuhealth-controller-reports", "empty a report", DRAIN, merge(f"{REPORTS}/MINE/status", {"status": None})
    ),
    _refused(RBAC, "label a report", "cannot patch", merge(f"{REPORTS}/MINE", noted(labels={"a": "b"}))),
    _refused(RBAC, "create a report", "cannot create", post(REPORTS, {**REPORT, **noted(name="POOL-new")})),
    _refused(RBAC, "delete a report", "cannot delete", delete(f"{REPORTS}/MINE")),
    _refused(RBAC, "create a budget for all nodes", "cannot create", post(BUDGETS, WIDE)),
    _refused(RBAC, "widen a budget", "cannot patch", merge(f"{BUDGETS}/POOL", {"spec": {"maxUnavailable": "100%"}})),
    _refused(
        "gpuhealth-controller-slots", "take a slot for a node", RESERVE, post(LEASES, lease("POOL", "POOL.7", "MINE"))
    ),
    _refused(
        "gpuhealth-controller-slots",
        "pass a slot on",
        RESERVE,
        put(f"{LEASES}/POOL.0", lease("POOL", "POOL.0", "MINE")),
    ),
    _refused(
        "gpuhealth-controller-slots",
        "a slot of another budget than its name's",
        RESERVE,
        post(LEASES, lease("other", "POOL.7", "gpuhealth-controller/MINE", node="MINE")),
    ),
    _refused(
        "gpuhealth-controller-slots",
        "a Lease that looks like a slot and has no labels",
        RESERVE,
        put(f"{LEASES}/POOL.5", {**lease("POOL", "POOL.5", "x"), "metadata": {"name": "POOL.5"}}),
    ),
    _refused(
        "gpuhealth-controller-slots",
        "a Lease that cannot be deleted",
        "neither finalizers nor owners",
        post(LEASES, {**LEADER, "metadata": {**LEADER["metadata"], "name": "x", "finalizers": ["x.y/z"]}}),
    ),
    _refused(
        "gpuhealth-controller-slots",
        "a slot that fills the memory of agents",
        "no larger than 16 KiB",
        post(
            LEASES, lease("POOL", "POOL.7", "gpuhealth-controller/MINE", node="MINE", annotations={"a": "x" * 17_000})
        ),
    ),
    _refused(
        RBAC,
        "a Lease of another namespace",
        "cannot update",
        put(
            "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/x",
            {**LEADER, "metadata": {"name": "x", "resourceVersion": "1"}},
        ),
    ),
    _refused(RBAC, "release all slots at once", "cannot deletecollection", delete(LEASES)),
    _refused(
        "gpuhealth-controller-events",
        "an Event as the kubelet",
        NAME,
        post(EVENTS, event("e", {"kind": "Node", "name": "n"}, "kubelet")),
    ),
    _refused(
        "gpuhealth-controller-events",
        "an Event as an agent",
        NAME,
        post(EVENTS, event("e", {"kind": "Node", "name": "n"})),
    ),
    _refused(
        "gpuhealth-controller-events",
        "an Event from a host",
        NAME,
        post(EVENTS, event("e", {"kind": "Node", "name": "n"}, "gpuhealth-controller", source={"host": "n"})),
    ),
    _refused(
        "gpuhealth-controller-events",
        "an Event about a Secret",
        ABOUT,
        post(EVENTS, event("e", {"kind": "Secret", "name": "s", "namespace": "default"}, "gpuhealth-controller")),
    ),
    _refused(
        "gpuhealth-controller-events",
        "an Event about two objects",
        ABOUT,
        post(
            EVENTS,
            event("e", {"kind": "Node", "name": "n"}, "gpuhealth-controller", related={"kind": "Node", "name": "n"}),
        ),
    ),
    _refused(
        "gpuhealth-controller-events",
        "an Event that cannot be deleted",
        "finalizers nor owners",
        post(
            EVENTS, event("e", {"kind": "Node", "name": "n"}, "gpuhealth-controller", metadata={"finalizers": ["x/y"]})
        ),
    ),
    _refused(
        "gpuhealth-controller-events",
        "an Event of 20 KB",
        "no larger than 16 KiB",
        post(EVENTS, event("e", {"kind": "Node", "name": "n"}, "gpuhealth-controller", message="x" * 20_000)),
    ),
    _refused(RBAC, "change an Event", "cannot patch", merge(f"{EVENTS}/OTHER.1", {"count": 7})),
    _refused(RBAC, "read Secrets", "cannot list", get("/api/v1/namespaces/gpuhealth/secrets")),
    _refused(RBAC, "delete all pods of a namespace at once", "cannot deletecollection", delete(PODS)),
    _refused(RBAC, "run a command in a pod", "cannot create", post(f"{PODS}/p/exec?command=id", None)),
    _refused(
        RBAC,
        "widen a PodDisruptionBudget",
        "cannot patch",
        merge("/apis/policy/v1beta1/namespaces/default/poddisruptionbudgets/x", {}),
    ),
    _refused(
        RBAC,
        "change the image of the agents",
        "cannot patch",
        merge("/apis/apps/v1/namespaces/gpuhealth/daemonsets/gpuhealth-agent", {"spec": {}}),
    ),
    _refused(
        RBAC,
        "change the template of burn-ins",
        "cannot patch",
        merge("/api/v1/namespaces/gpuhealth/podtemplates/gpuhealth-burnin", {"template": {}}),
    ),
    _allowed(
        "write the progress of a drain",
        "what the controller does",
        merge(f"{REPORTS}/MINE/status", {"status": {"drain": {"phase": "drained"}}}),
    ),
    _allowed(
        "reserve a slot",
        "what the controller does",
        post(LEASES, lease("POOL", "POOL.7", "gpuhealth-controller/MINE", node="MINE")),
    ),
    _allowed("hold the Lease of its election", "what the controller does", post(LEASES, LEADER)),
    _allowed(
        "release a slot",
        "what the controller does for nodes that are gone; no agent takes more slots than the budget has",
        delete(f"{LEASES}/POOL.0"),
    ),
    _allowed(
        "say how many nodes a budget has",
        "a percentage then allows more or fewer nodes; counts are not affected",
        merge(f"{BUDGETS}/POOL/status", {"status": {"size": 1000}}),
    ),
    _allowed(
        "an Event about a node",
        "what the controller does",
        post(EVENTS, event("e", {"kind": "Node", "name": "n"}, "gpuhealth-controller")),
    ),
]
ROWS = [*_NODES, *_OTHERS]
