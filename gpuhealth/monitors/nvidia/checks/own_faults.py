"""Faults of the agent itself: its container, permissions, library or a bug prevent GPU readings.

They make the node unknown if nothing else measures it, and never take it out of service: the node may be fine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from gpuhealth.model.codes import Code, define
from gpuhealth.model.context import RuleResult
from gpuhealth.model.finding import Action, Severity
from gpuhealth.model.missing import UNREAD, Missing, MissingReason
from gpuhealth.monitors.nvidia.checks.driver import fails_most_calls, is_counted_only, is_mismatch_of_node
from gpuhealth.monitors.nvidia.context import GpuContext, per_gpu, per_node, together
from gpuhealth.monitors.nvidia.readings import GpuReadings, KernelModule, NvmlReadings
from gpuhealth.monitors.own_faults import MONITOR_FAILED
from gpuhealth.runtime.text import printable

_NodeRule: TypeAlias = Callable[[GpuContext], RuleResult]

NVML_LIBRARY = define(
    "agent.nvml_library",
    Severity.WARNING,
    Action.UPDATE_SOFTWARE,
    meaning="The node's NVIDIA kernel module is loaded, but the agent's container has no libnvidia-ml.so.1 that works"
    " with it: none, one of another version, or no access to /dev/nvidia*. The node's GPUs are not measured.",
    advice="Check that the agent's pod mounts the node's root and /dev, and if the message names no library, set"
    " nvml.library_paths to the folder of libnvidia-ml.so.1. With the component runtime-class, check that the pod runs"
    " with the NVIDIA runtime (runtimeClassName).",
)
UNEXPECTED_READING = define(
    "agent.unexpected_reading",
    Severity.WARNING,
    Action.UPDATE_SOFTWARE,
    meaning="NVML answered a call with a return code, type or value that gpuhealth does not expect. That reading is"
    " missing; all others are taken.",
    advice="Compare with nvidia-smi -q. If nvidia-smi shows the value, report the driver version and this message.",
)
PERMISSION = define(
    "agent.permission",
    Severity.WARNING,
    Action.UPDATE_SOFTWARE,
    meaning="NVML denies the agent access for lack of permission: the GPU, or all of the node's, is not measured.",
    advice="Run the agent privileged, or give its container the /dev/nvidia* devices.",
)


def _nvml_library(context: GpuContext) -> RuleResult:
    nvml, module = context.nvml, context.readings.kernel_module
    if not isinstance(nvml, Missing):
        return None
    what = _LIBRARY_FAULTS.get(nvml.reason)
    if what is None or isinstance(module, Missing):
        return nvml
    readings = context.readings.nvml
    if not module.is_loaded or (nvml.reason is MissingReason.MISMATCH and is_mismatch_of_node(readings, module)):
        return nvml  # driver.not_loaded, driver.version_mismatch: a fault of the node itself
    message = f"{what} although kernel module {module.version} is loaded{_since_start(module)}{_libraries(readings)}"
    return context.found(NVML_LIBRARY, None, message, source="nvmlInit_v2, /sys/module", reading=nvml)


_LIBRARY_FAULTS = {
    MissingReason.NOT_INSTALLED: "the agent's container has no libnvidia-ml.so.1",
    MissingReason.MISMATCH: "the agent's container has a libnvidia-ml.so.1 of another version",
    MissingReason.NOT_LOADED: "libnvidia-ml.so.1 does not reach the driver from the agent's container",
}


def _libraries(nvml: NvmlReadings) -> str:
    """Which library was loaded, and which could not be."""
    search = nvml.libraries
    used = printable(nvml.library) or ("no library found below the node's root" if search.elsewhere else "")
    skipped, more = list(search.skipped[:_SHOWN]), len(search.skipped) - _SHOWN
    return "".join(f"; {part}" for part in [used, *skipped, f"and {more} more" if more > 0 else ""] if part)


def _since_start(module: KernelModule) -> str:
    if not module.has_changed:
        return ""
    before = f"{module.version_at_start} was" if module.version_at_start else "none was"
    return f" ({before} when the agent started)"


def _of_node(reason: MissingReason, code: Code, what: str) -> tuple[Code, _NodeRule]:
    def judge(context: GpuContext) -> RuleResult:
        if isinstance(context.round.readings, Missing):
            return context.round.readings  # no answer from NVML: the monitor itself was late, or failed
        nvml = context.readings.nvml
        problem = nvml.problem or nvml.count
        if not isinstance(problem, Missing):
            return None
        if problem.reason is not reason:
            return problem
        return context.found(code, None, f"{what}: {problem.detail}", source="NVML", reading=problem)

    return code, judge


def _unexpected_of_node(context: GpuContext) -> RuleResult:
    unread = _of_node(MissingReason.ERROR, UNEXPECTED_READING, "unexpected answer")[1](context)
    if unread is not None:
        return unread
    nvml = context.readings.nvml
    versions = (nvml.driver_version, nvml.nvml_version, nvml.cuda_version) if nvml.answered else ()
    odd = [each.detail for each in versions if isinstance(each, Missing) and each != UNREAD and not each.is_unsupported]
    return _odd_answers(context, None, odd)


def _permission_for_gpu(gpu: GpuReadings, context: GpuContext) -> RuleResult:
    of_this_gpu = gpu.index >= 0  # the error of a remembered GPU is that of NVML, and is reported on the node
    if of_this_gpu and gpu.error and gpu.error.reason is MissingReason.NO_PERMISSION:
        return context.found(PERMISSION, gpu, f"no permission: {gpu.error.detail}", source="NVML", reading=gpu.error)
    return gpu.error


def _failed_for_gpu(gpu: GpuReadings, context: GpuContext) -> RuleResult:
    if gpu.error and gpu.error.reason is MissingReason.AGENT_FAULT:
        return context.found(MONITOR_FAILED, gpu, gpu.error.detail, source="agent", reading=gpu.error)
    return gpu.error


def _unexpected(gpu: GpuReadings, context: GpuContext) -> RuleResult:
    remembered_only = gpu.index < 0  # its error is that of NVML as a whole, and is reported on the node
    if gpu.error and is_counted_only(gpu, context):
        return _odd_answers(context, gpu, [f"NVML counts it, but the PCI bus has no such GPU: {gpu.error.detail}"])
    if gpu.error and (remembered_only or gpu.error.reason is not MissingReason.ERROR):
        return gpu.error
    # A corrupt InfoROM is a finding of its own, and so is a GPU that fails most calls.
    own = (MissingReason.CORRUPTED_INFOROM, *([MissingReason.DRIVER_ERROR] if fails_most_calls(gpu) else []))
    odd = [each.detail for each in (gpu.error, *gpu.failed_calls.values()) if each and each.reason not in own]
    return _odd_answers(context, gpu, odd)


_SHOWN = 3
"""Maximum number of answers named in a message: a few examples are enough."""
_LONGEST_SHOWN = 200


def _odd_answers(context: GpuContext, gpu: GpuReadings | None, answers: list[str]) -> RuleResult:
    odd = list(dict.fromkeys(answers))
    if not odd:
        return None
    shown, more = [answer[:_LONGEST_SHOWN] for answer in odd[:_SHOWN]], len(odd) - _SHOWN
    message = "; ".join(shown) + (f"; and {more} more" if more > 0 else "")
    return context.found(UNEXPECTED_READING, gpu, f"unexpected answers: {message}", source="NVML", reading=message)


CHECK = together(
    per_node(
        (NVML_LIBRARY, _nvml_library),
        _of_node(MissingReason.NO_PERMISSION, PERMISSION, "no permission"),
        _of_node(MissingReason.AGENT_FAULT, MONITOR_FAILED, "NVML is not measured"),
        (UNEXPECTED_READING, _unexpected_of_node),
    ),
    per_gpu(
        (PERMISSION, _permission_for_gpu),
        (MONITOR_FAILED, _failed_for_gpu),
        (UNEXPECTED_READING, _unexpected),
        broken_too=True,
        of_node_too=True,
    ),
)
