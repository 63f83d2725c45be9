"""Which GPUs on the PCI bus the node's NVIDIA driver is meant to use, and why not the others."""

from __future__ import annotations

from gpuhealth.model.missing import Missing, MissingReason
from gpuhealth.model.pci import PciAddress
from gpuhealth.monitors.nvidia.baseline import Baseline
from gpuhealth.monitors.nvidia.readings import NVIDIA_DRIVERS, UNINTENDED_DRIVERS, NvidiaReadings, PciDevice

_DISPLAY = (0x0300, 0x0380)
_LONGEST_REASON = 80


def unmanaged_gpus(readings: NvidiaReadings, baseline: Baseline) -> dict[PciAddress, str]:
    """The GPUs on the bus that the driver is not meant to use, each with the reason."""
    if isinstance(readings.pci, Missing):
        return {}
    gpus = [device for device in readings.pci if device.is_gpu]
    listed = {gpu.pci for gpu in readings.nvml.gpus}
    used = [device for device in gpus if device.driver in NVIDIA_DRIVERS or device.address in listed]
    others = used or [device for device in gpus if device.is_handed_over]
    reasons: dict[PciAddress, str] = {}
    for device in gpus:
        if device.is_passed_through or (device.is_handed_over and device.address not in listed):
            how = f"bound to {device.driver}" if device.driver else f"reserved for {device.reserved_for}"
            reasons[device.address] = how[:_LONGEST_REASON]
        elif device.address in readings.excluded_gpus:
            reasons[device.address] = "excluded by the driver's options"
        elif _is_display_card(device, others) and device.address not in baseline.gpus.values():
            reasons[device.address] = "a display card that the driver does not use"
    return reasons


def _is_display_card(device: PciDevice, others: list[PciDevice]) -> bool:
    """Whether it has a display, no driver took it on purpose, and the GPUs in use have none or are of other models."""
    if not others or device.driver not in UNINTENDED_DRIVERS or not _has_display(device):
        return False
    return device.device_id not in {other.device_id for other in others} or not any(map(_has_display, others))


def _has_display(device: PciDevice) -> bool:
    return device.device_class >> 8 in _DISPLAY


def nothing_to_use(readings: NvidiaReadings, baseline: Baseline, expected: int | None) -> Missing | None:
    """Set where the driver has no GPU to use: none is expected, or none of those on the bus is meant for it.

    Then it is no fault that NVML does not start, and there is nothing to check.
    """
    problem = readings.nvml.problem
    if problem is None or problem.reason is MissingReason.RELEASED:
        return None
    if expected is not None:
        return None if expected else Missing(MissingReason.NOT_SUPPORTED, "no GPU is expected")
    unmanaged = unmanaged_gpus(readings, baseline)
    gpus = [] if isinstance(readings.pci, Missing) else [device for device in readings.pci if device.is_gpu]
    left = known_count(baseline, unmanaged)
    if not gpus or len(unmanaged) < len(gpus) or left:
        return None
    return Missing(MissingReason.NOT_SUPPORTED, "no GPU of this node is meant for its NVIDIA driver")


def known_count(baseline: Baseline, unmanaged: dict[PciAddress, str]) -> int:
    """Number of GPUs that the node is known to have, without those that the driver is no longer meant to use."""
    gone = sum(address in unmanaged for address in baseline.gpus.values())
    return max(len(baseline.gpus), baseline.counted) - gone


def is_other_boot(baseline: Baseline, boot_id: str) -> bool:
    """Whether the node has rebooted since all of its known GPUs were last present."""
    return bool(boot_id and baseline.gpus) and baseline.boot_id != boot_id


def are_replaced(readings: NvidiaReadings, baseline: Baseline, boot_id: str) -> bool:
    """Whether other GPUs have taken the place of known ones over a reboot.

    So it is with a virtual machine that starts on another host, and with a board that was replaced: uuids and addresses
    are new. All counts must agree, and reach the number that was known before; fewer GPUs are missing ones.
    """
    nvml, unmanaged = readings.nvml, unmanaged_gpus(readings, baseline)
    if not nvml.is_complete or not is_other_boot(baseline, boot_id):
        return False
    uuids = {gpu.uuid for gpu in nvml.gpus if isinstance(gpu.uuid, str) and isinstance(gpu.pci, str) and not gpu.error}
    if len(uuids) != nvml.count or len(uuids) < known_count(baseline, unmanaged):
        return False
    pci, nodes = readings.pci, readings.device_nodes
    on_bus = () if isinstance(pci, Missing) else [device for device in pci if device.is_gpu]
    if on_bus and len(on_bus) - len(unmanaged) != len(uuids):
        return False
    if not isinstance(nodes, Missing) and nodes and len(nodes) != len(uuids):
        return False
    return any(uuid not in uuids for uuid in baseline.gpus)
