"""The driver: whether it responds, is loaded, matches its library, and returns valid values."""

from __future__ import annotations

from gpuhealth.model.codes import define
from gpuhealth.model.component import NODE
from gpuhealth.model.context import RuleResult
from gpuhealth.model.finding import Action, Finding, Severity
from gpuhealth.model.history import key as history_key
from gpuhealth.model.missing import Missing, MissingReason
from gpuhealth.monitors.nvidia.context import GpuContext, per_gpu, per_node, together
from gpuhealth.monitors.nvidia.readings import GpuReadings, KernelModule, NvmlReadings

UNRESPONSIVE = define(
    "driver.unresponsive",
    Severity.CRITICAL,
    Action.REBOOT_NODE,
    meaning="A call into the NVIDIA driver has not returned, or took far too long: the GPU's firmware or a lock in the"
    " driver is stuck, and every process that uses the GPUs will hang as well.",
    advice="Do not kill processes that hang in the driver, which can make it worse. Drain the node and reboot it; look"
    " for XID 119, 120 and 45 in the kernel log.",
    quarantine=True,
    cordon=True,
    drain=True,
    essential=True,
    clear_after=60.0,
)
NOT_LOADED = define(
    "driver.not_loaded",
    Severity.CRITICAL,
    Action.UPDATE_SOFTWARE,
    meaning="The node has NVIDIA GPUs but no working driver: its kernel module is not loaded or its library absent.",
    advice="Check lsmod, dmesg and the driver's installation (DKMS build, Secure Boot, nouveau); load or install it.",
    quarantine=True,
    cordon=True,
    raise_after=600.0,  # after a boot, or during an upgrade, the module is loaded within minutes
)
MISMATCH = define(
    "driver.version_mismatch",
    Severity.CRITICAL,
    Action.REBOOT_NODE,
    meaning="NVIDIA's library and kernel module are of different versions, as after an upgrade that did not reload the"
    " module: nothing new can start on the GPUs.",
    advice="Drain the node and reboot it, or unload and reload the kernel modules; hold back unattended upgrades.",
    quarantine=True,
    cordon=True,
    raise_after=600.0,  # in the middle of an upgrade one of them is the new one already
)
NVML_ERROR = define(
    "nvml.error",
    Severity.WARNING,
    Action.REBOOT_NODE,
    meaning="NVML does not start, cannot count the GPUs or fails most calls to a GPU with an error that does not name"
    " the cause, such as 999 (unknown error). When that repeats, the driver or the GPU cannot be relied on.",
    advice="Look for XIDs and NVRM lines in the kernel log at that time. If it repeats, reset the GPU or reboot the"
    " node, and update the driver.",
    quarantine=True,  # only once it is critical
    cordon=True,
    clear_after=120.0,
)


_SHOWN = 8
"""Maximum number of GPUs named in a message."""


def _unresponsive(context: GpuContext) -> RuleResult:
    nvml, limits = context.readings.nvml, context.settings.nvml
    waited = nvml.waiting_seconds
    if waited >= min(limits.warn_after, limits.critical_after):
        critical = waited >= limits.critical_after
        call = nvml.waiting_for or "a round of calls"
        return context.found(
            UNRESPONSIVE,
            None,
            f"the driver took {waited:.0f} s to answer" if nvml.answered else f"no answer for {waited:.0f} s to {call}",
            source=call,
            reading=f"{waited:.1f} s",
            threshold=f"{limits.critical_after if critical else limits.warn_after:g} s",
            severity=Severity.CRITICAL if critical else Severity.WARNING,
        )
    if nvml.problem or nvml.answered:
        return nvml.problem
    return Missing(MissingReason.TIMEOUT, f"still waiting for {nvml.waiting_for or 'NVML'}")


def _not_loaded(context: GpuContext) -> RuleResult:
    nvml = context.nvml
    if not isinstance(nvml, Missing):
        return None
    if nvml.reason not in (MissingReason.NOT_LOADED, MissingReason.NOT_INSTALLED):
        # A loaded module reports a mismatch; other reasons are not conclusive.
        return None if nvml.reason is MissingReason.MISMATCH else nvml
    module = context.readings.kernel_module
    if isinstance(module, Missing):
        return module  # the library may be missing only in our container
    if module.is_loaded:
        return None  # agent.nvml_library: the node has its driver, but our container cannot use it
    pci = () if isinstance(context.readings.pci, Missing) else context.readings.pci
    on_bus = [device.address for device in pci if device.is_gpu and device.address not in context.unmanaged]
    expected = len(context.baseline.gpus) if context.settings.expected_gpus is None else context.settings.expected_gpus
    if not on_bus and not expected:
        return nvml  # no GPU is known: this is neither a fault nor proof that there are none
    more = f" and {len(on_bus) - _SHOWN} more" if len(on_bus) > _SHOWN else ""
    gpus = (
        f"GPUs on the PCI bus: {', '.join(on_bus[:_SHOWN])}{more}"
        if on_bus
        else f"the node should have {expected} GPUs"
    )
    return context.found(
        NOT_LOADED, None, f"kernel module nvidia is not loaded; {gpus}", source="nvmlInit_v2, /sys/module", reading=nvml
    )


