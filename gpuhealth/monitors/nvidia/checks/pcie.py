"""The PCI Express link: lanes, speed under load, replays, and the kernel's error counters (AER)."""

from __future__ import annotations

from gpuhealth.model.codes import Code, define
from gpuhealth.model.context import RuleResult
from gpuhealth.model.finding import Action, Finding, Severity
from gpuhealth.model.history import key as history_key
from gpuhealth.model.missing import Missing, MissingReason, Reading
from gpuhealth.model.pci import PciAddress
from gpuhealth.monitors.nvidia.context import GpuContext, per_gpu, split
from gpuhealth.monitors.nvidia.readings import GpuReadings, PciDevice, PciPort

WIDTH = define(
    "pcie.width",
    Severity.WARNING,
    Action.INSPECT_HARDWARE,
    meaning="The GPU's PCI Express link uses fewer lanes than GPU and slot support: copies from and to it are slow.",
    advice="Reseat the GPU or its riser and cable, and look for AER lines in the kernel log.",
)
GENERATION = define(
    "pcie.generation",
    Severity.WARNING,
    Action.INSPECT_HARDWARE,
    meaning="Under load the GPU's PCI Express link stays at a lower speed than GPU and slot support.",
    advice="Look for AER lines in the kernel log and for speed limits in the firmware's setup; reseat the GPU.",
    raise_after=60.0,  # the link takes a moment to speed up when load comes
)
REPLAY_RATE = define(
    "pcie.replay_rate",
    Severity.WARNING,
    Action.INSPECT_HARDWARE,
    meaning="The PCI Express link has to resend many packets: its signal is poor.",
    advice="Reseat the GPU, its riser or cable; if it continues, replace them one after another.",
    clear_after=300.0,
)
AER_CORRECTABLE_RATE = define(
    "pcie.aer_correctable_rate",
    Severity.WARNING,
    Action.INSPECT_HARDWARE,
    meaning="The kernel counts many corrected errors on the GPU's PCI Express link, at the GPU or at a port between it"
    " and the CPU: the signal there is poor.",
    advice="Reseat the GPU, its riser or cable; `lspci -vvv` names the kinds of error. A port that several GPUs share"
    " is on a switch or the mainboard.",
    clear_after=300.0,
)
AER_UNCORRECTABLE = define(
    "pcie.aer_uncorrectable",
    Severity.CRITICAL,
    Action.INSPECT_HARDWARE,
    meaning="The kernel has counted PCI Express errors of the GPU that could not be corrected: transfers were lost. It"
    " is a warning if only a port between GPU and CPU has detected them.",
    advice="Drain the node, look for XID 79 and AER lines in the kernel log, reboot, and reseat the GPU if it repeats.",
    quarantine=True,
)

_MINUTE = 60.0


def _width(gpu: GpuReadings, context: GpuContext) -> RuleResult:
    source = "nvmlDeviceGetCurrPcieLinkWidth"
    return _below(WIDTH, gpu, context, source, "lanes", gpu.pcie_width, gpu.pcie_width_max)


def _generation(gpu: GpuReadings, context: GpuContext) -> RuleResult:
    source = "nvmlDeviceGetCurrPcieLinkGeneration"
    slow = _below(GENERATION, gpu, context, source, "generation", gpu.pcie_generation, gpu.pcie_generation_max)
    if not isinstance(slow, Finding):
        return slow
    load = gpu.utilization_percent
    if isinstance(load, Missing):
        return load
    if load < context.settings.clocks.busy_percent:
        # An idle link shifts down to save power: not a fault, and no evidence about its speed under load.
        return Missing(MissingReason.NO_HISTORY, "the GPU has no load, and an idle link shifts down")
    return slow


def _below(
    code: Code, gpu: GpuReadings, context: GpuContext, source: str, unit: str, value: Reading[int], most: Reading[int]
) -> RuleResult:
    if isinstance(value, Missing):
        return value
    if isinstance(most, Missing):
        return most
    if value >= most:
        return None
    message = f"PCIe link {unit}: {value} where GPU and slot can do {most}"
    return context.found(code, gpu, message, source=source, reading=value, threshold=most)


