"""A real Kubernetes node in namespaces of its own: kubelet, containerd, runc and CNI, with simulated GPUs."""