def _mismatch(context: GpuContext) -> RuleResult:
    nvml, module = context.nvml, context.readings.kernel_module
    if not isinstance(nvml, Missing) or nvml.reason is not MissingReason.MISMATCH:
        return nvml if isinstance(nvml, Missing) else None
    if isinstance(module, Missing):
        return module
    if not is_mismatch_of_node(context.readings.nvml, module):
        return None  # agent.nvml_library: new programs on the node get the right library, only we do not
    libraries = "; ".join(map(str, context.readings.nvml.libraries.found)) or "driver library"
    message = f"{libraries} and kernel module ({module.version}) are of different versions"
    return context.found(MISMATCH, None, message, source="nvmlInit_v2", reading=nvml)


def is_mismatch_of_node(nvml: NvmlReadings, module: KernelModule) -> bool:
    """Whether a library that does not fit the kernel module is a fault of the node: it has no other one.

    In a container the library of the container may be another one than the node's.
    """
    search = nvml.libraries
    if search.found:
        return not search.fits(module.version)
    return not search.elsewhere and not module.has_changed


def _node_error(context: GpuContext) -> RuleResult:
    nvml = context.readings.nvml
    reason = nvml.problem or nvml.count
    if not isinstance(reason, Missing):
        return None
    if reason.reason is not MissingReason.DRIVER_ERROR:
        return reason
    return _repeating(
        context, None, "NVML does not work" if nvml.problem else "NVML cannot count the GPUs", reason.detail
    )


def _gpu_error(gpu: GpuReadings, context: GpuContext) -> RuleResult:
    if gpu.error and gpu.error.reason is MissingReason.DRIVER_ERROR and not is_counted_only(gpu, context):
        return _broken(context, gpu, "NVML cannot open it", gpu.error.detail, Severity.CRITICAL)
    if fails_most_calls(gpu):
        return _repeating(context, gpu, "most NVML calls failed", "; ".join(map(_detail, gpu.failed_calls.values())))
    return gpu.error


def is_counted_only(gpu: GpuReadings, context: GpuContext) -> bool:
    """Whether NVML counts this GPU, but all GPUs of the PCI bus are others: its number of GPUs is wrong."""
    if isinstance(gpu.uuid, str) or isinstance(gpu.pci, str) or isinstance(context.readings.pci, Missing):
        return False
    on_bus = sum(device.is_gpu and device.address not in context.unmanaged for device in context.readings.pci)
    return 0 < on_bus <= sum(isinstance(other.pci, str) for other in context.gpus if other.index >= 0)


def fails_most_calls(gpu: GpuReadings) -> bool:
    """Whether the driver failed more than half of the functions about this GPU: single ones are not conclusive."""
    errors = {call: reason for call, reason in gpu.failed_calls.items() if reason.reason is MissingReason.DRIVER_ERROR}
    failed = {call.partition("(")[0] for call in errors}  # several field values are read by one function
    return 2 * len(failed) > gpu.calls


def _detail(reason: Missing) -> str:
    return reason.detail


def _repeating(context: GpuContext, gpu: GpuReadings | None, message: str, detail: str) -> Finding:
    limits = context.settings.nvml
    key = history_key(NVML_ERROR.name, gpu.component if gpu else NODE)
    rounds = len(context.history.record_event(key, context.now, limits.error_window))
    severity = Severity.CRITICAL if rounds >= limits.errors_critical else Severity.WARNING
    return _broken(context, gpu, f"{message}{f' in {rounds} rounds' if rounds > 1 else ''}", detail, severity)


def _broken(context: GpuContext, gpu: GpuReadings | None, message: str, detail: str, severity: Severity) -> Finding:
    limits = context.settings.nvml
    return context.found(
        NVML_ERROR,
        gpu,
        f"{message}: {detail}",
        source="NVML",
        reading=detail,
        threshold=f"critical from {limits.errors_critical} rounds within {limits.error_window:g} s",
        severity=severity,
    )


CHECK = together(
    per_node(
        (UNRESPONSIVE, _unresponsive), (NOT_LOADED, _not_loaded), (MISMATCH, _mismatch), (NVML_ERROR, _node_error)
    ),
    per_gpu((NVML_ERROR, _gpu_error), broken_too=True, of_node_too=True),
)
