"""Parts of the requests in the table of attacks."""

from __future__ import annotations

from typing import Any

from kube import Document

from gpuhealth.api.names import PREFLIGHT_TAINT, QUARANTINE, TAINT

LEASES = "/apis/coordination.k8s.io/v1/namespaces/gpuhealth/leases"
REPORTS = "/apis/gpuhealth.io/v1alpha1/gpuhealthreports"
EVENTS = "/api/v1/namespaces/default/events"
PODS = "/api/v1/namespaces/gpuhealth/pods"
NODE, OTHERS = "/api/v1/nodes/MINE", "/api/v1/nodes/OTHER"
PERSONS, OUT, CORDONED = "/api/v1/nodes/PERSONS", "/api/v1/nodes/OUT", "/api/v1/nodes/CORDONED"
THEIR_TAINT = {"key": "theirs", "value": "x", "effect": "NoExecute"}
OUR_TAINT = {"key": TAINT, "value": "xid.79", "effect": "NoSchedule"}
NEW_NODE = {"key": PREFLIGHT_TAINT, "value": "pending", "effect": "NoSchedule"}
THEIR_CONDITION = {"type": "Theirs", "status": "True", "reason": "R", "message": "m"}
CONDITION = {"type": "GPUHealthy", "status": "False", "reason": "R", "message": "m"}
RECORD = {QUARANTINE: '{"code":"xid.79","since":"2026-03-01T12:00:00Z","cordoned":true}'}
UNCORDONED = {QUARANTINE: '{"code":"xid.79","since":"2026-03-01T12:00:00Z","cordoned":false}'}
_NOT_LOADED = '"code":"driver.not_loaded","since":"2026-03-01T12:00:00Z"'
OUR_CORDON = {QUARANTINE: f'{{{_NOT_LOADED},"cordoned":true,"tainted":false}}'}
NO_MARK = {QUARANTINE: f'{{{_NOT_LOADED},"tainted":false}}'}
NO_MARK_FOR_XID = {QUARANTINE: '{"code":"xid.79","since":"2026-03-01T12:00:00Z","tainted":false}'}
WITH_XID = {
    QUARANTINE: '{"code":"xid.79","since":"2026-03-01T12:00:00Z","cordoned":true,"tainted":false,"causes":[{'
    f"{_NOT_LOADED}}}]}}"
}
LONGER = {QUARANTINE: '{"code":"xid.48","since":"2026-03-01T12:00:00Z","cordoned":false,"more":{"b":[1]}}'}
OWNER = {"apiVersion": "v1", "kind": "Node", "name": "MINE", "uid": "UID"}
REPORT = {"apiVersion": "gpuhealth.io/v1alpha1", "kind": "GPUHealthReport"}
FORGED = {
    "manager": "Python",
    "operation": "Update",
    "apiVersion": "coordination.k8s.io/v1",
    "time": "2099-01-01T00:00:00Z",
    "fieldsType": "FieldsV1",
    "fieldsV1": {"f:spec": {"f:renewTime": {}}},
}
LABEL_OWNER = {
    **FORGED,
    "manager": "thief",
    "operation": "Apply",
    "apiVersion": "v1",
    "fieldsV1": {"f:metadata": {"f:labels": {"f:feature": {}}}},
}


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
    """A budget slot, renewed `age` seconds before it is sent (see `scene.with_times`); `node` and `of_set` replace the
    right values of its labels."""
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


def conditions(*found: Document) -> Document:
    """The body of a patch that changes a Node's conditions."""
    return {"status": {"conditions": list(found)}}
