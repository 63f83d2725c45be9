"""The NVLink fabric: whether the GPU has joined it, works in it, and whether the fabric manager runs."""

from __future__ import annotations

from gpuhealth.model.codes import define
from gpuhealth.model.context import RuleResult
from gpuhealth.model.finding import Action, Severity
from gpuhealth.model.missing import Missing, MissingReason, Reading
from gpuhealth.monitors.nvidia.context import GpuContext, per_gpu, per_node, together
from gpuhealth.monitors.nvidia.readings import Fabric, GpuReadings

INCOMPLETE = define(
    "fabric.incomplete",
    Severity.CRITICAL,
    Action.RESET_GPU,
    meaning="The GPU has not joined its NVLink fabric, or failed to: CUDA programs on it cannot start.",
    advice="Check that the fabric manager runs in the driver's version and read its log; restart it, then reset the"
    " GPUs or reboot the node.",
    quarantine=True,
    cordon=True,
    raise_after=60.0,  # joining takes up to a minute after a boot or a reset
)
UNHEALTHY = define(
    "fabric.unhealthy",
    Severity.CRITICAL,
    Action.RESET_GPU,
    meaning="The GPU has joined its NVLink fabric, but reports degraded or no operation in it.",
    advice="Read the fabric manager's log for links and switches; drain and reset the GPU or reboot the node.",
    quarantine=True,
    cordon=True,
    drain=True,
)
MANAGER_DOWN = define(
    "fabric.manager_down",
    Severity.CRITICAL,
    Action.UPDATE_SOFTWARE,
    meaning="The node has NVSwitches, but nv-fabricmanager, which programs them, does not run, or nvlsm, through which"
    " it reaches those of HGX B200 and later: CUDA programs cannot start after the next reset.",
    advice="Start nvidia-fabricmanager.service, which also starts nvlsm; its version must be exactly the driver's.",
    quarantine=True,
    cordon=True,
    raise_after=30.0,  # a restart of the service is not a fault
)

# nvmlGpuFabricInfo of nvml.h.
_STATES = {1: "not started", 2: "in progress", 3: "completed"}
_COMPLETED = 3
_SUMMARY_UNHEALTHY = 2
_SUMMARY_LIMITED = 3
# Two-bit fields of the health mask: 1 is the fault, 2 its absence, 0 not supported.
_MASK_FAULTS = (
    (0, Severity.WARNING, "degraded bandwidth"),
    (2, Severity.WARNING, "route recovery in progress"),
    (4, Severity.CRITICAL, "route unhealthy"),
    (6, Severity.WARNING, "access timeout recovery in progress"),
)
_VIRTUAL_MACHINE = (1, 2)  # nvmlGpuVirtualizationMode_t: PASSTHROUGH, VGPU
_CONFIGURATION_SHIFT = 8  # four bits: 0 not supported, 1 correct, above it the kind of error
_CONFIGURATION = {
    2: "wrong system GUID",
    3: "wrong chassis serial number",
    4: "no partition",
    5: "too few NVLinks",
    6: "incompatible GPU firmware",
    7: "invalid location",
    8: "invalid GPU state",
}


def _incomplete(gpu: GpuReadings, context: GpuContext) -> RuleResult:
    fabric = gpu.fabric
    if isinstance(fabric, Missing):
        return fabric
    if fabric.state == 0:
        return Missing(MissingReason.NOT_SUPPORTED)
    if fabric.state == _COMPLETED and fabric.status == 0:
        return None
    state = _STATES.get(fabric.state, str(fabric.state))
    return context.found(
        INCOMPLETE,
        gpu,
        f"joining the NVLink fabric: {state}, status {fabric.status}",
        source="nvmlDeviceGetGpuFabricInfoV",
        reading=f"state {fabric.state}, status {fabric.status}",
        threshold=f"state {_COMPLETED}, status 0",
    )


