"""Waits for a whole round of NVML readings, for callers without a next round in which a late answer could arrive."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from gpuhealth.monitors.nvidia.readings import NvmlReadings


async def read_full_round(read: Callable[[float], Awaitable[NvmlReadings]], deadline_seconds: float) -> NvmlReadings:
    """Read until NVML has answered, has failed, or has exceeded the deadline; returns the last readings.

    `read` waits for NVML at most as long as its argument. It returns early when it crosses one of the NVML deadlines of
    the settings: the round continues, and the next call waits for it again.
    """
    while True:
        readings = await read(deadline_seconds)
        if not 0 < readings.overdue_seconds < deadline_seconds:
            return readings
