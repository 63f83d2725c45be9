"""A real Kubernetes node in namespaces of its own: kubelet, containerd, runc and CNI, with simulated GPUs."""

from kube.single_node.cluster import ClusterError, SingleNodeCluster, why_not

__all__ = ["ClusterError", "SingleNodeCluster", "why_not"]
