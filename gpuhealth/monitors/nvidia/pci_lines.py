"""Kernel-log messages of the PCI bus that matter to GPUs: AER, DPC, hot-plug, failed probes, lost power states."""

from __future__ import annotations

from gpuhealth.kernel_log.pattern import BDF, DEVICE, Groups, LineMeaning, line_pattern, pci_slot
from gpuhealth.model.finding import Action, Severity
from gpuhealth.monitors.nvidia.checks import log_events as codes
from gpuhealth.monitors.nvidia.checks import pcie


def _aer(groups: Groups) -> LineMeaning:
    pci = pci_slot(groups.get("source") or groups["device"])
    word = groups["severity"].lower()
    if word.startswith("correct"):
        return LineMeaning(
            finding=pcie.AER_CORRECTABLE_RATE,
            severity=Severity.INFO,
            action=Action.NONE,
            meaning="PCIe corrected an error",
            pci=pci,
        )
    return LineMeaning(
        finding=pcie.AER_UNCORRECTABLE,
        severity=Severity.CRITICAL,
        action=Action.INSPECT_HARDWARE,
        meaning=f"PCIe error that was not corrected ({word})",
        pci=pci,
    )


def _dpc(groups: Groups) -> LineMeaning:
    meaning = "The PCIe port cut off the device below it after an error that was not corrected"
    return _at_port(groups["device"], meaning, Severity.CRITICAL)


def _at_port(address: str, meaning: str, severity: Severity = Severity.WARNING) -> LineMeaning:
    return LineMeaning(
        finding=codes.PORT_ERROR,
        severity=severity,
        action=Action.INSPECT_HARDWARE,
        meaning=meaning,
        pci=pci_slot(address),
    )


def _not_recovered(groups: Groups) -> LineMeaning:
    return _at_port(groups["device"], "The device below the PCIe port did not recover after an error")


def _removed(groups: Groups) -> LineMeaning:
    what = "has no link any more" if groups["what"] == "Link Down" else "was removed or has failed"
    return _at_port(groups["device"], f"The device below the PCIe port {what}")


def _power(groups: Groups) -> LineMeaning:
    return LineMeaning(
        finding=codes.ERRORS,
        severity=Severity.WARNING,
        action=Action.REBOOT_NODE,
        meaning="The device cannot be powered up or reset, and does not answer on the PCI bus",
        pci=pci_slot(groups["device"]),
    )


def _probe(groups: Groups) -> LineMeaning:
    return LineMeaning(
        finding=codes.INIT_FAILED,
        severity=Severity.CRITICAL,
        action=Action.REBOOT_NODE,
        meaning=f"The driver could not take over the device (error -{groups['error']})",
        pci=pci_slot(groups["device"] or groups["device_since"]),
    )


def _warning(groups: Groups) -> LineMeaning:
    return LineMeaning(
        finding=codes.ERRORS,
        severity=Severity.WARNING,
        action=Action.CONTACT_SUPPORT,
        meaning=f"The kernel warns of a fault in the NVIDIA driver ({groups['module']})",
    )


_PRINTER = r"(?:(?:aer|AER): )?"
_SEVERITY = (
    r"(?P<severity>Correct(?:ed|able)|Uncorrect(?:ed|able) \((?:Non-)?Fatal\)|Uncorrect(?:ed|able)|(?:Non-)?Fatal)"
)
_DRIVER = r"nvidia(?:-nvswitch\d{0,3})?"
_FUNCTION = (
    r"[\w.]{1,200}\+0x[0-9a-f]{1,8}/0x[0-9a-f]{1,8} "
    r"\[(?P<module>nvidia(?:_uvm|_modeset|_drm|_peermem|_fs|_vgpu_vfio)?|gdrdrv)(?: [0-9a-f]{8,64})?\]"
)

LINES = (
    line_pattern("aer", ("PCIe Bus Error",), rf"{DEVICE}{_PRINTER}PCIe Bus Error: severity={_SEVERITY}", _aer),
    line_pattern(
        "aer",
        (" received",),
        rf"{DEVICE}{_PRINTER}(?:Multiple )?{_SEVERITY} error (?:message )?received(?:: | from )(?P<source>{BDF})?",
        _aer,
    ),
    line_pattern("dpc", ("DPC: ",), rf"{DEVICE}DPC: containment event", _dpc),
    # drivers/pci/pcie/err.c
    line_pattern("dpc", ("device recovery failed",), rf"{DEVICE}{_PRINTER}device recovery failed", _not_recovered),
    # drivers/pci/hotplug/pciehp_ctrl.c. "Card not present" also follows a button that a person pressed. "Link Down/Up
    # ignored" is no removal.
    line_pattern(
        "hotplug",
        ("Slot(",),
        rf"pcieport (?P<device>{BDF}): pciehp: "
        r"Slot\([\w-]{1,16}\): (?P<what>Link Down|Card not present)(?:$|[\s,])",
        _removed,
    ),
    # drivers/pci/pci.c: pci_power_up of 6.x, pci_raw_set_power_state of 5.x. The name of the driver shows that it is a
    # GPU or an NVSwitch: of other drivers (snd_hda_intel, xhci_hcd) it is another function of a display card.
    line_pattern(
        "nvrm",
        (" to D0", "giving up"),
        rf"{_DRIVER} (?P<device>{BDF}): (?:(?:Unable to|can't) change power state from "
        r"(?:D3cold to D0\b|\w{1,16} to D0, device inaccessible)|not ready \d{1,8}ms after [\w ]{1,40}; giving up)",
        _power,
    ),
    # drivers/base/dd.c, before and since 6.8
    line_pattern(
        "nvrm",
        ("probe ",),
        rf"{_DRIVER}(?:: probe of (?P<device>{BDF})| (?P<device_since>{BDF}): probe with driver {_DRIVER}) "
        r"failed with error -(?P<error>\d{1,5})",
        _probe,
    ),
    # kernel/panic.c, before and since 6.18
    line_pattern(
        "nvrm",
        ("WARNING: ",),
        rf"WARNING: (?:CPU: \d{{1,6}} PID: \d{{1,10}} at )?[\w./+-]{{1,400}}:\d{{1,7}}(?: at)? {_FUNCTION}",
        _warning,
    ),
)
