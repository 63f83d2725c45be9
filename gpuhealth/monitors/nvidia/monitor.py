"""The monitor of NVIDIA GPUs and their driver."""

from __future__ import annotations

from gpuhealth.model.codes import Code
from gpuhealth.model.component import Kind
from gpuhealth.model.missing import Missing
from gpuhealth.monitors.monitor import Monitor, MonitorFacts
from gpuhealth.monitors.nvidia.baseline import Baseline
from gpuhealth.monitors.nvidia.checks import (
    clocks,
    driver,
    earlier,
    ecc,
    fabric,
    gpu,
    gpu_memory,
    inventory,
    nvlink,
    own_faults,
    pcie,
    persistence,
    thermal,
    xid,
)
from gpuhealth.monitors.nvidia.context import GpuContext, NvidiaContext
from gpuhealth.monitors.nvidia.metrics import METRICS
from gpuhealth.monitors.nvidia.patterns import PATTERNS
from gpuhealth.monitors.nvidia.probe import NvidiaProbe
from gpuhealth.monitors.nvidia.readings import NvidiaReadings
from gpuhealth.monitors.nvidia.release import excused
from gpuhealth.monitors.nvidia.settings import NvidiaSettings


def _facts(round_context: NvidiaContext) -> MonitorFacts:
    context = GpuContext(round_context)
    nvml = context.readings.nvml
    complete = nvml.is_complete and all(isinstance(gpu.uuid, str) for gpu in nvml.gpus)
    complete = complete or context.nothing_to_use is not None
    version = nvml.driver_version
    return MonitorFacts(
        components=context.components,
        complete=frozenset({Kind.GPU}) if complete else frozenset(),
        versions={} if isinstance(version, Missing) else {"driver": version},
        excused=excused(context.readings.release, context.time, context.settings.driver_release.max_duration),
    )


def _adjusted(code: Code, settings: NvidiaSettings) -> Code:
    return xid.with_expiry(code, settings.xid) if code.name.startswith(("xid.", "sxid.")) else code


def _remember(round_context: NvidiaContext) -> None:
    inventory.remember(GpuContext(round_context))


MONITOR = Monitor(
    name="nvidia",
    summary="NVIDIA GPUs: NVML, PCI devices, the driver, XIDs and SXids.",
    readings=NvidiaReadings,
    settings=NvidiaSettings,
    baseline=Baseline,
    probe=NvidiaProbe,
    deadline=60.0,  # the probe has shorter deadlines of its own, and returns partial readings
    checks=(
        driver.CHECK,
        own_faults.CHECK,
        gpu.CHECK,
        ecc.CHECK,
        gpu_memory.CHECK,
        thermal.CHECK,
        clocks.CHECK,
        pcie.CHECK,
        nvlink.CHECK,
        fabric.CHECK,
        persistence.CHECK,
        xid.CHECK,
    ),
    patterns=PATTERNS,
    judge_events=xid.judge_events,
    recovery=earlier.recovery,
    facts=_facts,
    adjust_code=_adjusted,
    remember=_remember,
    metrics=METRICS,
)
