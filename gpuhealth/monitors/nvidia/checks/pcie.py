"""The PCI Express link: lanes, speed under load, replays, and the error counters that the kernel keeps (AER)."""

from __future__ import annotations

from gpuhealth.kernel_log.codes import LogCode
from gpuhealth.model.code import Code
from gpuhealth.model.finding import Action, Finding, Severity
from gpuhealth.model.missing import Missing, MissingReason, Reading
from gpuhealth.monitors.nvidia.checks.rule import Judgement, Look, per_gpu, split
from gpuhealth.monitors.nvidia.readings import GpuReadings, PciDevice

WIDTH = Code(
    "pcie.width",
    Severity.WARNING,
    Action.INSPECT_HARDWARE,
    meaning="The GPU's PCI Express link uses fewer lanes than GPU and slot can: copies from and to it are slow.",
    advice="Reseat the GPU or its riser and cable, and look for AER lines in the kernel log.",
)
GENERATION = Code(
    "pcie.generation",
    Severity.WARNING,
    Action.INSPECT_HARDWARE,
    meaning="Under load the GPU's PCI Express link stays at a lower speed than GPU and slot can.",
    advice="Look for AER lines in the kernel log and for speed limits in the firmware's setup; reseat the GPU.",
    raise_after=60.0,  # the link takes a moment to speed up when load comes
)
REPLAY_RATE = Code(
    "pcie.replay_rate",
    Severity.WARNING,
    Action.INSPECT_HARDWARE,
    meaning="The PCI Express link has to send many packets again: its signal is poor.",
    advice="Reseat the GPU, its riser or cable; if it goes on, replace them one after another.",
    clear_after=300.0,
)
AER_CORRECTABLE_RATE = Code(
    LogCode.PCIE_CORRECTABLE.value,
    Severity.WARNING,
    Action.INSPECT_HARDWARE,
    meaning="The kernel counts many corrected errors on the GPU's PCI Express link: its signal is poor.",
    advice="Reseat the GPU, its riser or cable; `lspci -vvv` names the kinds of error.",
    clear_after=300.0,
)
AER_UNCORRECTABLE = Code(
    LogCode.PCIE_UNCORRECTABLE.value,
    Severity.CRITICAL,
    Action.INSPECT_HARDWARE,
    meaning="The kernel has counted PCI Express errors of the GPU that could not be corrected: transfers were lost.",
    advice="Drain the node, look for XID 79 and AER lines in the kernel log, reboot, and reseat the GPU if it repeats.",
    quarantine=True,
)

_MINUTE = 60.0


def _width(gpu: GpuReadings, look: Look) -> Judgement:
    source = "nvmlDeviceGetCurrPcieLinkWidth"
    return _below(WIDTH, gpu, look, source, "lanes", gpu.pcie_width, gpu.pcie_width_max)


def _generation(gpu: GpuReadings, look: Look) -> Judgement:
    source = "nvmlDeviceGetCurrPcieLinkGeneration"
    slow = _below(GENERATION, gpu, look, source, "generation", gpu.pcie_generation, gpu.pcie_generation_max)
    if not isinstance(slow, Finding):
        return slow
    load = gpu.utilization_percent
    if isinstance(load, Missing):
        return load
    if load < look.settings.clocks.busy_percent:
        # An idle link shifts down to save power: not a fault, and it tells nothing of the speed under load.
        return Missing(MissingReason.NO_HISTORY, "the GPU has no load, and an idle link shifts down")
    return slow


def _below(
    code: Code, gpu: GpuReadings, look: Look, source: str, unit: str, value: Reading[int], most: Reading[int]
) -> Judgement:
    if isinstance(value, Missing):
        return value
    if isinstance(most, Missing):
        return most
    if value >= most:
        return None
    message = f"PCIe link {unit}: {value} where GPU and slot can do {most}"
    return look.found(code, gpu, message, source=source, reading=value, threshold=most)


def _replay_rate(gpu: GpuReadings, look: Look) -> Judgement:
    limit = look.settings.pcie.replays_per_minute
    return _rate(REPLAY_RATE, gpu, look, "nvmlDeviceGetPcieReplayCounter", "PCIe replays", gpu.pcie_replays, limit)


def _aer_correctable_rate(gpu: GpuReadings, look: Look) -> Judgement:
    device = _device(gpu, look)
    if isinstance(device, Missing):
        return device
    limit = look.settings.pcie.correctable_per_minute
    source, unit = "sysfs aer_dev_correctable", "corrected PCIe errors"
    return _rate(AER_CORRECTABLE_RATE, gpu, look, source, unit, device.aer_correctable, limit)


def _rate(
    code: Code, gpu: GpuReadings, look: Look, source: str, unit: str, value: Reading[int], per_minute: int
) -> Judgement:
    if isinstance(value, Missing):
        return value
    window = look.settings.pcie.window
    grown = look.history.increase(f"{code.name}/{gpu.component}", value, look.now, window)
    if grown.amount > per_minute * window / _MINUTE:
        message = f"{grown.amount} {unit} within {window:g} s"
        return look.found(code, gpu, message, source=source, reading=grown.amount, threshold=f"{per_minute} a minute")
    return None if grown.seconds else Missing(MissingReason.NO_HISTORY)


def _aer_uncorrectable(gpu: GpuReadings, look: Look) -> Judgement:
    device = _device(gpu, look)
    if isinstance(device, Missing):
        return device
    counts, unread = split({"nonfatal": device.aer_nonfatal, "fatal": device.aer_fatal})
    window = look.settings.pcie.uncorrectable_window
    keys = {kind: f"{AER_UNCORRECTABLE.name}/{gpu.component}/{kind}" for kind in counts}
    grown = {kind: look.history.increase(keys[kind], count, look.now, window) for kind, count in counts.items()}
    listing = ", ".join(f"{kind} {each.amount}" for kind, each in grown.items() if each.amount)
    if listing:
        message = f"uncorrectable PCIe errors within {window / _MINUTE:g} min: {listing}"
        return look.found(AER_UNCORRECTABLE, gpu, message, source="sysfs aer_dev_*", reading=listing, threshold=0)
    # What was counted before the first look may be as old as the boot, when probing for devices makes such errors.
    return unread or (None if all(each.seconds for each in grown.values()) else Missing(MissingReason.NO_HISTORY))


def _device(gpu: GpuReadings, look: Look) -> Reading[PciDevice]:
    if isinstance(gpu.pci, Missing):
        return gpu.pci
    devices = look.readings.pci
    if isinstance(devices, Missing):
        return devices
    found = next((device for device in devices if device.address == gpu.pci), None)
    return found or Missing(MissingReason.NOT_INSTALLED, f"sysfs shows no {gpu.pci}")


CHECK = per_gpu(
    (WIDTH, _width),
    (GENERATION, _generation),
    (REPLAY_RATE, _replay_rate),
    (AER_CORRECTABLE_RATE, _aer_correctable_rate),
    (AER_UNCORRECTABLE, _aer_uncorrectable),
)
