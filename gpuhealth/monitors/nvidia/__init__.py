"""NVIDIA GPUs: NVML, PCI devices, XIDs."""