def _replay_rate(gpu: GpuReadings, context: GpuContext) -> RuleResult:
    limit = context.settings.pcie.replays_per_minute
    return _rate(REPLAY_RATE, gpu, context, "nvmlDeviceGetPcieReplayCounter", "PCIe replays", gpu.pcie_replays, limit)


def _aer_correctable_rate(gpu: GpuReadings, context: GpuContext) -> RuleResult:
    device = _device(gpu, context)
    if isinstance(device, Missing):
        return device
    limit = context.settings.pcie.correctable_per_minute
    source, unit = "sysfs aer_dev_correctable", "corrected PCIe errors"
    own = _rate(AER_CORRECTABLE_RATE, gpu, context, source, unit, device.aer_correctable, limit)
    at_ports = [
        _rate(AER_CORRECTABLE_RATE, gpu, context, source, unit, port.aer_correctable, limit, port.address)
        for port in device.ports
    ]
    return _worst(own, at_ports)


def _worst(own: RuleResult, at_ports: list[RuleResult]) -> RuleResult:
    """The finding on the GPU itself, else that on the nearest port; a port without counters has nothing to check."""
    if isinstance(own, Finding):
        return own
    found = next((result for result in at_ports if isinstance(result, Finding)), None)
    if found or (isinstance(own, Missing) and not own.is_unsupported):
        return found or own
    unread = [result for result in at_ports if isinstance(result, Missing) and not result.is_unsupported]
    measured = own is None or None in at_ports
    return unread[0] if unread else None if measured else own


def _rate(
    code: Code,
    gpu: GpuReadings,
    context: GpuContext,
    source: str,
    unit: str,
    value: Reading[int],
    per_minute: int,
    port: PciAddress | None = None,
) -> RuleResult:
    if isinstance(value, Missing):
        return value
    window = context.settings.pcie.window
    grown = context.history.counter_increase(
        history_key(code.name, gpu.component, _part("", port)), value, context.now, window
    )
    if grown.amount > per_minute * window / _MINUTE:
        message = f"{grown.amount} {unit} within {window:g} s{_at(port)}"
        return context.found(
            code, gpu, message, source=source + _at(port), reading=grown.amount, threshold=f"{per_minute} a minute"
        )
    return None if grown.seconds else Missing(MissingReason.NO_HISTORY)


def _aer_uncorrectable(gpu: GpuReadings, context: GpuContext) -> RuleResult:
    device = _device(gpu, context)
    if isinstance(device, Missing):
        return device
    own = _uncorrectable_at(gpu, context, device)
    return _worst(own, [_uncorrectable_at(gpu, context, port, port.address) for port in device.ports])


def _uncorrectable_at(
    gpu: GpuReadings, context: GpuContext, place: PciDevice | PciPort, port: PciAddress | None = None
) -> RuleResult:
    """Uncorrectable errors that the GPU has detected, or a port above it: these may be about other devices, too."""
    counts, unread = split({"nonfatal": place.aer_nonfatal, "fatal": place.aer_fatal})
    window = context.settings.pcie.uncorrectable_window
    grown = {
        kind: context.history.counter_increase(
            history_key(AER_UNCORRECTABLE.name, gpu.component, _part(kind, port)), count, context.now, window
        )
        for kind, count in counts.items()
    }
    listing = ", ".join(f"{kind} {each.amount}" for kind, each in grown.items() if each.amount)
    if listing:
        message = f"uncorrectable PCIe errors within {window / _MINUTE:g} min{_at(port)}: {listing}"
        severity = Severity.WARNING if port else None
        return context.found(
            AER_UNCORRECTABLE,
            gpu,
            message,
            source=f"sysfs aer_dev_*{_at(port)}",
            reading=listing,
            threshold=0,
            severity=severity,
        )
    # Errors counted before the first round may date from the boot, when device probing causes them.
    return unread or (None if all(each.seconds for each in grown.values()) else Missing(MissingReason.NO_HISTORY))


def _part(kind: str, port: PciAddress | None) -> str:
    """Which of several counters on a GPU's link it is, for its history."""
    return f"{kind}/{port}".strip("/") if port else kind


def _at(port: PciAddress | None) -> str:
    return f" at port {port} above it" if port else ""


def _device(gpu: GpuReadings, context: GpuContext) -> Reading[PciDevice]:
    if isinstance(gpu.pci, Missing):
        return gpu.pci
    devices = context.readings.pci
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
