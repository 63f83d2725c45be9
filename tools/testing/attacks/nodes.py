"""Attacks on Nodes with the token of an agent or of the preflight."""

from __future__ import annotations

from gpuhealth.api.names import OVERRIDE, QUARANTINE, STATE_LABEL
from testing.attacks.objects import (
    CORDONED,
    FORGED,
    LABEL_OWNER,
    LONGER,
    NEW_NODE,
    NO_MARK,
    NODE,
    OTHERS,
    OUR_CORDON,
    OUR_TAINT,
    OUT,
    OWNER,
    PERSONS,
    RECORD,
    THEIR_TAINT,
    UNCORDONED,
    WITH_XID,
    noted,
    taints,
)
from testing.attacks.row import (
    RBAC,
    SERVER,
    Request,
    Row,
    Who,
    apply,
    delete,
    get,
    json_patch,
    merge,
    post,
    put,
    strategic,
)

NOT_YOURS = "that its own pod runs on"
LABELS, NOTES, REST, ROOM = "labels only", "annotations only", "the rest of its metadata", "leave room"
OWNED, WITH_RECORD, CLAIM = "stays theirs alone", "comes and goes with the annotation", "a cordon that the same request"
RECORDED = "only together with the taint"
TEXT = "x" * 100_000
LABELLED = {"labels": {STATE_LABEL: "degraded"}}
BARE_NODE = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "OTHER"}}
MANY_OWNERS = [{**FORGED, "apiVersion": "v1", "manager": f"m{k}", "fieldsV1": {f"f:{TEXT}": {}}} for k in range(6)]


def _agent(what: str, why: str, *requests: Request, by: str = "gpuhealth-nodes", on: str = "MINE") -> Row:
    return Row(Who.AGENT, what, by, why, requests, on)


def _allowed(what: str, why: str, *requests: Request, on: str = "MINE", who: Who = Who.AGENT) -> Row:
    return Row(who, what, "", why, requests, on)


