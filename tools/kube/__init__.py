"""A real Kubernetes control plane for tests, the demo and the benchmarks."""

from kube.control_plane import ControlPlane, MissingBinariesError, find_binaries
from kube.manifests import documents

__all__ = ["ControlPlane", "MissingBinariesError", "documents", "find_binaries"]
