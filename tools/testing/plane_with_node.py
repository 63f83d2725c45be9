"""A control plane with one node, and the agent's own rights on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kube import ControlPlane

from testing.cluster_objects import budget
from testing.paths import BASE

NODE = "gpu-node-1"
LABELS = {"nvidia.com/gpu.present": "true"}


@contextmanager
def plane_with_node(max_unavailable: int | str = 1) -> Iterator[tuple[ControlPlane, Path]]:
    """The control plane, and a kubeconfig with the token of the agent's service account."""
    with ControlPlane() as plane:
        plane.apply(BASE)
        plane.create_node(NODE, LABELS)
        plane.apply([budget("gpu-nodes", LABELS, max_unavailable)])
        token = plane.service_account_token("gpuhealth", "gpuhealth-agent", seconds=7200)
        yield plane, plane.write_kubeconfig("agent", token)
