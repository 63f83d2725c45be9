"""Waits for a whole round of NVML readings, for callers without a next round in which a late answer could arrive."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from gpuhealth.model.missing import Missing, Reading
from gpuhealth.monitors.nvidia.readings import NvmlReadings

T = TypeVar("T")


async def read_full_round(
    read: Callable[[float], Awaitable[T]], nvml_of: Callable[[T], Reading[NvmlReadings]], deadline_seconds: float
) -> T:
    """Read until NVML has answered, has failed, or has exceeded the deadline; returns the last readings.

    `read` waits for NVML for the given seconds, and returns early when it crosses one of the NVML deadlines of the
    settings: the round continues, and the next call waits for it again. `nvml_of` extracts NVML's part of its result.
    """
    while True:
        readings = await read(deadline_seconds)
        if not 0 < overdue_seconds(nvml_of(readings)) < deadline_seconds:
            return readings


def overdue_seconds(nvml: Reading[NvmlReadings]) -> float:
    """Seconds for which NVML's answer has been outstanding; 0 once it has answered or failed."""
    return 0.0 if isinstance(nvml, Missing) or nvml.answered else nvml.waiting_seconds
