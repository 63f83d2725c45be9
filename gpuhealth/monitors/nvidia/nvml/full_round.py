"""Waits for a whole round of NVML readings, for callers that have no next round in which a late answer could come."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from gpuhealth.model.missing import Missing, Reading
from gpuhealth.monitors.nvidia.readings import NvmlReadings

T = TypeVar("T")


async def read_full_round(
    read: Callable[[float], Awaitable[T]], nvml_of: Callable[[T], Reading[NvmlReadings]], deadline_seconds: float
) -> T:
    """Read until NVML has answered, has failed, or has owed its answer for the deadline; returns the last readings.

    `read` waits for NVML as long as it is told, and returns early when it crosses one of the NVML deadlines of the
    settings: the round goes on, and the next call waits for it again. `nvml_of` picks NVML's part of what `read` gave.
    """
    while True:
        readings = await read(deadline_seconds)
        if not 0 < overdue_seconds(nvml_of(readings)) < deadline_seconds:
            return readings


def overdue_seconds(nvml: Reading[NvmlReadings]) -> float:
    """For how many seconds NVML has owed its answer; 0 once it has answered or failed."""
    return 0.0 if isinstance(nvml, Missing) or nvml.answered else nvml.waiting_seconds
