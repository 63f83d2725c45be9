"""A real Kubernetes control plane for tests, the demo and the benchmarks."""

from kube.control_plane import ControlPlane, MissingBinariesError, find_binaries
from kube.manifests import Document, documents

__all__ = ["ControlPlane", "Document", "MissingBinariesError", "documents", "find_binaries"]
