"""Faults of the host and its network adapters that are reported in the kernel log, and gaps in the log."""

from __future__ import annotations

from gpuhealth.model.codes import Clears, define
from gpuhealth.model.finding import Action, Severity

_HOUR, _DAY = 3600.0, 86400.0

OVERRUN = define(
    "agent.kmsg_overrun",
    Severity.WARNING,
    Action.NONE,
    meaning="The kernel wrote faster than the agent could read: records of the kernel log are lost.",
    advice="Find what floods the log, or boot with a larger log_buf_len.",
    clear_after=60.0,
)
UNAVAILABLE = define(
    "agent.kmsg_unavailable",
    Severity.WARNING,
    Action.UPDATE_SOFTWARE,
    meaning="The kernel log cannot be read: XIDs come from NVML alone, without their text, and SXids not at all.",
    advice="Let the agent read /dev/kmsg: privileged, or with CAP_SYSLOG and the device mounted.",
)
NOT_READ = define(
    "agent.kmsg_not_read",
    Severity.INFO,
    Action.NONE,
    meaning="Represents the records of this boot that the kernel log no longer has, or that were not looked at.",
    advice="Faults in such records are not known: look for them in the logs that the node has kept.",
)
MEMORY_EDAC = define(
    "host.memory_edac",
    Severity.CRITICAL,
    Action.INSPECT_HARDWARE,
    meaning="The host's memory had an error that could not be corrected and from which the kernel did not recover, or"
    " many from which it did. A corrected one is only information.",
    advice="Drain the node and replace the memory module that the line names.",
    quarantine=True,
    drain=True,
    clears=Clears.REBOOT,
)
MEMORY_RECOVERED = define(
    "host.memory_recovered",
    Severity.WARNING,
    Action.NONE,
    meaning="A page of the host's memory had an error that could not be corrected, and the kernel took it out of use."
    " At most the program that used it has ended.",
    advice="Restart the program. Many such pages within a day are host.memory_edac: then replace the memory module.",
    clears=Clears.QUIET_PERIOD,
    clear_after=_DAY,
)
DISK_READONLY = define(
    "host.disk_readonly",
    Severity.CRITICAL,
    Action.INSPECT_HARDWARE,
    meaning="The kernel stopped writing to a filesystem of the node itself after errors.",
    advice="Drain the node, look at its disks, repair the filesystem and reboot.",
    quarantine=True,
    drain=True,
    clears=Clears.REBOOT,
)
MCE = define(
    "host.mce",
    Severity.WARNING,
    Action.INSPECT_HARDWARE,
    meaning="The processor or the firmware reported a hardware error of the host.",
    advice="Look at the decoded events (rasdaemon, the BMC's event log).",
    clears=Clears.QUIET_PERIOD,
    clear_after=_DAY,
)
HUNG_TASK = define(
    "host.hung_task",
    Severity.WARNING,
    Action.NONE,
    meaning="A task has waited in the kernel for minutes, often for a disk, a filesystem or the GPU driver.",
    advice="Read the stack that follows the line; a task that hangs in the GPU driver needs a reboot.",
    clears=Clears.QUIET_PERIOD,
    clear_after=600.0,
)
CPU_LOCKUP = define(
    "host.cpu_lockup",
    Severity.WARNING,
    Action.REBOOT_NODE,
    meaning="A CPU was stuck in the kernel.",
    advice="Read the stack that follows the line; reboot the node if it continues.",
    clears=Clears.QUIET_PERIOD,
    clear_after=_HOUR,
)
OOM = define(
    "host.oom",
    Severity.WARNING,
    Action.RESTART_WORKLOAD,
    meaning="A process was killed because memory ran out: on the host (a warning), or in its own cgroup (information).",
    advice="Give programs memory limits that fit the host.",
    clears=Clears.QUIET_PERIOD,
    clear_after=600.0,
)
IO_ERRORS = define(
    "host.io_errors",
    Severity.WARNING,
    Action.INSPECT_HARDWARE,
    meaning="A disk had input or output errors.",
    advice="Look at the disk's own health data (smartctl, nvme smart-log) and replace it if the errors continue.",
    clears=Clears.QUIET_PERIOD,
    clear_after=_HOUR,
)
VOLUME_ERRORS = define(
    "host.volume_errors",
    Severity.WARNING,
    Action.NONE,
    meaning="A volume of a pod, or a network block device, had errors, or its filesystem became read-only. The node's"
    " own disks are not concerned.",
    advice="Look at the storage system that provides the volume; restart the pods that use it.",
    clears=Clears.QUIET_PERIOD,
    clear_after=600.0,
)
KERNEL_OOPS = define(
    "host.kernel_oops",
    Severity.WARNING,
    Action.REBOOT_NODE,
    meaning="The kernel met an error in itself (oops, BUG, general protection fault) and ended the task that ran. It is"
    " critical within a module of the NVIDIA driver: what the task held there stays locked.",
    advice="Reboot the node when it is free, at once if programs hang; report the stack that follows the line.",
    quarantine=True,
    clears=Clears.REBOOT,
)
SEGFAULT = define(
    "host.segfault",
    Severity.INFO,
    Action.NONE,
    meaning="A program crashed.",
    advice="No action needed; a crash in an NVIDIA library may explain later errors.",
    clears=Clears.QUIET_PERIOD,
    clear_after=600.0,
)
INFINIBAND_ERRORS = define(
    "infiniband.errors",
    Severity.WARNING,
    Action.INSPECT_HARDWARE,
    meaning="An NVIDIA network adapter (mlx5) reported an error of its hardware, its firmware or its cable.",
    advice="Look at the adapter (mlxlink, ethtool -m) and its cable; one that reports a fatal error needs a reboot.",
    clears=Clears.QUIET_PERIOD,
    clear_after=_HOUR,
)
INFINIBAND_DOWN = define(
    "infiniband.down",
    Severity.WARNING,
    Action.INSPECT_HARDWARE,
    meaning="The link of an InfiniBand interface went down.",
    advice="Look at the port (ibstat, mlxlink), its cable and the switch.",
    clears=Clears.LOGGED_END,  # it may come up by itself, so one line takes no node out of service
    clear_after=600.0,
)
NIC_DOWN = define(
    "nic.down",
    Severity.WARNING,
    Action.INSPECT_HARDWARE,
    meaning="The link of a network interface went down.",
    advice="Look at the interface (ip link, ethtool), its cable and the switch.",
    clears=Clears.LOGGED_END,  # it may come up by itself, so one line takes no node out of service
    clear_after=600.0,
)

EVENTS = (
    MEMORY_EDAC,
    MEMORY_RECOVERED,
    DISK_READONLY,
    MCE,
    HUNG_TASK,
    CPU_LOCKUP,
    OOM,
    IO_ERRORS,
    VOLUME_ERRORS,
    KERNEL_OOPS,
    SEGFAULT,
    INFINIBAND_ERRORS,
    INFINIBAND_DOWN,
    NIC_DOWN,
)
