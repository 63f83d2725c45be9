"""Lines about PCI Express ports: which GPU is below a port, and what a fault of the port means for it."""

from __future__ import annotations

import re

import msgspec

from gpuhealth.kernel_log.pattern import BDF
from gpuhealth.model.finding import Severity
from gpuhealth.model.kernel_event import KernelEvent
from gpuhealth.model.missing import Missing
from gpuhealth.model.pci import PciAddress, PciSlot, function_zero, parse_address, slot_of
from gpuhealth.monitors.nvidia.checks.log_events import PORT_ERROR
from gpuhealth.monitors.nvidia.checks.pcie import AER_UNCORRECTABLE
from gpuhealth.monitors.nvidia.context import GpuContext

_ADDRESS = re.compile(BDF, re.ASCII)
_NONE = ""
"""The finding of an event that raises none."""


def placed(event: KernelEvent, context: GpuContext) -> KernelEvent:
    """An event of a port as one of the GPU below it, or of the node for a port above several; others unchanged.

    A port above no GPU has no finding. Errors of a GPU itself have none here: its counters are read.
    """
    if event.pci is None or event.finding not in (PORT_ERROR.name, AER_UNCORRECTABLE.name):
        return event
    if isinstance(context.readings.pci, Missing):  # any port may be above a GPU
        return msgspec.structs.replace(event, pci=None, meaning=f"{event.meaning} (port {event.pci})")
    below = _below(_port(event, event.pci), context)
    if not below:
        return msgspec.structs.replace(event, finding=_NONE)
    severity, meaning = event.severity, f"{event.meaning} (port {event.pci})"
    if event.finding == AER_UNCORRECTABLE.name or len(below) > 1:  # it may be about another device
        severity = Severity.WARNING
    if len(below) > 1:
        meaning += f", above {', '.join(below)}"
    return msgspec.structs.replace(
        event,
        finding=PORT_ERROR.name,
        pci=below[0] if len(below) == 1 else None,
        severity=severity,
        meaning=meaning,
    )


def _port(event: KernelEvent, place: PciSlot) -> PciAddress:
    """The address of the port, with its function: ports of other devices may be in the same slot."""
    named = (parse_address(text) for text in _ADDRESS.findall(event.line))
    return next((address for address in named if address and slot_of(address) == place), function_zero(place))


def _below(port: PciAddress, context: GpuContext) -> list[PciSlot]:
    """The GPUs on whose path from the processor the port is."""
    devices = context.readings.pci
    if isinstance(devices, Missing):
        return []
    return [
        slot_of(device.address)
        for device in devices
        if device.is_gpu and any(above.address == port for above in device.ports)
    ]
