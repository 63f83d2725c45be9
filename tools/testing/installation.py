"""An installation on a control plane, as the checks read it, and changes that are undone after each test."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from kube import ControlPlane, Document

from gpuhealth.installation.checks import CHECKS
from gpuhealth.installation.cluster import Cluster
from gpuhealth.installation.problem import Problem
from gpuhealth.kube.client import Client
from testing.cluster_objects import Pool

GPU_LABEL = {"nvidia.com/gpu.present": "true"}


class Installation:
    """The installation on a control plane: run checks, and change what they read."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane = plane
        self.pool = Pool(plane)
        self._undo: list[Callable[[], object]] = []

    def check(self, name: str, namespace: str = "", kubeconfig: Any = None) -> list[Problem]:
        """The problems that one check finds."""

        async def run() -> list[Problem]:
            async with Client.from_kubeconfig(kubeconfig or self.plane.kubeconfig) as client:
                await client.request("GET", "/version")
                return list(await CHECKS[name](Cluster(client, namespace)))

        return asyncio.run(run())

    def messages(self, name: str) -> list[str]:
        """The messages of the problems that one check finds."""
        return [problem.message for problem in self.check(name)]

    def gpu_node(self, labels: dict[str, str] | None = None) -> str:
        """Creates a node with GPUs."""
        return self.pool.node(labels=GPU_LABEL if labels is None else labels)

    def create(self, path: str, body: Document) -> str:
        """Creates an object until the end of the test; returns its path."""
        self.plane.request("POST", path, body)
        made = f"{path}/{body['metadata']['name']}"
        self._undo.append(lambda: self.plane.request("DELETE", f"{made}?gracePeriodSeconds=0"))
        return made

    def without(self, path: str) -> None:
        """Deletes an object until the end of the test."""
        found = self.plane.request("GET", path)
        self.plane.request("DELETE", path)
        for key in ("resourceVersion", "uid", "managedFields", "creationTimestamp", "generation"):
            found["metadata"].pop(key, None)
        found.pop("status", None)
        self._undo.append(lambda: self.plane.apply([found]))

    def patch(self, path: str, body: Any, content_type: str = "application/merge-patch+json") -> Document:
        """Changes an object for good."""
        changed: Document = self.plane.request("PATCH", path, body, content_type=content_type)
        return changed

    def changed(self, path: str, body: Any, back: Any, content_type: str = "application/merge-patch+json") -> None:
        """Changes an object until the end of the test, when `back` is applied."""
        self.patch(path, body, content_type)
        self._undo.append(lambda: self.patch(path, back, content_type))

    def agent(self, node: str, *, status: Document | None = None) -> str:
        """Creates an agent's pod on a node, ready unless a status is given; returns its path."""
        labels = {"app.kubernetes.io/name": "gpuhealth", "app.kubernetes.io/component": "agent"}
        spec = {"nodeName": node, "containers": [{"name": "agent", "image": "example.com/a:1"}]}
        body = {"metadata": {"name": f"agent-{node}", "labels": labels}, "spec": spec}
        path = self.create("/api/v1/namespaces/gpuhealth/pods", body)
        ready = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
        self.patch(f"{path}/status", {"status": status or ready})
        return path

    def report(self, node: str, **status: Any) -> None:
        """Creates the report of a node and sets the condition on it, as its agent does."""
        path = "/apis/gpuhealth.io/v1alpha1/gpuhealthreports"
        body = {"apiVersion": "gpuhealth.io/v1alpha1", "kind": "GPUHealthReport", "metadata": {"name": node}}
        made = self.create(path, body)
        self.patch(f"{made}/status", {"status": {"verdict": "healthy", **status}})
        condition = {"type": "GPUHealthy", "status": "True", "reason": "Healthy", "message": "as an agent"}
        self.set_condition(node, condition)

    def set_condition(self, node: str, condition: Document, manager: str = "gpuhealth-agent") -> None:
        """Sets a condition of a Node in the name of a field manager."""
        path = f"/api/v1/nodes/{node}/status?fieldManager={manager}"
        content = "application/strategic-merge-patch+json"
        self.plane.request("PATCH", path, {"status": {"conditions": [condition]}}, content_type=content)

    def close(self) -> None:
        """Undoes all changes, the last first."""
        for undo in reversed(self._undo):
            undo()
        self.pool.remove()
