"""A simulated NVIDIA driver: a `libnvidia-ml.so.1` for the real pynvml, and the command that changes its state."""
