"""What the kernel log tells beside XIDs, where the line itself is all there is to know, and whether it could be read.

Lines about PCIe errors and network links are not judged here: the counters and states in /sys say more, and stay.
"""

from __future__ import annotations

from collections.abc import Iterator

from gpuhealth.catalog import nvidia_lines
from gpuhealth.checks.code import Check, Clears, Code
from gpuhealth.checks.history import History
from gpuhealth.checks.rule import known_gpus, label
from gpuhealth.config import Settings
from gpuhealth.model import Action, KernelEvent, Missing, MissingReason, Outcome, Severity
from gpuhealth.readings import GpuReadings, NodeReadings

_HOUR, _DAY = 3600.0, 86400.0

OVERRUN = Code(
    "kmsg.overrun",
    Severity.WARNING,
    Action.NONE,
    meaning="The kernel wrote faster than the agent could read: records of the kernel log are lost.",
    advice="Find what floods the log, or boot with a larger log_buf_len.",
    clear_after=60.0,
)
UNAVAILABLE = Code(
    "kmsg.unavailable",
    Severity.WARNING,
    Action.UPDATE_SOFTWARE,
    meaning="The kernel log cannot be read: XIDs come from NVML alone, without their text, and SXids not at all.",
    advice="Let the agent read /dev/kmsg: privileged, or with CAP_SYSLOG and the device mounted.",
)


def _event_code(name: str, severity: Severity, action: Action, meaning: str, advice: str, quiet: float = 600.0) -> Code:
    return Code(name, severity, action, meaning, advice, clears=Clears.EXPIRY, clear_after=quiet)


EVENTS = (
    Code(
        "host.memory_edac",
        Severity.CRITICAL,
        Action.INSPECT_HARDWARE,
        meaning="The host's memory had an error that could not be corrected. A corrected one is only information.",
        advice="Drain the node and replace the memory module that the line names.",
        quarantine=True,
        drain=True,
        clears=Clears.REBOOT,
    ),
    Code(
        "host.disk_readonly",
        Severity.CRITICAL,
        Action.INSPECT_HARDWARE,
        meaning="The kernel stopped writing to a filesystem after errors.",
        advice="Drain the node, look at its disks, repair the filesystem and reboot.",
        quarantine=True,
        drain=True,
        clears=Clears.REBOOT,
    ),
    Code(
        nvidia_lines.NEEDS_REBOOT,
        Severity.CRITICAL,
        Action.REBOOT_NODE,
        meaning="Unified memory met an error after which the driver works again only when the node has rebooted.",
        advice="Drain the node and reboot it.",
        quarantine=True,
        drain=True,
        clears=Clears.REBOOT,
    ),
    Code(
        nvidia_lines.INIT_FAILED,
        Severity.CRITICAL,
        Action.REBOOT_NODE,
        meaning="The driver could not initialise a GPU.",
        advice="Reboot the node; if it comes back, look at power and seating of the GPU, then replace it.",
        quarantine=True,
        clears=Clears.EXPIRY,  # the driver tries again, and says so again, whenever the GPU is opened: we do ourselves
        clear_after=600.0,
    ),
    _event_code(
        nvidia_lines.CLIENT_MISMATCH,
        Severity.WARNING,
        Action.UPDATE_SOFTWARE,
        "A program came with a driver library of another version than the kernel module: it cannot use the GPUs.",
        "Rebuild the program's image without driver libraries, or restart it after a driver upgrade.",
    ),
    _event_code(
        nvidia_lines.ERRORS,
        Severity.WARNING,
        Action.CONTACT_SUPPORT,
        "The driver reports failing calls to a GPU, its firmware or its NVLinks.",
        "Look for XIDs at the same time; without any, collect nvidia-bug-report.sh.",
    ),
    _event_code(
        "host.mce",
        Severity.WARNING,
        Action.INSPECT_HARDWARE,
        "The processor or the firmware reported a hardware error of the host.",
        "Look at the decoded events (rasdaemon, the BMC's event log).",
        _DAY,
    ),
    _event_code(
        "host.hung_task",
        Severity.WARNING,
        Action.NONE,
        "A task has waited in the kernel for minutes, often for a disk, a filesystem or the GPU driver.",
        "Read the stack that follows the line; a task that hangs in the GPU driver needs a reboot.",
    ),
    _event_code(
        "host.soft_lockup",
        Severity.WARNING,
        Action.REBOOT_NODE,
        "A CPU was stuck in the kernel.",
        "Read the stack that follows the line; reboot the node if it goes on.",
        _HOUR,
    ),
    _event_code(
        "host.oom",
        Severity.WARNING,
        Action.RESTART_WORKLOAD,
        "A process was ended for want of memory: of the host (a warning), or of its own group (information).",
        "Give programs memory limits that fit the host.",
    ),
    _event_code(
        "host.io_errors",
        Severity.WARNING,
        Action.INSPECT_HARDWARE,
        "A disk had input or output errors.",
        "Look at the disk's own health data (smartctl, nvme smart-log) and replace it if they go on.",
        _HOUR,
    ),
    _event_code(
        "host.segfault",
        Severity.INFO,
        Action.NONE,
        "A program crashed.",
        "Nothing is to be done; in a library of NVIDIA's it may explain what follows.",
    ),
)
_BY_NAME = {code.name: code for code in EVENTS}


def judge(readings: NodeReadings, _settings: Settings, history: History) -> Iterator[Outcome]:
    """What follows from the events alone. Of the same fault in one batch the last and worst one speaks."""
    events = [event for event in readings.events if event.finding in _BY_NAME]
    if not events:
        return
    gpus = {gpu.pci.partition(".")[0]: gpu for gpu in known_gpus(readings, history) if isinstance(gpu.pci, str)}
    worst: dict[tuple[str, str], KernelEvent] = {}
    for event in events:
        key = event.finding, event.pci or ""
        if key not in worst or event.severity.rank >= worst[key].severity.rank:
            worst[key] = event
    for event in worst.values():
        gpu = gpus.get(event.pci) or GpuReadings(-1, pci=event.pci) if event.pci else None
        yield _BY_NAME[event.finding].found(
            gpu,
            f"{label(gpu)}: {event.meaning}" if gpu else event.meaning,
            now=event.time or readings.time,
            source="kernel log",
            line=event.line,
            severity=event.severity,
            action=event.action,
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
