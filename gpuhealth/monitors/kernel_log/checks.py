"""What the kernel log tells beside XIDs, where the line itself is all there is to know, and whether it could be read.

Lines about PCIe errors raise nothing here: the counters in /sys say more, and stay.
"""

from __future__ import annotations

from collections.abc import Iterator

from gpuhealth.kernel_log.codes import LogCode
from gpuhealth.model.code import Check, Clears, Code
from gpuhealth.model.component import NODE
from gpuhealth.model.finding import Action, Clean, Outcome, Severity
from gpuhealth.model.history import History
from gpuhealth.model.kernel_event import KernelEvent
from gpuhealth.model.missing import Missing, MissingReason
from gpuhealth.monitors.nvidia.checks.rule import known_gpus, label
from gpuhealth.monitors.nvidia.readings import GpuReadings
from gpuhealth.monitors.readings import NodeReadings
from gpuhealth.runtime.settings import Settings

_HOUR, _DAY = 3600.0, 86400.0

OVERRUN = Code(
    "agent.kmsg_overrun",
    Severity.WARNING,
    Action.NONE,
    meaning="The kernel wrote faster than the agent could read: records of the kernel log are lost.",
    advice="Find what floods the log, or boot with a larger log_buf_len.",
    clear_after=60.0,
)
UNAVAILABLE = Code(
    "agent.kmsg_unavailable",
    Severity.WARNING,
    Action.UPDATE_SOFTWARE,
    meaning="The kernel log cannot be read: XIDs come from NVML alone, without their text, and SXids not at all.",
    advice="Let the agent read /dev/kmsg: privileged, or with CAP_SYSLOG and the device mounted.",
)


def _event_code(
    name: LogCode, severity: Severity, action: Action, meaning: str, advice: str, quiet: float = 600.0
) -> Code:
    return Code(name.value, severity, action, meaning, advice, clears=Clears.EXPIRY, clear_after=quiet)


def _link_code(name: LogCode, meaning: str, advice: str) -> Code:
    """A link that went down may come up by itself: one line takes no node out of service."""
    return Code(
        name.value,
        Severity.WARNING,
        Action.INSPECT_HARDWARE,
        meaning,
        advice,
        clears=Clears.LOGGED,
        clear_after=600.0,
    )


EVENTS = (
    Code(
        LogCode.MEMORY_EDAC.value,
        Severity.CRITICAL,
        Action.INSPECT_HARDWARE,
        meaning="The host's memory had an error that could not be corrected. A corrected one is only information.",
        advice="Drain the node and replace the memory module that the line names.",
        quarantine=True,
        drain=True,
        clears=Clears.REBOOT,
    ),
    Code(
        LogCode.DISK_READONLY.value,
        Severity.CRITICAL,
        Action.INSPECT_HARDWARE,
        meaning="The kernel stopped writing to a filesystem after errors.",
        advice="Drain the node, look at its disks, repair the filesystem and reboot.",
        quarantine=True,
        drain=True,
        clears=Clears.REBOOT,
    ),
    Code(
        LogCode.DRIVER_NEEDS_REBOOT.value,
        Severity.CRITICAL,
        Action.REBOOT_NODE,
        meaning="Unified memory met an error after which the driver works again only when the node has rebooted.",
        advice="Drain the node and reboot it.",
        quarantine=True,
        drain=True,
        clears=Clears.REBOOT,
    ),
    Code(
        LogCode.DRIVER_INIT_FAILED.value,
        Severity.CRITICAL,
        Action.REBOOT_NODE,
        meaning="The driver could not initialise a GPU.",
        advice="Reboot the node; if it comes back, look at power and seating of the GPU, then replace it.",
        quarantine=True,
        clears=Clears.EXPIRY,  # the driver tries again, and says so again, whenever the GPU is opened: we do ourselves
        clear_after=600.0,
    ),
    _event_code(
        LogCode.DRIVER_CLIENT_MISMATCH,
        Severity.WARNING,
        Action.UPDATE_SOFTWARE,
        "A program came with a driver library of another version than the kernel module: it cannot use the GPUs.",
        "Rebuild the program's image without driver libraries, or restart it after a driver upgrade.",
    ),
    _event_code(
        LogCode.DRIVER_ERRORS,
        Severity.WARNING,
        Action.CONTACT_SUPPORT,
        "The driver reports failing calls to a GPU, its firmware or its NVLinks.",
        "Look for XIDs at the same time; without any, collect nvidia-bug-report.sh.",
    ),
    _event_code(
        LogCode.MCE,
        Severity.WARNING,
        Action.INSPECT_HARDWARE,
        "The processor or the firmware reported a hardware error of the host.",
        "Look at the decoded events (rasdaemon, the BMC's event log).",
        _DAY,
    ),
    _event_code(
        LogCode.HUNG_TASK,
        Severity.WARNING,
        Action.NONE,
        "A task has waited in the kernel for minutes, often for a disk, a filesystem or the GPU driver.",
        "Read the stack that follows the line; a task that hangs in the GPU driver needs a reboot.",
    ),
    _event_code(
        LogCode.CPU_LOCKUP,
        Severity.WARNING,
        Action.REBOOT_NODE,
        "A CPU was stuck in the kernel.",
        "Read the stack that follows the line; reboot the node if it goes on.",
        _HOUR,
    ),
    _event_code(
        LogCode.OOM,
        Severity.WARNING,
        Action.RESTART_WORKLOAD,
        "A process was ended for want of memory: of the host (a warning), or of its own group (information).",
        "Give programs memory limits that fit the host.",
    ),
    _event_code(
        LogCode.IO_ERRORS,
        Severity.WARNING,
        Action.INSPECT_HARDWARE,
        "A disk had input or output errors.",
        "Look at the disk's own health data (smartctl, nvme smart-log) and replace it if they go on.",
        _HOUR,
    ),
    _event_code(
        LogCode.SEGFAULT,
        Severity.INFO,
        Action.NONE,
        "A program crashed.",
        "Nothing is to be done; in a library of NVIDIA's it may explain what follows.",
    ),
    _event_code(
        LogCode.INFINIBAND_ERRORS,
        Severity.WARNING,
        Action.INSPECT_HARDWARE,
        "A network adapter of NVIDIA's (mlx5) reported an error of itself, its firmware or its cable.",
        "Look at the adapter (mlxlink, ethtool -m) and its cable; one that reports a fatal error needs a reboot.",
        _HOUR,
    ),
    _link_code(
        LogCode.INFINIBAND_DOWN,
        "The link of an InfiniBand interface went down.",
        "Look at the port (ibstat, mlxlink), its cable and the switch.",
    ),
    _link_code(
        LogCode.NIC_DOWN,
        "The link of a network interface went down.",
        "Look at the interface (ip link, ethtool), its cable and the switch.",
    ),
)
_BY_NAME = {code.name: code for code in EVENTS}
COUNTED = (LogCode.PCIE_CORRECTABLE, LogCode.PCIE_UNCORRECTABLE)
"""Codes that lines name and that the check of the counters in /sys raises: a line alone raises nothing."""
_OF_NETWORK = ("link", "mlx5")  # kinds of event whose PCI address is that of a network adapter


