"""Nodes, pods and reports on a control plane with a scheduler; the tests act as kubelets and agents."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from kube import ControlPlane, Document
from kube.control_plane import RequestError

from gpuhealth.controller.controller import Controller
from gpuhealth.controller.timing import Timing
from gpuhealth.monitors.settings import Settings
from testing import waiting
from testing.cluster_objects import budget

MERGE = "application/merge-patch+json"
SINCE = "2026-03-01T12:00:00Z"
QUICK = Timing(
    round_pause=0.02, retry=0.2, drain_pause=0.02, drain_label_retry=0.05, burnin_interval=1.0, comparison_pause=0.1
)
"""Of the controllers in tests: what only waits for changes to come together, or for another try, is short."""
_names = itertools.count(1)


async def until(condition: Callable[[], Any], seconds: float = waiting.PATIENCE) -> Any:
    """Waits for a condition that asks the API server: it is evaluated in a thread."""
    return await waiting.until(condition, seconds, in_thread=True)


class Cluster:
    """The objects of one test, and a controller for them."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane = plane
        self.name = f"case-{next(_names)}"
        self.namespace = self.name
        self._paths: list[str] = []
        self._since = plane.audit_position()
        self._create("/api/v1/namespaces", {"metadata": {"name": self.name}})

    def settings(self, **options: Any) -> Settings:
        """Settings of a controller on this control plane, with short pauses."""
        election = {"enabled": False, **options.pop("election", {})}
        where = {"kubeconfig": str(options.pop("kubeconfig", None) or self.kubeconfig())}
        quick = {"drain_retry": 0.1, "evictions_per_second": 1000, "http": {"host": "127.0.0.1", "port": 0}, **options}
        mode = quick.pop("mode", "taint")
        return Settings.model_validate(
            {"mode": mode, "kubernetes": where, "controller": quick | {"election": election}}
        )

    def kubeconfig(self) -> Any:
        """A kubeconfig of the controller's account, which has the rights of the manifests."""
        return self.plane.write_kubeconfig("controller", self.token())

    def token(self) -> str:
        """A token of the controller's service account."""
        return self.plane.service_account_token("gpuhealth", "gpuhealth-controller")

    @asynccontextmanager
    async def controller(self, timing: Timing = QUICK, /, **options: Any) -> AsyncIterator[Controller]:
        """A running controller; at the end it is cancelled, as if it were killed."""
        controller = Controller(self.settings(**options), timing=timing)
        working = asyncio.create_task(controller.work())
        try:
            yield controller
            assert not controller.failures
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)

    # --- nodes --------------------------------------------------------------------------------------------------------

    def node(
        self, *, labels: dict[str, str] | None = None, state: str = "healthy", gpus: int = 0, agent: bool = True
    ) -> str:
        """Creates a GPU node in service, to which the scheduler assigns pods if it has `gpus`; returns its name."""
        name = f"{self.name}-{next(_names)}"
        marks = {"gpuhealth.io/state": state, "gpuhealth.io/pool": self.name}
        self.plane.create_node(name, {**marks, **(labels or {})})
        self._paths.append(f"/api/v1/nodes/{name}")
        path = "/apis/gpuhealth.io/v1alpha1/gpuhealthreports"
        body = {"apiVersion": "gpuhealth.io/v1alpha1", "kind": "GPUHealthReport", "metadata": {"name": name}}
        self._create(path, body)
        if gpus:
            room = {"nvidia.com/gpu": str(gpus), "cpu": "64", "memory": "512Gi", "pods": "110"}
            self.patch(f"/api/v1/nodes/{name}/status", {"status": {"capacity": room, "allocatable": room}})
            self.say(name, {"verdict": "healthy", "quarantine": {"state": "none"}})
            if agent:
                self.agent(name)
        return name

    def quarantine(
        self, node: str, *, drain: bool = True, since: str = SINCE, cordon: bool = False, slots: tuple[str, ...] = ()
    ) -> None:
        """Quarantines a node as its agent does: taint or cordon with the record, and label, then the report."""
        taint = {"key": "gpuhealth.io/unhealthy", "value": "xid.79", "effect": "NoSchedule"}
        marks = {"cordoned": True, "tainted": False} if cordon else {}
        record = json.dumps({"code": "xid.79", "since": since, **marks})
        metadata = {"labels": {"gpuhealth.io/state": "quarantined"}, "annotations": {"gpuhealth.io/quarantine": record}}
        spec: Document = {"unschedulable": True} if cordon else {"taints": [taint]}
        self.patch(f"/api/v1/nodes/{node}", {"metadata": metadata, "spec": spec})
        found = {"state": "quarantined", "code": "xid.79", "since": since, "drain": drain, "slots": slots}
        self.say(node, {"quarantine": found})

    def recover(self, node: str) -> None:
        """Ends the quarantine of a node as its agent does."""
        metadata = {"labels": {"gpuhealth.io/state": "healthy"}, "annotations": {"gpuhealth.io/quarantine": None}}
        body = {"metadata": metadata, "spec": {"taints": None, "unschedulable": None}}
        self.patch(f"/api/v1/nodes/{node}", body)
        self.say(node, {"quarantine": {"state": "none", "drain": False}})

    def say(self, node: str, status: Document) -> None:
        """Merges fields into the status of the node's report, as the agent does."""
        self.patch(f"/apis/gpuhealth.io/v1alpha1/gpuhealthreports/{node}/status", {"status": status})

    def report(self, node: str) -> Document:
        """The status of the node's report; empty while there is none."""
        found = self.plane.request("GET", f"/apis/gpuhealth.io/v1alpha1/gpuhealthreports/{node}")
        status: Document = found.get("status", {})
        return status

    def health(self, node: str) -> tuple[str, str]:
        """Status and reason of our condition; empty while there is none."""
        conditions = self.plane.request("GET", f"/api/v1/nodes/{node}")["status"].get("conditions", [])
        return next(((c["status"], c["reason"]) for c in conditions if c["type"] == "GPUHealthy"), ("", ""))

    def set_condition(self, node: str, kind: str, status: str, reason: str = "Played") -> None:
        """Sets a condition of a Node, as its kubelet or agent does."""
        new = {"type": kind, "status": status, "reason": reason, "message": "played by a test"}
        path, body = f"/api/v1/nodes/{node}/status", {"status": {"conditions": [new]}}
        self.plane.request("PATCH", path, body, content_type="application/strategic-merge-patch+json")

    def agent(self, node: str) -> str:
        """Creates a ready pod of an agent, which a drain leaves alone; returns its path."""
        labels = {
            "app.kubernetes.io/name": "gpuhealth",
            "app.kubernetes.io/component": "agent",
            "gpuhealth.io/drain": "false",
        }
        return self.pod(node, "gpuhealth", labels=labels)

    def unready(self, pod: str) -> None:
        """Sets a pod's condition Ready to False."""
        self.patch(f"{pod}/status", {"status": {"conditions": [{"type": "Ready", "status": "False"}]}})

    def writes(self, path: str) -> int:
        """How many writes to a path the controller has sent."""
        ours = "system:serviceaccount:gpuhealth:gpuhealth-controller"
        reads = {"get", "list", "watch"}
        events = [e for e in self.plane.audit(path, self._since) if e["requestURI"] == path and e["verb"] not in reads]
        return sum(event["user"]["username"] == ours for event in events)

    def drain(self, node: str) -> Document:
        """The drain in the status of the node's report."""
        found: Document = self.report(node).get("drain", {})
        return found

    def state(self, node: str) -> str:
        """The value of the node's state label."""
        return str(self.plane.request("GET", f"/api/v1/nodes/{node}")["metadata"]["labels"].get("gpuhealth.io/state"))

    # --- pods ---------------------------------------------------------------------------------------------------------

    def pod(
        self, node: str, namespace: str = "", phase: str = "Running", *, spec: Document | None = None, **metadata: Any
    ) -> str:
        """Creates a pod that runs on a node and is ready, with more in its `spec`; returns its path."""
        namespace = namespace or self.namespace
        name = f"work-{next(_names)}"
        body = {
            "metadata": {"name": name, **metadata},
            "spec": {
                "nodeName": node,
                "containers": [{"name": "c", "image": "i"}],
                "tolerations": [{"operator": "Exists"}],
                "automountServiceAccountToken": False,
                **(spec or {}),
            },
        }
        path = self._create_when_possible(f"/api/v1/namespaces/{namespace}/pods", body)
        status = {"phase": phase, "conditions": [{"type": "Ready", "status": "True"}]}
        self.patch(f"{path}/status", {"status": status})
        return path

    def gpu_work(self, gpus: int, node: str = "") -> str:
        """Creates a pod that requests GPUs, on a node or where the scheduler puts it; returns its path."""
        name = f"work-{next(_names)}"
        resources = {"limits": {"nvidia.com/gpu": str(gpus)}}
        spec = {
            "containers": [{"name": "c", "image": "i", "resources": resources}],
            "nodeSelector": {"gpuhealth.io/pool": self.name},
            "automountServiceAccountToken": False,
            **({"nodeName": node} if node else {}),
        }
        return self._create_when_possible(
            f"/api/v1/namespaces/{self.namespace}/pods", {"metadata": {"name": name}, "spec": spec}
        )

    def guard(self, labels: dict[str, str], available: int, name: str = "guard") -> str:
        """Creates a PodDisruptionBudget for pods with these labels; returns its path."""
        spec = {"minAvailable": available, "selector": {"matchLabels": labels}}
        path = f"/apis/policy/v1beta1/namespaces/{self.namespace}/poddisruptionbudgets"
        return self._create(path, {"metadata": {"name": name}, "spec": spec})

    def is_guarding(self, path: str, healthy: int) -> bool:
        """Whether a PodDisruptionBudget has been computed for so many healthy pods."""
        status = self.plane.request("GET", path).get("status", {})
        return bool(status.get("currentHealthy") == healthy and status.get("observedGeneration"))

    def terminating(self, path: str) -> bool:
        """Whether the pod has a deletion timestamp."""
        return bool(self.plane.request("GET", path)["metadata"].get("deletionTimestamp"))

    def stop(self, path: str) -> None:
        """Deletes a pod without grace, as its kubelet does once it has stopped."""
        self.plane.request("DELETE", f"{path}?gracePeriodSeconds=0")

    def evictions(self, path: str) -> Counter[int]:
        """The number of answers to evictions of a pod, by HTTP status."""
        events = [e for e in self.plane.audit(path, self._since) if e["requestURI"] == f"{path}/eviction"]
        return Counter(event["responseStatus"]["code"] for event in events)

    def deletions(self, path: str) -> list[Document]:
        """The options of each deletion of a pod by the controller."""
        ours = "system:serviceaccount:gpuhealth:gpuhealth-controller"
        events = [e for e in self.plane.audit(path, self._since) if e["requestURI"] == path and e["verb"] == "delete"]
        return [event["requestObject"] for event in events if event["user"]["username"] == ours]

    def reasons(self, name: str, namespace: str = "") -> list[str]:
        """The reasons of all Events about an object."""
        path = f"/api/v1/namespaces/{namespace or self.namespace}/events?fieldSelector=involvedObject.name={name}"
        return [event["reason"] for event in self.plane.request("GET", path)["items"]]

    # --- requests -----------------------------------------------------------------------------------------------------

    def patch(self, path: str, body: Document) -> Document:
        """Sends a merge patch; returns the changed object."""
        patched: Document = self.plane.request("PATCH", path, body, content_type=MERGE)
        return patched

    def budget(self, amount: int | str, **spec: Any) -> str:
        """Creates a QuarantineBudget for the test's nodes; returns its path."""
        body = budget(self.name, {"gpuhealth.io/pool": self.name}, amount, **spec)
        return self._create("/apis/gpuhealth.io/v1alpha1/quarantinebudgets", body)

    def _create(self, path: str, body: Document) -> str:
        self.plane.request("POST", path, body)
        made = f"{path}/{body['metadata']['name']}"
        self._paths.append(made)
        return made

    def _create_when_possible(self, path: str, body: Document) -> str:
        """Creates an object once the server accepts it: a new namespace has no service account yet, which pods need."""
        for _ in range(10_000):
            with contextlib.suppress(RequestError):
                return self._create(path, body)
            time.sleep(0.01)
        raise AssertionError(json.dumps(body))

    def remove(self) -> None:
        """Deletes everything that the test has created here."""
        for path in reversed(self._paths):
            with contextlib.suppress(RequestError):  # gone already
                self.plane.request("DELETE", path + ("?gracePeriodSeconds=0" if re.search("/pods/", path) else ""))