_OTHER_NODES = [
    _agent("label another node, merge patch", NOT_YOURS, merge(OTHERS, noted(**LABELLED))),
    _agent("label another node, strategic merge patch", NOT_YOURS, strategic(OTHERS, noted(**LABELLED))),
    _agent(
        "label another node, JSON patch",
        NOT_YOURS,
        json_patch(OTHERS, {"op": "add", "path": "/metadata/labels/gpuhealth.io~1state", "value": "degraded"}),
    ),
    _agent("label another node, server-side apply", NOT_YOURS, apply(OTHERS, "Node", noted(name="OTHER", **LABELLED))),
    _agent("label another node, replacement", "cannot update", put(OTHERS, {**BARE_NODE}), by=RBAC),
    _agent("taint another node", NOT_YOURS, merge(OTHERS, taints(OUR_TAINT, annotations=RECORD))),
    _agent("untaint another node", NOT_YOURS, merge(OTHERS, {"spec": {"taints": None}})),
    _agent("cordon another node", NOT_YOURS, merge(OTHERS, {"spec": {"unschedulable": True}})),
    _agent("uncordon another node", NOT_YOURS, merge(PERSONS, {"spec": {"unschedulable": None}})),
    _agent("patch the own node under another's name", "name", merge(NODE, noted(name="OTHER")), by=SERVER),
    _agent("patch another node under the own name", "name", merge(OTHERS, noted(name="MINE")), by=SERVER),
    _agent(
        "create a node", "cannot create", post("/api/v1/nodes", {**BARE_NODE, "metadata": {"name": "new"}}), by=RBAC
    ),
    _agent(
        "create a node by server-side apply",
        "",
        apply("/api/v1/nodes/new", "Node", noted(name="new")),
        by=RBAC,
    ),
    _agent("delete another node", "cannot delete", delete(OTHERS), by=RBAC),
    _agent("delete the own node", "cannot delete", delete(NODE), by=RBAC),
    _agent("delete all nodes", "cannot deletecollection", delete("/api/v1/nodes"), by=RBAC),
    _agent("reach another node's kubelet", "cannot get", get(f"{OTHERS}/proxy/pods"), by=RBAC),
]
_METADATA = [
    _agent("change a person's label", LABELS, merge(NODE, noted(labels={"a": "c"}))),
    _agent("remove a person's label", LABELS, merge(NODE, noted(labels={"a": None}))),
    _agent(
        "make the node one of the control plane",
        LABELS,
        merge(NODE, noted(labels={"node-role.kubernetes.io/master": ""})),
    ),
    _agent("leave the pool of a budget", LABELS, merge(NODE, noted(labels={"pool": "elsewhere"}))),
    _agent(
        "start a driver upgrade by the operator's label",
        LABELS,
        merge(NODE, noted(labels={"nvidia.com/gpu-driver-upgrade-state": "upgrade-required"})),
    ),
    _agent("remove all labels by a JSON patch", LABELS, json_patch(NODE, {"op": "remove", "path": "/metadata/labels"})),
    _agent("override the verdict", NOTES, merge(NODE, noted(annotations={OVERRIDE: "unmanaged"}))),
    _agent(
        "declare the node repaired",
        NOTES,
        merge(NODE, noted(annotations={"gpuhealth.io/restored": "2026-03-01T12:00:00Z"})),
    ),
    _agent(
        "take the node out in a person's name",
        NOTES,
        merge(NODE, noted(annotations={"gpuhealth.io/out-of-service": "x"})),
    ),
    _agent(
        "release the driver in a person's name",
        NOTES,
        merge(NODE, noted(annotations={"gpuhealth.io/release-gpus": "true"})),
    ),
    _agent("write findings of the fleet", NOTES, merge(NODE, noted(annotations={"gpuhealth.io/fleet-findings": "[]"}))),
    _agent(
        "keep the autoscaler from removing the node",
        NOTES,
        merge(NODE, noted(annotations={"cluster-autoscaler.kubernetes.io/scale-down-disabled": "true"})),
    ),
    _agent("remove a person's annotation", NOTES, merge(NODE, noted(annotations={"c": None}))),
    _agent("change a person's annotation", NOTES, merge(NODE, noted(annotations={"c": "e"}))),
    _agent("remove a finalizer of others", REST, merge(NODE, noted(finalizers=None))),
    _agent("add a finalizer", REST, strategic(NODE, noted(finalizers=["x/y"]))),
    _agent("add an owner", REST, merge(NODE, noted(ownerReferences=[OWNER]))),
    _agent("change generateName", REST, merge(NODE, noted(generateName="x"))),
    _agent("wipe the managed fields", OWNED, merge(NODE, noted(managedFields=[{}]))),
    _agent("replace the managed fields", OWNED, merge(NODE, noted(managedFields=[{**FORGED, "apiVersion": "v1"}]))),
    _agent(
        "own a label of others by server-side apply",
        OWNED,
        apply(NODE, "Node", noted(name="MINE", labels={"feature": "x"})),
    ),
    _agent(
        "claim the ownership of a label of others",
        OWNED,
        json_patch(NODE, {"op": "add", "path": "/metadata/managedFields/-", "value": LABEL_OWNER}),
    ),
    _agent(
        "fill the annotations of the node",
        ROOM,
        merge(NODE, taints(OUR_TAINT, annotations={QUARANTINE: TEXT})),
    ),
    _agent(
        "fill the annotations by dismissed codes",
        ROOM,
        merge(NODE, noted(annotations={"gpuhealth.io/dismissed": TEXT})),
    ),
    _agent(
        "fill the object with managed fields",
        ROOM,
        json_patch(NODE, *({"op": "add", "path": "/metadata/managedFields/-", "value": each} for each in MANY_OWNERS)),
    ),
]
_SPEC = [
    _agent("add a taint that evicts", "taints of others", merge(NODE, taints({"key": "new", "effect": "NoExecute"}))),
    _agent("remove a taint of others", "taints of others", merge(NODE, taints(kept=(NEW_NODE,)))),
    _agent(
        "change a taint of others",
        "taints of others",
        merge(NODE, taints(kept=({**THEIR_TAINT, "value": "y"}, NEW_NODE))),
    ),
    _agent(
        "remove all taints by a JSON patch",
        "taints of others",
        json_patch(NODE, {"op": "remove", "path": "/spec/taints"}),
    ),
    _agent("taint without a record", WITH_RECORD, merge(NODE, taints(OUR_TAINT))),
    _agent(
        "evict all pods by the taint's effect",
        "its effect is NoSchedule",
        merge(NODE, taints({**OUR_TAINT, "effect": "NoExecute"}, annotations=RECORD)),
    ),
    _agent("end the tests of a new node", "only by gpuhealth-preflight", merge(NODE, taints(kept=(THEIR_TAINT,)))),
    _agent(
        "turn the tests of a new node into an eviction",
        "has the effect NoSchedule",
        merge(NODE, taints({**NEW_NODE, "effect": "NoExecute"})),
    ),
    _agent("cordon without a record", "in mode cordon", merge(NODE, {"spec": {"unschedulable": True}})),
    _agent("change the provider's id", "nothing of a Node's spec", merge(NODE, {"spec": {"providerID": "aws:///x"}})),
    _agent(
        "change the addresses of pods",
        "nothing of a Node's spec",
        merge(NODE, {"spec": {"podCIDR": "10.9.0.0/24", "podCIDRs": ["10.9.0.0/24"]}}),
    ),
    _agent("add an empty record", RECORDED, merge(NODE, noted(annotations={QUARANTINE: "{}"}))),
    _agent("add a record without a taint", RECORDED, merge(NODE, noted(annotations=UNCORDONED))),
    _agent("call a person's taint ours", RECORDED, merge(PERSONS, noted(annotations={QUARANTINE: "{}"})), on="PERSONS"),
    _agent("call a person's taint and cordon ours", RECORDED, merge(PERSONS, noted(annotations=RECORD)), on="PERSONS"),
    _agent(
        "call a person's taint ours and remove it",
        "comes and goes",
        merge(PERSONS, {"spec": {"taints": None}, **noted(annotations=RECORD)}),
        on="PERSONS",
    ),
    _agent("remove a person's taint", "comes and goes", merge(PERSONS, {"spec": {"taints": None}}), on="PERSONS"),
    _agent(
        "uncordon what a person cordoned",
        "we cordoned",
        merge(PERSONS, {"spec": {"unschedulable": None}}),
        on="PERSONS",
    ),
    _agent("call a person's cordon ours", CLAIM, merge(OUT, noted(annotations=RECORD)), on="OUT"),
    _agent(
        "uncordon a quarantined node of a person",
        "we cordoned",
        merge(OUT, {"spec": {"unschedulable": None}}),
        on="OUT",
    ),
    _agent(
        "call a person's cordon ours and remove it",
        CLAIM,
        merge(OUT, {"spec": {"unschedulable": None}, **noted(annotations=RECORD)}),
        on="OUT",
    ),
    _agent(
        "two requests: empty the record, then call the cordon ours",
        CLAIM,
        merge(OUT, noted(annotations={QUARANTINE: "{}"})),
        merge(OUT, noted(annotations=RECORD)),
        on="OUT",
    ),
    _agent(
        "two requests: end the quarantine, then uncordon",
        "we cordoned",
        merge(OUT, {"spec": {"taints": None}, **noted(annotations={QUARANTINE: None})}),
        merge(OUT, {"spec": {"unschedulable": None}}),
        on="OUT",
    ),
    _agent(
        "two requests: taint with a record, then claim a cordon that is none",
        CLAIM,
        merge(NODE, taints(OUR_TAINT, annotations=UNCORDONED)),
        merge(NODE, noted(annotations=RECORD)),
    ),
    _agent(
        "two requests: taint with a record, then evict by another effect",
        "its effect is NoSchedule",
        merge(NODE, taints(OUR_TAINT, annotations=UNCORDONED)),
        merge(NODE, taints({**OUR_TAINT, "effect": "NoExecute"})),
    ),
    _agent(
        "two requests: set the taint of new nodes again, then end the tests",
        "only by gpuhealth-preflight",
        merge(OUT, taints(kept=(OUR_TAINT, NEW_NODE))),
        merge(OUT, taints(kept=(OUR_TAINT,))),
        on="OUT",
    ),
]
_CORDON = [
    _agent(
        "remove a person's taint with a record that claims none",
        "comes and goes",
        merge(PERSONS, {"spec": {"taints": None}, **noted(annotations=NO_MARK)}),
        on="PERSONS",
    ),
    _agent(
        "call a person's cordon ours for a driver's finding",
        CLAIM,
        merge(PERSONS, noted(annotations=OUR_CORDON)),
        on="PERSONS",
    ),
    _agent(
        "uncordon what a person cordoned with a record that claims nothing",
        "only",
        merge(PERSONS, {"spec": {"unschedulable": None}, **noted(annotations=NO_MARK)}),
        on="PERSONS",
    ),
    _agent("add a record of a node that nobody cordoned", RECORDED, merge(NODE, noted(annotations=NO_MARK))),
    _agent("claim a cordon that is none", "only", merge(NODE, noted(annotations=OUR_CORDON))),
    _agent(
        "cordon with a record that does not claim it",
        "in mode cordon",
        merge(NODE, {"spec": {"unschedulable": True}, **noted(annotations=NO_MARK)}),
    ),
    _agent(
        "taint with a record that does not claim it",
        WITH_RECORD,
        merge(NODE, taints(OUR_TAINT, annotations=NO_MARK)),
    ),
    _agent(
        "remove a person's taint of a node that we cordoned",
        "comes and goes",
        merge(CORDONED, {"spec": {"taints": None}}),
        on="CORDONED",
    ),
    _agent(
        "remove a person's taint at the end of our cordon",
        "comes and goes",
        merge(CORDONED, {"spec": {"taints": None}, **noted(annotations={QUARANTINE: None})}),
        on="CORDONED",
    ),
    _agent(
        "call a person's taint ours in the record of our cordon",
        RECORDED,
        merge(CORDONED, noted(annotations=UNCORDONED)),
        on="CORDONED",
    ),
    _agent(
        "call a person's taint ours in that record and remove it",
        "comes and goes",
        merge(CORDONED, {"spec": {"taints": None}, **noted(annotations=UNCORDONED)}),
        on="CORDONED",
    ),
    _allowed(
        "cordon the own node for a driver's finding",
        "what an agent does; the budgets bound it",
        merge(NODE, {"spec": {"unschedulable": True}, **noted(annotations=OUR_CORDON)}),
    ),
    _allowed(
        "record that a person's cordon is enough",
        "what an agent does; the record claims nothing",
        merge(PERSONS, noted(annotations=NO_MARK)),
        on="PERSONS",
    ),
    _allowed(
        "end the own cordon",
        "what an agent does",
        merge(CORDONED, {"spec": {"unschedulable": None}, **noted(annotations={QUARANTINE: None})}),
        on="CORDONED",
    ),
    _allowed(
        "add a finding to the record of the own cordon",
        "what an agent does",
        merge(CORDONED, noted(annotations=WITH_XID)),
        on="CORDONED",
    ),
    _allowed(
        "replace the own taint by a person's cordon",
        "what an agent does when the finding changes to one of the driver's",
        merge(OUT, {"spec": {"taints": None}, **noted(annotations=NO_MARK)}),
        on="OUT",
    ),
]
_OF_PREFLIGHT = [
    Row(
        Who.PREFLIGHT,
        "end the tests of another node",
        "gpuhealth-nodes",
        NOT_YOURS,
        (merge(OTHERS, taints(kept=(THEIR_TAINT,))),),
    ),
    Row(
        Who.PREFLIGHT,
        "remove a taint of others with its own",
        "gpuhealth-nodes",
        "taints of others",
        (merge(NODE, {"spec": {"taints": None}}),),
    ),
    Row(
        Who.PREFLIGHT,
        "override the verdict",
        "gpuhealth-nodes",
        NOTES,
        (merge(NODE, noted(annotations={OVERRIDE: "healthy"})),),
    ),
    Row(
        Who.PREFLIGHT,
        "make its taint evict",
        "gpuhealth-nodes",
        "has the effect",
        (merge(NODE, taints(kept=(THEIR_TAINT, {**NEW_NODE, "effect": "NoExecute"}))),),
    ),
    Row(
        Who.PREFLIGHT,
        "write the node's status",
        RBAC,
        "cannot patch",
        (strategic(f"{NODE}/status", {"status": {"conditions": []}}),),
    ),
    Row(
        Who.UNBOUND_PREFLIGHT,
        "end the tests of a node",
        "gpuhealth-nodes",
        NOT_YOURS,
        (merge(NODE, taints(kept=(THEIR_TAINT,))),),
    ),
    Row(Who.UNBOUND_AGENT, "label a node", "gpuhealth-nodes", NOT_YOURS, (merge(NODE, noted(**LABELLED)),)),
    Row(
        Who.UNBOUND_AGENT,
        "taint a node",
        "gpuhealth-nodes",
        NOT_YOURS,
        (merge(NODE, taints(OUR_TAINT, annotations=UNCORDONED)),),
    ),
]
_ALLOWED = [
    _allowed("set the state label", "what an agent does", merge(NODE, noted(**LABELLED))),
    _allowed(
        "quarantine the own node",
        "what an agent does; the budgets bound it",
        merge(NODE, taints(OUR_TAINT, annotations=UNCORDONED)),
    ),
    _allowed(
        "the same with a record of a newer version",
        "the record may have more fields",
        merge(NODE, taints(OUR_TAINT, annotations=LONGER)),
    ),
    _allowed(
        "quarantine and cordon the own node in mode cordon",
        "what an agent does in that mode",
        merge(NODE, {"spec": {**taints(OUR_TAINT)["spec"], "unschedulable": True}, **noted(annotations=RECORD)}),
    ),
    _allowed(
        "change the record of a quarantined node", "what an agent does", merge(OUT, noted(annotations=LONGER)), on="OUT"
    ),
    _allowed(
        "end the quarantine of the own node",
        "what an agent does",
        merge(OUT, {"spec": {"taints": None}, **noted(annotations={QUARANTINE: None})}),
        on="OUT",
    ),
    _allowed(
        "set the taint of new nodes on the own node",
        "what an agent does after a reboot",
        merge(OUT, taints(kept=(OUR_TAINT, NEW_NODE))),
        on="OUT",
    ),
    _allowed("give the state label any value", "of its own node only", merge(NODE, noted(labels={STATE_LABEL: "x"}))),
    _allowed(
        "remove a taint of our key with another effect that was added to ours",
        "of its own node only, and only while the record is there",
        merge(OUT, {"spec": {"taints": None}}),
        on="OUT",
    ),
    _allowed(
        "end the tests of the own node",
        "what the preflight does",
        merge(NODE, taints(kept=(THEIR_TAINT,))),
        who=Who.PREFLIGHT,
    ),
    _allowed(
        "record that the tests failed",
        "what the preflight does",
        merge(NODE, taints(kept=(THEIR_TAINT, {**NEW_NODE, "value": "failed"}))),
        who=Who.PREFLIGHT,
    ),
]
ROWS = [*_OTHER_NODES, *_METADATA, *_SPEC, *_CORDON, *_OF_PREFLIGHT, *_ALLOWED]