def _unhealthy(gpu: GpuReadings, context: GpuContext) -> RuleResult:
    fabric = gpu.fabric
    if isinstance(fabric, Missing):
        return fabric
    if fabric.state != _COMPLETED or not (fabric.health_mask or fabric.health_summary):
        return Missing(MissingReason.NOT_SUPPORTED, "the fabric reports no health")
    faults = _faults(fabric)
    if not faults:
        return None
    return context.found(
        UNHEALTHY,
        gpu,
        f"NVLink fabric: {', '.join(text for _, text in faults)}",
        source="nvmlDeviceGetGpuFabricInfoV",
        reading=f"summary {fabric.health_summary}, mask 0x{fabric.health_mask or 0:x}",
        severity=max((severity for severity, _ in faults), key=lambda severity: severity.rank),
    )


def _faults(fabric: Fabric) -> list[tuple[Severity, str]]:
    mask = fabric.health_mask or 0
    faults = [(severity, text) for shift, severity, text in _MASK_FAULTS if mask >> shift & 0b11 == 1]
    configuration = mask >> _CONFIGURATION_SHIFT & 0xF
    if configuration > 1:
        text = _CONFIGURATION.get(configuration, f"number {configuration}")
        faults.append((Severity.CRITICAL, f"incorrect configuration ({text})"))
    if fabric.health_summary == _SUMMARY_UNHEALTHY:
        faults.append((Severity.CRITICAL, "unhealthy"))
    elif fabric.health_summary == _SUMMARY_LIMITED:
        faults.append((Severity.WARNING, "limited capacity"))
    return faults


def _manager_down(context: GpuContext) -> RuleResult:
    readings = context.readings
    running = readings.fabric_manager_running
    if isinstance(running, Missing):
        return running
    switches = _switches_of_node(context)
    if isinstance(switches, Missing):
        return None if running and not switches.is_unsupported else switches
    stopped = [] if running else ["nv-fabricmanager"]
    stopped += ["nvlsm"] if readings.subnet_manager_running is False else []
    if not stopped:
        return None
    do = "does" if len(stopped) == 1 else "do"
    message = f"{' and '.join(stopped)} {do} not run; {switches}"
    return context.found(MANAGER_DOWN, None, message, source="/proc", reading="not running", threshold="running")


def _switches_of_node(context: GpuContext) -> Reading[str]:
    """The NVLink switches that a fabric manager on this node has to program, in words."""
    pci, management = context.readings.pci, context.readings.switch_management
    nvswitches = [] if isinstance(pci, Missing) else [device for device in pci if device.is_nvswitch]
    if here := [device.address for device in nvswitches if not device.is_handed_over]:
        return f"NVSwitches: {', '.join(here)}"
    if nvswitches:
        return Missing(MissingReason.NOT_SUPPORTED, "the NVSwitches belong to a virtual machine")
    joined = [gpu for gpu in context.gpus if isinstance(gpu.fabric, Fabric) and gpu.fabric.is_of_node]
    if not joined:
        return pci if isinstance(pci, Missing) else Missing(MissingReason.NOT_SUPPORTED, "no NVSwitch to manage")
    addresses = {gpu.pci for gpu in context.gpus}
    links = [link for gpu in joined if not isinstance(gpu.nvlinks, Missing) for link in gpu.nvlinks]
    if any(link.remote_pci in addresses for link in links):
        return Missing(MissingReason.NOT_SUPPORTED, "the NVLinks lead from GPU to GPU")
    if not isinstance(management, Missing) and management:
        return f"NVLink switches behind {', '.join(management)}"
    if any(gpu.virtualization_mode in _VIRTUAL_MACHINE for gpu in joined):
        return Missing(MissingReason.NOT_SUPPORTED, "the NVLink switches are not managed from this virtual machine")
    return f"the NVLink fabric of {len(joined)} GPUs is within this node"


CHECK = together(
    per_gpu((INCOMPLETE, _incomplete), (UNHEALTHY, _unhealthy)),
    per_node((MANAGER_DOWN, _manager_down)),
)
