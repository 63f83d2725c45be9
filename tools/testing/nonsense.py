"""A cluster in which each field of each object holds each kind of nonsense, as far as an API server takes it."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator

from kube import ControlPlane, Document
from kube.control_plane import RequestError

from gpuhealth.kube.kinds import BUDGETS, LEASES, NODES, PODS, REPORTS, Kind
from testing.odd_objects import META, SAMPLES, TIME, Json, paths

MERGE = "application/merge-patch+json"
RECORD = {"code": "xid.79", "since": TIME, "causes": [{"code": "xid.79", "since": TIME, "boot_id": "b"}]}
VALUES: list[Json] = [
    None, True, -1, 2**63 - 1, 1.5, "x", "0000-01-01T00:00:00Z", "2026-01-01T00:00:00+99:99",
    "9999-12-31T23:59:59-12:00", [], [None], {"x": {"y": [1]}},
]  # fmt: skip
LEASE = {
    "holderIdentity": "a",
    "leaseDurationSeconds": 5,
    "renewTime": "2026-03-01T12:00:00.000000Z",
    "acquireTime": "2026-03-01T12:00:00.000000Z",
    "leaseTransitions": 1,
}
"""A Lease has times to the microsecond."""
ANNOTATIONS = {
    "gpuhealth.io/quarantine": RECORD,
    "gpuhealth.io/fleet-findings": [{"code": "fleet.slow_gpu", "gpu": "GPU-1", "message": "m"}],
}
TEXTS = ("dismissed", "override", "out-of-service", "restored", "release-gpus")
"""Annotations of a Node that are plain texts."""
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


def without_bounds(plane: ControlPlane) -> None:
    """Lets reports and budgets say anything, as definitions of another version might."""
    for kind in (REPORTS, BUDGETS):
        path = f"{DEFINITIONS}/{kind.plural}.gpuhealth.io"
        found = plane.request("GET", path)
        schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        found["spec"]["versions"][0]["schema"] = {"openAPIV3Schema": schema}
        plane.request("PUT", path, found)


def odd(sample: Json, *roots: str) -> Iterator[tuple[str, Json]]:
    """Copies of an object in which one value below these fields is another: what and where, and the object."""
    for at in paths(sample):
        if not at or at[0] not in roots:
            continue
        for value in VALUES:
            item = copy.deepcopy(sample)
            outer = item
            for key in at[:-1]:
                outer = outer[key]
            outer[at[-1]] = value
            yield f"{'.'.join(map(str, at))} = {str(value)[:30]!r}", item


def odd_annotations() -> Iterator[tuple[str, dict[str, str]]]:
    """Annotations of a Node, each with nonsense as a whole or in one of its fields."""
    for key, value in ANNOTATIONS.items():
        for what, item in odd({"a": value}, "a"):
            yield f"{key} {what}", {key: json.dumps(item["a"])}
        for text in ("", "{", "nil", "[" * 5000):
            yield f"{key} = {text[:10]}", {key: text}
    for name in TEXTS:
        for value in VALUES:
            if isinstance(value, str):
                yield f"{name} = {value[:30]!r}", {f"gpuhealth.io/{name}": value}


class Nonsense:
    """Makes the objects, each with a name of its own, and remembers which the API server has taken."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self.nodes: dict[str, str] = {}  # what is odd about the node, its report or its pods, by its name
        self.taken: dict[Kind, int] = {}

    def make_all(self, budget: str) -> None:
        """Everything: Nodes, reports, pods, and budgets and Leases of a budget that all nodes need."""
        for what, item in odd(SAMPLES[NODES], "spec", "status"):
            self._node(what, {key: item[key] for key in ("spec", "status") if key in item})
        for what, notes in odd_annotations():
            self._node(what, {}, notes)
        for what, item in odd(SAMPLES[REPORTS], "status"):
            if self._take(REPORTS, name := self._name("report", REPORTS), {}, {"status": item["status"]}):
                self._plane.create_node(name, {"gpuhealth.io/state": "quarantined"})
                self.nodes[name] = what
        for _, item in odd(SAMPLES[BUDGETS], "spec", "status"):
            body = {"spec": item["spec"], "metadata": {"labels": {}}}
            if isinstance(item["spec"], dict) and item["spec"].get("nodeSelector") in (
                {},
                {"x": {"y": [1]}},
                None,
                [],
                False,
            ):
                continue  # which would select all nodes
            self._take(BUDGETS, self._name("budget", BUDGETS), body, {"status": item.get("status")})
        for number, (_, item) in enumerate(odd({"spec": LEASE}, "spec")):
            labels = {"gpuhealth.io/budget": budget, "gpuhealth.io/slot-set": "unavailable", "gpuhealth.io/node": "x"}
            text = (
                json.dumps(item["spec"])
                .replace(":00Z", ":00.000000Z")
                .replace(":59-", ":59.000000-")
                .replace(":00+", ":00.000000+")
            )
            self._take(LEASES, f"{budget}.{number}", {"spec": json.loads(text), "metadata": {"labels": labels}})
        self._plane.create_node("odd-pods", {"gpuhealth.io/state": "quarantined"})
        for _, item in odd(SAMPLES[PODS] | {"spec": {"nodeName": "odd-pods"}}, "status"):
            spec = {"nodeName": "odd-pods", "containers": [{"name": "c", "image": "i"}]}
            self._take(PODS, self._name("pod", PODS), {"spec": spec}, {"status": item["status"]}, "default")

    def _name(self, prefix: str, kind: Kind) -> str:
        return f"odd-{prefix}-{self.taken.get(kind, 0)}"

    def _node(self, what: str, parts: Document, annotations: dict[str, str] | None = None) -> None:
        name = self._name("node", NODES)
        metadata = {"labels": META["labels"], "annotations": annotations or {}}
        if self._take(NODES, name, {"spec": parts.get("spec"), "metadata": metadata}, {"status": parts.get("status")}):
            self.nodes[name] = what

    def _take(self, kind: Kind, name: str, body: Document, status: Document | None = None, namespace: str = "") -> bool:
        """Whether the API server takes the object and its status; else it is not there."""
        namespace = namespace or ("gpuhealth" if kind is LEASES else "")
        made = {"apiVersion": kind.api_version, "kind": kind.kind, **body}
        made["metadata"] = {**body.get("metadata", {}), "name": name}
        try:
            self._plane.request("POST", kind.path(namespace=namespace), made)
        except RequestError:
            return False
        try:
            if status is not None:
                path = f"{kind.path(name, namespace)}/status"
                self._plane.request("PATCH", path, status, content_type=MERGE)
        except RequestError:
            self._plane.request("DELETE", f"{kind.path(name, namespace)}?gracePeriodSeconds=0")
            return False
        self.taken[kind] = self.taken.get(kind, 0) + 1
        return True