def judge(readings: NodeReadings, _settings: Settings, history: History) -> Iterator[Outcome]:
    """What follows from the events alone. Of the same fault in one batch the last and worst event counts."""
    events = [event for event in readings.events if event.finding in _BY_NAME]
    if not events:
        return
    gpus = {gpu.pci.partition(".")[0]: gpu for gpu in known_gpus(readings, history) if isinstance(gpu.pci, str)}
    counting: dict[tuple[str, str], KernelEvent] = {}
    for event in events:
        key = event.finding, event.interface or event.pci or ""
        if event.kind == "link":
            if event.interface or event.severity is not Severity.INFO:  # up again: but which one of several?
                counting[key] = event
        elif key not in counting or event.severity.rank >= counting[key].severity.rank:
            counting[key] = event
    for event in counting.values():
        yield _outcome(event, gpus, readings)


def _outcome(event: KernelEvent, gpus: dict[str, GpuReadings], readings: NodeReadings) -> Outcome:
    code, gpu, component, message = _BY_NAME[event.finding], None, NODE, event.meaning
    if event.kind == "link":
        component = event.interface or NODE
        if event.severity is Severity.INFO:
            return Clean(code.name, component)
    elif event.pci and event.kind in _OF_NETWORK:
        component, message = event.pci, f"{event.pci}: {event.meaning}"
    elif event.pci:
        gpu = gpus.get(event.pci) or GpuReadings(-1, pci=event.pci)
        component, message = gpu.component, f"{label(gpu)}: {event.meaning}"
    return code.found(
        gpu,
        message,
        now=event.time or readings.time,
        source="kernel log",
        line=event.line,
        severity=event.severity,
        action=event.action,
        component=component,
    )


def _run(readings: NodeReadings, settings: Settings, history: History) -> Iterator[Outcome]:
    log = readings.kernel_log
    if isinstance(log, Missing):
        yield OVERRUN.not_checked(None, log)
        yield UNAVAILABLE.not_checked(None, log)
    elif log.source == "nvml":
        yield OVERRUN.not_checked(None, Missing(MissingReason.ERROR, "the kernel log is not read"))
        yield UNAVAILABLE.found(
            None, "the kernel log cannot be read: XIDs come from NVML alone", now=readings.time, source="/dev/kmsg"
        )
    else:
        yield UNAVAILABLE.clean(None)
        if log.lost_records:
            yield OVERRUN.found(
                None,
                f"{log.lost_records} records of the kernel log were overwritten before they could be read",
                now=readings.time,
                source="/dev/kmsg",
                reading=log.lost_records,
                threshold=0,
            )
        else:
            yield OVERRUN.clean(None)
    yield from judge(readings, settings, history)


CHECK = Check((OVERRUN, UNAVAILABLE, *EVENTS), _run)
