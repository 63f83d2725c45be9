"""Findings and verdicts to write about, and a pool of nodes to write on."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from kube import ControlPlane, Document

from gpuhealth.model.component import NODE, Component
from gpuhealth.model.finding import Action, Evidence, Finding, Severity
from gpuhealth.model.verdict import Coverage, NotCovered, State, Verdict

T0 = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
_names = itertools.count(1)


def finding(
    code: str = "xid.79",
    severity: Severity = Severity.CRITICAL,
    component: Component = NODE,
    message: str = "GPU has fallen off the bus",
    **fields: Any,
) -> Finding:
    """A finding with what the test does not care about filled in."""
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
    """A verdict that follows from the findings, or a given one."""
    worst = max((f.severity.rank for f in findings), default=0)
    state = state or (State.HEALTHY, State.DEGRADED, State.UNHEALTHY)[worst]
    return Verdict(node="node", time=T0, verdict=state, findings=findings, coverage=Coverage(("xid.79",), not_checked))


async def until(condition: Callable[[], Any], seconds: float = 180.0) -> Any:
    """What the condition returns once it is true."""
    async with asyncio.timeout(seconds):
        while not (value := condition()):
            await asyncio.sleep(0.01)
    return value


class Pool:
    """Nodes that nobody else uses, and the budgets for them."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane = plane
        self.name = f"pool-{next(_names)}"
        self.labels = {"pool": self.name}
        self._paths: list[str] = []

    def node(self, *, labels: dict[str, str] | None = None) -> str:
        """The name of a new Node of the pool."""
        name = f"{self.name}-{next(_names)}"
        self.plane.create_node(name, {**self.labels, **(labels or {})})
        self._paths.append(f"/api/v1/nodes/{name}")
        return name

    def nodes(self, count: int) -> list[str]:
        """Several of them."""
        return [self.node() for _ in range(count)]

    def budget(self, amount: int | str, name: str = "", **spec: Any) -> str:
        """A budget that selects the pool, or what `nodeSelector` says."""
        name = name or self.name
        spec = {"nodeSelector": {"matchLabels": self.labels}, "maxUnavailable": amount, **spec}
        body = {
            "apiVersion": "gpuhealth.io/v1alpha1",
            "kind": "QuarantineBudget",
            "metadata": {"name": name},
            "spec": spec,
        }
        self.plane.apply([body])
        path = f"/apis/gpuhealth.io/v1alpha1/quarantinebudgets/{name}"
        self._paths += [path] if path not in self._paths else []  # it may have been there, with another limit
        return name

    def counted(self, budget: str = "") -> None:
        """What the controller says of a budget as it is now: every node that is out holds a slot."""
        path = f"/apis/gpuhealth.io/v1alpha1/quarantinebudgets/{budget or self.name}"
        generation = self.plane.request("GET", path)["metadata"]["generation"]
        status = {"status": {"observedGeneration": generation, "counted": True}}
        self.plane.request("PATCH", f"{path}/status", status, content_type="application/merge-patch+json")

    def get(self, node: str) -> Document:
        """The Node as it is."""
        found: Document = self.plane.request("GET", f"/api/v1/nodes/{node}")
        return found

    def patch(self, node: str, body: Document) -> Document:
        """What a person does to a Node."""
        content = "application/merge-patch+json"
        patched: Document = self.plane.request("PATCH", f"/api/v1/nodes/{node}", body, content_type=content)
        return patched

    def places(self, budget: str = "") -> dict[str, str]:
        """Holders of the places of a budget, by the places' names."""
        path = "/apis/coordination.k8s.io/v1/namespaces/gpuhealth/leases"
        items = self.plane.request("GET", f"{path}?labelSelector=gpuhealth.io/budget={budget or self.name}")["items"]
        return {item["metadata"]["name"]: item["spec"]["holderIdentity"] for item in items}

    def events(self, node: str) -> list[Document]:
        """The Events that `kubectl describe node` would show."""
        path = f"/api/v1/events?fieldSelector=involvedObject.name={node},involvedObject.uid={node}"
        events: list[Document] = self.plane.request("GET", path)["items"]
        return events

    def report(self, node: str) -> Document:
        """The node's report."""
        found: Document = self.plane.request("GET", f"/apis/gpuhealth.io/v1alpha1/gpuhealthreports/{node}")
        return found

    def remove(self) -> None:
        """Take it all away again."""
        for path in self._paths:
            self.plane.request("DELETE", path)
