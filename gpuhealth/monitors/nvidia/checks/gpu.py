"""The GPU as a whole: whether it responds, is present, has a pending recovery action, and keeps pace."""

from __future__ import annotations

import statistics

from gpuhealth.model.codes import define
from gpuhealth.model.context import RuleResult
from gpuhealth.model.finding import Action, Severity
from gpuhealth.model.missing import Missing, MissingReason
from gpuhealth.monitors.nvidia.catalog.recovery import recovery_action
from gpuhealth.monitors.nvidia.checks.inventory import PRESENCE_CHECK
from gpuhealth.monitors.nvidia.context import GpuContext, per_gpu, split, together
from gpuhealth.monitors.nvidia.readings import GpuReadings

LOST = define(
    "gpu.lost",
    Severity.CRITICAL,
    Action.REBOOT_NODE,
    meaning="The driver can no longer reach the GPU over PCI Express: it has fallen off the bus or is without power.",
    advice="Drain and reboot the node. If it comes back, check power, seating and the kernel log for XID 79, then have"
    " the GPU or its slot replaced.",
    quarantine=True,
    drain=True,
    essential=True,
)
RESET_REQUIRED = define(
    "gpu.reset_required",
    Severity.CRITICAL,
    Action.RESET_GPU,
    meaning="The GPU refuses work until it has been reset, usually after an uncontained memory or firmware error.",
    advice="Stop all processes that use the GPU and run `nvidia-smi --gpu-reset -i INDEX`, or reboot the node.",
    quarantine=True,
    drain=True,
    asks_for_recovery=True,
)
RECOVERY_ACTION = define(
    "gpu.recovery_action",
    Severity.CRITICAL,
    Action.RESET_GPU,
    meaning="The driver requests an action, such as a reset, before the GPU can be trusted again.",
    advice="Perform the finding's action. The finding ends when the driver no longer requests it.",
    quarantine=True,
    drain=True,
    asks_for_recovery=True,
)
STRAGGLER = define(
    "gpu.straggler",
    Severity.WARNING,
    Action.INSPECT_HARDWARE,
    meaning="The GPU is busy at a clearly lower clock than the other busy GPUs of its model on the node: a job that"
    " runs in step with it is slowed down to its pace.",
    advice="Compare temperature, power limit and throttle reasons with its neighbours; reset the GPU, then have"
    " cooling and power inspected.",
    raise_after=60.0,  # clocks swing while a program starts
    clear_after=120.0,
)
LEAKED_MEMORY = define(
    "gpu.leaked_memory",
    Severity.WARNING,
    Action.RESET_GPU,
    meaning="GPU memory is in use though no process holds the GPU: the next program finds less than it needs.",
    advice="Look for processes stuck in exit (state D or Z) with open /dev/nvidia* files; reset the GPU when idle.",
    raise_after=60.0,  # memory of a process that has just ended is freed with a delay
)
ZOMBIE_PROCESS = define(
    "gpu.zombie_process",
    Severity.WARNING,
    Action.RESET_GPU,
    meaning="The driver still lists a process that no longer exists: its context and memory were never freed.",
    advice="Stop the remaining users of the GPU and reset it; if the process returns after each job, reboot the node.",
    raise_after=60.0,
)

_VGPU_HOST = (3, 4)  # nvmlGpuVirtualizationMode_t: HOST_VGPU, HOST_VSGA
_ATS = 2  # nvmlDeviceAddressingModeType_t
_SAME_MEMORY = 0.02
"""How much the memory of GPU and machine may differ, as a share, to be the same one."""
_FEWEST_TO_COMPARE = 3  # with two it is unknown which is the outlier
_NOT_MEASURED = Missing(MissingReason.ERROR, "NVML has no reading of the GPU's state")
_IDLE = Missing(MissingReason.NO_HISTORY, "the GPU has no load to judge by")


def _lost(gpu: GpuReadings, context: GpuContext) -> RuleResult:
    if gpu.error and gpu.error.reason is MissingReason.GPU_LOST:
        return context.found(
            LOST, gpu, "lost: the driver can no longer reach it", source="NVML", reading=gpu.error.detail
        )
    # A GPU that needs a reset, or whose InfoROM is corrupt, is present and responds.
    answers = (MissingReason.RESET_REQUIRED, MissingReason.CORRUPTED_INFOROM)
    if gpu.error and gpu.error.reason not in answers:
        return gpu.error
    return None if gpu.error or _is_measured(gpu) else _NOT_MEASURED


def _is_measured(gpu: GpuReadings) -> bool:
    """Whether NVML has any value of the GPU's state: one that supports or answers nothing is not known to work."""
    state = (gpu.temperature_celsius, gpu.power_milliwatts, gpu.memory_total_bytes, gpu.ecc_enabled, gpu.sm_clock_mhz)
    return not all(isinstance(reading, Missing) for reading in state)


def _reset_required(gpu: GpuReadings, context: GpuContext) -> RuleResult:
    if gpu.error and gpu.error.reason is MissingReason.RESET_REQUIRED:
        message = "unusable until it is reset"
        return context.found(RESET_REQUIRED, gpu, message, source="NVML", reading=gpu.error.detail)
    return gpu.error


