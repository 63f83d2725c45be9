"""Tracker input for a round with given NVML answers."""

from __future__ import annotations

from typing import Any

from gpuhealth.model.tracker import NodeFacts
from gpuhealth.monitors.judge import Judge
from gpuhealth.monitors.nvidia.monitor import MONITOR as NVIDIA
from gpuhealth.monitors.nvidia.readings import GpuReadings, NvidiaReadings, NvmlReadings, Release
from gpuhealth.monitors.settings import Settings
from testing.findings import BOOT, at
from testing.readings import remembering

NOT_ANSWERED = NvmlReadings()
"""A round whose answer has not come."""


def answered(*gpus: GpuReadings) -> NvmlReadings:
    """A round in which NVML has answered for these GPUs."""
    return NvmlReadings(answered=True, gpus=gpus)


def nvml_facts(
    nvml: NvmlReadings,
    seconds: float = 0.0,
    *,
    settings: Settings | None = None,
    release: Release | None = None,
    **baseline: Any,
) -> NodeFacts:
    """The facts of a round, on a node that has shown `baseline` so far."""
    judge = Judge(settings or Settings(), remembering(**baseline), boot_id=BOOT, time=at(seconds))
    judge.set_readings(NVIDIA, NvidiaReadings(nvml=nvml, release=release), at(seconds))
    return judge.facts()
