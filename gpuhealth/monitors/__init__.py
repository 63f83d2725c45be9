"""Monitors: everything about one subject in one folder. This module lists them, in the order in which they are judged.

To add one, write `gpuhealth/monitors/NAME/monitor.py` with its MONITOR and add NAME here. They are listed by name, and
imported by `registry`, because the NVML child process imports one module of one folder and must stay small.
"""

MONITORS = (
    "nvidia",
    "host",
    "kernel_log",
    "burnin_results",
    "fleet_findings",
    "own_process",
)
