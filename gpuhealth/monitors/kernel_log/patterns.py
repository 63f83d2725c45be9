"""Kernel-log messages of the kernel itself and of network drivers that matter to a GPU node.

Every expression is anchored at the start of the kernel message, and none skips text before its fixed words: skipped
text could be text of a user. Records with such text are recognised by `user_text`, before any of these.
"""

from __future__ import annotations

from gpuhealth.kernel_log.pattern import (
    BDF,
    Groups,
    LineMeaning,
    LogPatterns,
    PartialMessage,
    line_pattern,
    match,
    number,
    pci_slot,
)
from gpuhealth.model.finding import Action, Severity
from gpuhealth.model.kernel_event import KernelEvent, KernelRecord
from gpuhealth.monitors.kernel_log import codes, disk_lines, memory_lines, oops

_INFO, _WARNING, _CRITICAL = Severity.INFO, Severity.WARNING, Severity.CRITICAL


def _hung_task(groups: Groups) -> LineMeaning:
    pid, process = number(groups["pid"]), groups["process"] or None
    meaning = f"{process} has waited in the kernel for more than {groups['seconds']} s"
    return LineMeaning(
        finding=codes.HUNG_TASK, severity=_WARNING, action=Action.NONE, meaning=meaning, pid=pid, process=process
    )


def _soft_lockup(groups: Groups) -> LineMeaning:
    pid, process = number(groups["pid"]), groups["process"] or None
    meaning = f"CPU {groups['cpu']} has been stuck in the kernel for {groups['seconds']} s"
    return LineMeaning(
        finding=codes.CPU_LOCKUP, severity=_WARNING, action=Action.NONE, meaning=meaning, pid=pid, process=process
    )


def _hard_lockup(groups: Groups) -> LineMeaning:
    meaning = f"CPU {groups['cpu']} is stuck with interrupts off"
    return LineMeaning(finding=codes.CPU_LOCKUP, severity=_CRITICAL, action=Action.REBOOT_NODE, meaning=meaning)


def _rcu_stall(_: Groups) -> LineMeaning:
    return LineMeaning(
        finding=codes.CPU_LOCKUP,
        severity=_WARNING,
        action=Action.NONE,
        meaning="A CPU has kept the kernel waiting (RCU stall)",
    )


def _oom(groups: Groups) -> LineMeaning:
    pid, process = number(groups["pid"]), groups["process"] or None
    if groups["cgroup"]:  # the limit of the program's own container: a fault of the program
        meaning = f"{process} was ended at the memory limit of its group"
        return LineMeaning(
            finding=codes.OOM, severity=_INFO, action=Action.NONE, meaning=meaning, pid=pid, process=process
        )
    meaning = f"{process} was ended because the host had run out of memory"
    return LineMeaning(
        finding=codes.OOM, severity=_WARNING, action=Action.RESTART_WORKLOAD, meaning=meaning, pid=pid, process=process
    )


def _mlx5(groups: Groups) -> LineMeaning:
    severity, meaning = (
        (_CRITICAL, "The network adapter reports a fatal error of itself")
        if groups["grave"]
        else (_WARNING, "The network adapter or its cable reports an error")
    )
    return LineMeaning(
        finding=codes.INFINIBAND_ERRORS,
        severity=severity,
        action=Action.INSPECT_HARDWARE,
        meaning=meaning,
        pci=pci_slot(groups["device"]),
    )


def _segfault(groups: Groups) -> LineMeaning:
    pid, process = number(groups["pid"]), groups["process"] or None
    meaning = f"{process} crashed in {groups['library']}" if groups["library"] else f"{process} crashed"
    return LineMeaning(
        finding=codes.SEGFAULT, severity=_INFO, action=Action.NONE, meaning=meaning, pid=pid, process=process
    )