def _recovery_action(gpu: GpuReadings, context: GpuContext) -> RuleResult:
    value = gpu.recovery_action
    if isinstance(value, Missing):
        return value
    if value == 0:
        return None
    wanted = recovery_action(value)
    return context.found(
        RECOVERY_ACTION,
        gpu,
        f"the driver requests a recovery: {wanted.meaning}",
        source="NVML field 230 (GPU recovery action)",
        reading=f"{value} ({wanted.name})",
        threshold=0,
        severity=wanted.severity,
        action=wanted.action,
    )


def _straggler(gpu: GpuReadings, context: GpuContext) -> RuleResult:
    peers = context.peers(gpu)
    if len(peers) + 1 < _FEWEST_TO_COMPARE:
        return Missing(MissingReason.NOT_SUPPORTED, "no peers on this node to compare with")
    for reading in (gpu.utilization_percent, gpu.sm_clock_mhz):
        if isinstance(reading, Missing):
            return reading
    busy = [clock for each in (gpu, *peers) if (clock := _busy_clock(each, context)) is not None]
    own = _busy_clock(gpu, context)
    if own is None or len(busy) < _FEWEST_TO_COMPARE:
        return _IDLE
    median = statistics.median(busy)
    percent = context.settings.clocks.straggler_percent
    if own >= median * percent / 100:
        return None
    return context.found(
        STRAGGLER,
        gpu,
        f"busy at {own} MHz where the {len(busy)} busy GPUs of its model have a median of {median:g} MHz",
        source="nvmlDeviceGetClockInfo",
        reading=f"{own} MHz",
        threshold=f"{percent:g} % of {median:g} MHz",
    )


def _busy_clock(gpu: GpuReadings, context: GpuContext) -> int | None:
    load, clock = gpu.utilization_percent, gpu.sm_clock_mhz
    if isinstance(load, Missing) or isinstance(clock, Missing) or load < context.settings.clocks.busy_percent:
        return None
    return clock


def _leaked_memory(gpu: GpuReadings, context: GpuContext) -> RuleResult:
    used, limit = gpu.memory_used_bytes, context.settings.gpu_memory.leaked_bytes
    if isinstance(used, Missing):
        return used
    if _is_used_by_vms(gpu, context) or _is_system_memory(gpu, context):
        return Missing(MissingReason.NOT_SUPPORTED, "memory is used by others than processes on the GPU")
    if used <= limit:
        return None
    processes, unread = split({"compute": gpu.compute_processes, "graphics": gpu.graphics_processes})
    # A GPU with load is in use, even if a container hides the process.
    working = isinstance(gpu.utilization_percent, int) and gpu.utilization_percent > 0
    if working or any(processes.values()):
        return None
    if unread:
        return unread
    if isinstance(context.readings.live_pids, Missing):
        return context.readings.live_pids  # an empty process list of NVML is not conclusive then
    message = f"{used / 2**20:.0f} MiB in use and no process holds the GPU"
    return context.found(LEAKED_MEMORY, gpu, message, source="nvmlDeviceGetMemoryInfo", reading=used, threshold=limit)


def _is_used_by_vms(gpu: GpuReadings, context: GpuContext) -> bool:
    """Whether virtual machines share the GPU: what they use belongs to no process of this node."""
    functions = () if isinstance(context.readings.pci, Missing) else context.readings.pci
    is_host = gpu.virtualization_mode in _VGPU_HOST or context.readings.vgpu_manager_running is True
    return is_host or any(
        function.physical_function == gpu.pci or (function.address == gpu.pci and function.has_mediated_devices)
        for function in functions
    )


def _is_system_memory(gpu: GpuReadings, context: GpuContext) -> bool:
    """Whether the kernel uses the GPU's memory, too: an integrated GPU, or one in the CPU's address space (Grace)."""
    total, system = gpu.memory_total_bytes, context.readings.system_memory_bytes
    is_whole = isinstance(total, int) and isinstance(system, int) and abs(total - system) <= system * _SAME_MEMORY
    is_integrated = isinstance(gpu.pcie_width, Missing) and gpu.pcie_width.is_unsupported
    return is_whole or is_integrated or gpu.addressing_mode == _ATS


def _zombie_process(gpu: GpuReadings, context: GpuContext) -> RuleResult:
    processes, live = gpu.compute_processes, context.readings.live_pids
    if isinstance(processes, Missing):
        return processes
    if isinstance(live, Missing):
        return live
    gone = sorted({process.pid for process in processes} - set(live))
    if not gone:
        return None
    pids = ", ".join(map(str, gone))
    message = f"held by processes that no longer exist: {pids}"
    return context.found(ZOMBIE_PROCESS, gpu, message, source="nvmlDeviceGetComputeRunningProcesses", reading=pids)


CHECK = together(
    per_gpu((LOST, _lost), (RESET_REQUIRED, _reset_required), broken_too=True),
    PRESENCE_CHECK,
    per_gpu(
        (RECOVERY_ACTION, _recovery_action),
        (STRAGGLER, _straggler),
        (LEAKED_MEMORY, _leaked_memory),
        (ZOMBIE_PROCESS, _zombie_process),
    ),
)
