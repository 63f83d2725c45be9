"""NVML, called in a child process."""
