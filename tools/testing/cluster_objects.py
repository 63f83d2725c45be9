"""Builders of findings, verdicts and budgets, and a pool of Nodes on a control plane."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

from kube import ControlPlane, Document
from kube.control_plane import RequestError

from gpuhealth.api.names import TAINT
from gpuhealth.model.component import NODE, Component
from gpuhealth.model.finding import Action, Evidence, Finding, Severity
from gpuhealth.model.verdict import Coverage, NotCovered, State, Verdict

T0 = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
_LEASES = "/apis/coordination.k8s.io/v1/namespaces/gpuhealth/leases"
_names = itertools.count(1)


def finding(
    code: str = "xid.79",
    severity: Severity = Severity.CRITICAL,
    component: Component = NODE,
    message: str = "GPU has fallen off the bus",
    **fields: Any,
) -> Finding:
    """A finding; what is not given has a default."""
    return Finding(
        code=code,
        severity=severity,
        component=component,
        message=message,
        action=fields.pop("action", Action.REBOOT_NODE),
        evidence=fields.pop("evidence", Evidence("test", time=T0)),
        first_seen=fields.pop("first_seen", T0),
        last_seen=fields.pop("last_seen", T0),
        clears_when="a new boot id",
        **fields,
    )


def verdict(*findings: Finding, state: State | None = None, not_checked: tuple[NotCovered, ...] = ()) -> Verdict:
    """A verdict with these findings, whose state follows from them unless it is given."""
    worst = max((f.severity.rank for f in findings), default=0)
    state = state or (State.HEALTHY, State.DEGRADED, State.UNHEALTHY)[worst]
    return Verdict(node="node", time=T0, verdict=state, findings=findings, coverage=Coverage(("xid.79",), not_checked))


def budget(name: str, labels: dict[str, str], max_unavailable: int | str, **spec: Any) -> Document:
    """A QuarantineBudget for the nodes with these labels, or for what `nodeSelector` selects."""
    spec = {"nodeSelector": {"matchLabels": labels}, "maxUnavailable": max_unavailable, **spec}
    metadata = {"name": name}
    return {"apiVersion": "gpuhealth.io/v1alpha1", "kind": "QuarantineBudget", "metadata": metadata, "spec": spec}


def taints(node: Document) -> list[str]:
    """The values of our taint on a Node."""
    return [taint["value"] for taint in node["spec"].get("taints", []) if taint["key"] == TAINT]


def condition(node: Document) -> dict[str, str]:
    """Our condition of a Node; empty while there is none."""
    conditions: list[dict[str, str]] = node["status"].get("conditions", [])
    return next((condition for condition in conditions if condition["type"] == "GPUHealthy"), {})


class Pool:
    """Nodes of one test, and the budgets that select them."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane = plane
        self.name = f"pool-{next(_names):05}"  # of one length: no name is the beginning of another's
        self.labels = {"pool": self.name}
        self._paths: list[str] = []
        self._budgets: list[str] = []

    def node(self, *, labels: dict[str, str] | None = None) -> str:
        """Creates a Node in the pool, and returns its name."""
        name = f"{self.name}-{next(_names):05}"
        self.plane.create_node(name, {**self.labels, **(labels or {})})
        self._paths.append(f"/api/v1/nodes/{name}")
        return name

    def nodes(self, count: int) -> list[str]:
        """Creates several Nodes, and returns their names."""
        return [self.node() for _ in range(count)]

    def budget(self, amount: int | str, name: str = "", **spec: Any) -> str:
        """Applies a budget that selects the pool, or what `nodeSelector` selects; returns its name."""
        name = name or self.name
        self.plane.apply([budget(name, self.labels, amount, **spec)])
        self._budgets.append(name)
        return name

    def counted(self, budget: str = "") -> None:
        """Sets the budget's status `counted`, as the controller does once each quarantined node holds a slot."""
        path = f"/apis/gpuhealth.io/v1alpha1/quarantinebudgets/{budget or self.name}"
        generation = self.plane.request("GET", path)["metadata"]["generation"]
        status = {"status": {"observedGeneration": generation, "counted": True}}
        self.plane.request("PATCH", f"{path}/status", status, content_type="application/merge-patch+json")

    def get(self, node: str) -> Document:
        """The Node object, as it is now."""
        found: Document = self.plane.request("GET", f"/api/v1/nodes/{node}")
        return found

    def all(self) -> list[Document]:
        """All Nodes of the pool, by one request."""
        found: list[Document] = self.plane.request("GET", f"/api/v1/nodes?labelSelector=pool={self.name}")["items"]
        return found

    def patch(self, node: str, body: Document) -> Document:
        """Changes a Node by a merge patch, as a person does: the API server records the manager kubectl-edit."""
        content, path = "application/merge-patch+json", f"/api/v1/nodes/{node}?fieldManager=kubectl-edit"
        patched: Document = self.plane.request("PATCH", path, body, content_type=content)
        return patched

    def dismiss(self, node: str) -> None:
        """Removes our marks as a person does who edits the Node; a taint stays, so that the list has an owner."""
        others = [taint for taint in self.get(node)["spec"].get("taints", []) if taint["key"] != TAINT]
        theirs = [{"key": "of-a-person", "effect": "PreferNoSchedule"}]
        self.patch(node, {"spec": {"taints": others or theirs, "unschedulable": None}})

    def slots(self, budget: str = "") -> dict[str, str]:
        """The holders of a budget's slots, by the names of the slots."""
        items = self.plane.request("GET", f"{_LEASES}?labelSelector=gpuhealth.io/budget={budget or self.name}")["items"]
        return {item["metadata"]["name"]: item["spec"]["holderIdentity"] for item in items}

    def events(self, node: str) -> list[Document]:
        """The Events that `kubectl describe node` would show."""
        path = f"/api/v1/events?fieldSelector=involvedObject.name={node},involvedObject.uid={node}"
        events: list[Document] = self.plane.request("GET", path)["items"]
        return events

    def report(self, node: str) -> Document:
        """The GPUHealthReport of a node."""
        found: Document = self.plane.request("GET", f"/apis/gpuhealth.io/v1alpha1/gpuhealthreports/{node}")
        return found

    def remove(self) -> None:
        """Deletes the nodes, and the budgets with their slots, as far as they are still there."""
        for budget in dict.fromkeys(self._budgets):  # it may have been applied several times, with other limits
            self.plane.request("DELETE", f"{_LEASES}?labelSelector=gpuhealth.io/budget={budget}")
            self._delete(f"/apis/gpuhealth.io/v1alpha1/quarantinebudgets/{budget}")
        for path in self._paths:
            self._delete(path)

    def _delete(self, path: str) -> None:
        try:
            self.plane.request("DELETE", path)
        except RequestError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
