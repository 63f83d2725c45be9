"""A control plane with one node, and the agent's own rights on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kube import ControlPlane

_BASE = Path(__file__).parents[2] / "daemonset"
NODE = "gpu-node-1"


@contextmanager
def plane_with_node(max_unavailable: int | str = 1) -> Iterator[tuple[ControlPlane, Path]]:
    """The control plane, and a kubeconfig with the token of the agent's service account."""
    with ControlPlane() as plane:
        plane.apply(_BASE)
        plane.create_node(NODE, {"nvidia.com/gpu.present": "true"})
        plane.apply([budget(max_unavailable)])
        token = plane.service_account_token("gpuhealth", "gpuhealth-agent", seconds=7200)
        yield plane, plane.write_kubeconfig("agent", token)


def budget(max_unavailable: int | str) -> dict[str, object]:
    """A QuarantineBudget for every GPU node."""
    return {
        "apiVersion": "gpuhealth.io/v1alpha1",
        "kind": "QuarantineBudget",
        "metadata": {"name": "gpu-nodes"},
        "spec": {
            "nodeSelector": {"matchLabels": {"nvidia.com/gpu.present": "true"}},
            "maxUnavailable": max_unavailable,
        },
    }