def _link(groups: Groups) -> LineMeaning:
    name, pci = groups.get("slave") or groups["name"], pci_slot(groups.get("device"))
    finding = codes.INFINIBAND_DOWN if name.startswith("ib") else codes.NIC_DOWN
    interface = name if pci else ""  # without a device it may be one that a user made in a network namespace
    if groups["state"].lower() == "down":
        meaning = f"Link of {name} went down"
        return LineMeaning(
            finding=finding,
            severity=_WARNING,
            action=Action.INSPECT_HARDWARE,
            meaning=meaning,
            pci=pci,
            interface=interface,
        )
    return LineMeaning(
        finding=finding,
        severity=_INFO,
        action=Action.NONE,
        meaning=f"Link of {name} came up",
        pci=pci,
        interface=interface,
    )


_LINES = tuple(
    line_pattern(kind, words, expression, read)
    for kind, words, expression, read in (
        (
            "soft_lockup",
            ("hard LOCKUP",),
            r"(?:(?:NMI )?watchdog: )?Watchdog detected hard LOCKUP on cpu (?P<cpu>\d+)",
            _hard_lockup,
        ),
        (
            "soft_lockup",
            ("stall",),
            r"(?:rcu: )?INFO: rcu_\w+ (?:self-detected stall|detected (?:expedited )?stalls)",
            _rcu_stall,
        ),
        (
            "link",
            ("ink is ", "ink up", "ink Up", "ink UP", "ink down", "ink Down", "ink DOWN"),
            rf"(?:[\w-]{{1,32}}:? )?(?:(?P<device>{BDF}):? |\w+\.\w+:? )?"
            r"(?=[\w.-]*\d)(?P<name>[\w.-]{1,32}):? (?:\w{1,32}: [\w.-]{1,32} )?"
            r"(?:NIC )?[Ll]ink (?:is )?(?P<state>[Uu][Pp]|[Dd]own|DOWN)\b(?! ?(?:\[|\(\d))",
            _link,
        ),
        (
            "link",
            ("link status definitely",),
            r"(?:bonding: )?(?P<name>[\w.-]{1,32}): (?:\(slave (?P<slave>[\w.-]{1,32})\): )?"
            r"link status definitely (?P<state>up|down)",
            _link,
        ),
        (
            "mlx5",
            ("mlx5_core",),
            rf"mlx5_core (?P<device>{BDF})(?: [\w.-]{{1,32}})?: (?:[\w()\[\],.:'-]{{1,64}} ){{0,16}}?(?:"
            r"(?P<grave>device's health compromised|[Ff]atal error)|"
            r"Port module event\[error\]|[Cc]able error|insufficient power|[Hh]igh [Tt]emperature|assert_var\[\d+\]|"
            r"assert_exit_ptr|TX timeout|[Tt]imeout|syndrome|ACCESS_REG\(0x\w+\) (?:\w+\(\w+\) ){0,3}failed)",
            _mlx5,
        ),
    )
)


# Each word costs every ordinary line some time, a longer one less.
_WORDS = (
    "rror",  # [Hardware Error], I/O error, EXT4-fs error, medium error, mlx5, "Internal error" of an oops
    "mlx5_core",
    "EDAC ",
    "nvme nvme",
    "blocked ",
    "BUG",  # also of a soft lockup
    "LOCKUP",
    "[#",  # the number of an oops
    "Unable to handle kernel",
    "Kernel panic",
    "segfault",
    "ut of memory",
    "only",  # read-only, readonly
    "hut",  # shut down, shutting down
    "INFO: rcu",
    "failure",  # of memory, of a disk
    "Aborting journal",
    "nvidia",  # modules in a stack, and at an instruction pointer
    "gdrdrv",
)


LINES = (*memory_lines.LINES, *disk_lines.LINES, *_LINES)


def _read(record: KernelRecord, _driver: int | None) -> KernelEvent | PartialMessage | None:
    if event := match(oops.LINES, record):
        return oops.begun(event)
    return match(LINES, record)


PATTERNS = LogPatterns(
    words=_WORDS,
    guarded_words={"ink ": ("own", "OWN", " up", " Up", " UP")},  # each pod makes a line "link becomes ready"
    read=_read,
    user_text={"hung_task": _hung_task, "soft_lockup": _soft_lockup, "oom": _oom, "segfault": _segfault},
    after_user_text={"hung_task": oops.hung_in_driver, "soft_lockup": oops.stuck_in_driver},
)
