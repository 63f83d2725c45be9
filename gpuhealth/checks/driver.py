"""The driver: does it answer, is it loaded, do its halves match, does it return what it should."""

from __future__ import annotations

from gpuhealth.checks.code import Code
from gpuhealth.checks.rule import Judgement, Look, per_gpu, per_node, together
from gpuhealth.model import NODE, Action, Finding, Missing, MissingReason, Severity
from gpuhealth.readings import GpuReadings

UNRESPONSIVE = Code(
    "driver.unresponsive",
    Severity.CRITICAL,
    Action.REBOOT_NODE,
    meaning="A call into the NVIDIA driver has not returned, or took far too long: the GPU's firmware or a lock in the"
    " driver is stuck, and whatever uses the GPUs will hang as well.",
    advice="Do not kill processes that hang in the driver, which can make it worse. Drain the node and reboot it; look"
    " for XID 119, 120 and 45 in the kernel log.",
    quarantine=True,
    drain=True,
    essential=True,
    clear_after=60.0,
)
NOT_LOADED = Code(
    "driver.not_loaded",
    Severity.CRITICAL,
    Action.UPDATE_SOFTWARE,
    meaning="The node has NVIDIA GPUs but no working driver: its kernel module is not loaded or its library absent.",
    advice="Check lsmod, dmesg and the driver's installation (DKMS build, Secure Boot, nouveau); load or install it.",
    quarantine=True,
)
MISMATCH = Code(
    "driver.mismatch",
    Severity.CRITICAL,
    Action.REBOOT_NODE,
    meaning="NVIDIA's library and kernel module are of different versions, as after an upgrade that did not reload the"
    " module: nothing new can start on the GPUs.",
    advice="Drain the node and reboot it, or unload and reload the kernel modules; hold back unattended upgrades.",
    quarantine=True,
)
NVML_ERROR = Code(
    "nvml.error",
    Severity.WARNING,
    Action.REBOOT_NODE,
    meaning="NVML returned an error that says nothing about its cause, such as 999 (unknown error); again and again it"
    " means a driver or GPU that cannot be relied on.",
    advice="Look for XIDs and NVRM lines in the kernel log at that time. If it repeats, reset the GPU or reboot the"
    " node, and update the driver.",
    quarantine=True,  # once it is critical
    clear_after=120.0,
)


def _unresponsive(look: Look) -> Judgement:
    nvml, limits = look.readings.nvml, look.settings.nvml
    if isinstance(nvml, Missing):
        return nvml
    waited = nvml.waiting_seconds
    if waited >= min(limits.warn_after, limits.critical_after):
        critical = waited >= limits.critical_after
        call = nvml.waiting_for or "a round of calls"
        return look.found(
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


def _not_loaded(look: Look) -> Judgement:
    nvml = look.nvml
    if not isinstance(nvml, Missing):
        return None
    if nvml.reason not in (MissingReason.NOT_LOADED, MissingReason.NOT_INSTALLED):
        # A mismatch is told by a loaded module; of any other reason nothing follows.
        return None if nvml.reason is MissingReason.MISMATCH else nvml
    pci = look.readings.pci
    on_bus = [] if isinstance(pci, Missing) else [device.address for device in pci if device.is_gpu]
    expected = len(look.history.baseline.gpus) if look.settings.expect_gpus is None else look.settings.expect_gpus
    if not on_bus and not expected:
        return nvml  # no GPU is known of: not a fault, and not known to be none either
    what = "kernel module not loaded" if nvml.reason is MissingReason.NOT_LOADED else "driver library not installed"
    gpus = f"GPUs on the PCI bus: {', '.join(on_bus)}" if on_bus else f"the node ought to have {expected} GPUs"
    return look.found(NOT_LOADED, None, f"{what}; {gpus}", source="nvmlInit_v2", reading=nvml)


def _mismatch(look: Look) -> Judgement:
    nvml = look.nvml
    if isinstance(nvml, Missing) and nvml.reason is MissingReason.MISMATCH:
        message = "driver library and kernel module are of different versions"
        return look.found(MISMATCH, None, message, source="nvmlInit_v2", reading=nvml)
    return nvml if isinstance(nvml, Missing) else None


def _node_error(look: Look) -> Judgement:
    nvml = look.readings.nvml
    if isinstance(nvml, Missing):
        return nvml
    reason = nvml.problem or nvml.count
    if not isinstance(reason, Missing):
        return None
    if reason.reason is not MissingReason.ERROR:
        return reason
    return _repeating(look, None, "NVML does not work" if nvml.problem else "NVML cannot count the GPUs", reason.detail)


def _gpu_error(gpu: GpuReadings, look: Look) -> Judgement:
    # What a corrupt InfoROM answers is a finding of its own.
    failed = [text for text in gpu.failed_calls.values() if not text.startswith(MissingReason.CORRUPTED_INFOROM)]
    if failed:
        return _repeating(look, gpu, "NVML calls failed", "; ".join(text.removeprefix("error: ") for text in failed))
    return gpu.error


def _repeating(look: Look, gpu: GpuReadings | None, message: str, detail: str) -> Finding:
    limits = look.settings.nvml
    key = f"{NVML_ERROR.name}/{gpu.component if gpu else NODE}"
    rounds = len(look.history.mark(key, look.now, limits.error_window))
    return look.found(
        NVML_ERROR,
        gpu,
        f"{message}{f' in {rounds} rounds' if rounds > 1 else ''}: {detail}",
        source="NVML",
        reading=detail,
        threshold=f"critical from {limits.errors_critical} rounds within {limits.error_window:g} s",
        severity=Severity.CRITICAL if rounds >= limits.errors_critical else Severity.WARNING,
    )


CHECK = together(
    per_node(
        (UNRESPONSIVE, _unresponsive), (NOT_LOADED, _not_loaded), (MISMATCH, _mismatch), (NVML_ERROR, _node_error)
    ),
    per_gpu((NVML_ERROR, _gpu_error), broken_too=True, of_node_too=True),
)
