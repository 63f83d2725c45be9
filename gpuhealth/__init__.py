"""Health checks for fleets of NVIDIA GPU nodes."""

__version__ = "0.1.0"
