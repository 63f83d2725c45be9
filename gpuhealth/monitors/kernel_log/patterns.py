"""Kernel-log messages of the kernel itself and of network drivers that matter to a GPU node.

Every expression is anchored at the start of the kernel message, and none skips text before its fixed words: skipped
text could be text of a user. Records with such text are recognised by `user_text`, before any of these.
"""

from __future__ import annotations

from gpuhealth.kernel_log.pattern import BDF, Groups, LineMeaning, LogPatterns, line_pattern, match, number, pci_slot
from gpuhealth.kernel_log.user_text import BYTE, NAME_BYTES
from gpuhealth.model.finding import Action, Severity
from gpuhealth.model.kernel_event import KernelEvent, KernelRecord
from gpuhealth.monitors.kernel_log import codes

_INFO, _WARNING, _CRITICAL = Severity.INFO, Severity.WARNING, Severity.CRITICAL


def _edac(groups: Groups) -> LineMeaning:
    if groups["what"] == "UE":
        meaning = "Uncorrectable error in the host's memory"
        return LineMeaning(
            finding=codes.MEMORY_EDAC, severity=_CRITICAL, action=Action.INSPECT_HARDWARE, meaning=meaning
        )
    return LineMeaning(
        finding=codes.MEMORY_EDAC, severity=_INFO, action=Action.NONE, meaning="Corrected error in the host's memory"
    )


def _memory_failure(groups: Groups) -> LineMeaning:
    pid, process = number(groups["pid"]), groups["process"] or None
    meaning = "A page of the host's memory has failed"
    return LineMeaning(
        finding=codes.MEMORY_EDAC,
        severity=_CRITICAL,
        action=Action.INSPECT_HARDWARE,
        meaning=meaning,
        pid=pid,
        process=process,
    )


def _mce(groups: Groups) -> LineMeaning:
    if groups["logged"]:
        return LineMeaning(
            finding=codes.MCE,
            severity=_WARNING,
            action=Action.NONE,
            meaning="The processor logged machine-check events",
        )
    if groups["exception"]:
        return LineMeaning(
            finding=codes.MCE,
            severity=_CRITICAL,
            action=Action.INSPECT_HARDWARE,
            meaning="The processor raised a machine-check exception",
        )
    return LineMeaning(
        finding=codes.MCE,
        severity=_WARNING,
        action=Action.INSPECT_HARDWARE,
        meaning="The processor reported a machine check",
    )


def _ghes(groups: Groups) -> LineMeaning:
    word = groups["severity"].lower()
    meaning = f"The firmware reported a hardware error ({word})"
    if word in ("corrected", "info", "informational"):
        return LineMeaning(finding=codes.MCE, severity=_INFO, action=Action.NONE, meaning=meaning)
    severity = _CRITICAL if word in ("fatal", "panic") else _WARNING
    return LineMeaning(finding=codes.MCE, severity=severity, action=Action.INSPECT_HARDWARE, meaning=meaning)


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


def _readonly(groups: Groups) -> LineMeaning:
    meaning = f"The kernel gave up writing to the filesystem on {groups['device'] or 'a disk'} after errors"
    return LineMeaning(finding=codes.DISK_READONLY, severity=_CRITICAL, action=Action.INSPECT_HARDWARE, meaning=meaning)


def _io_error(groups: Groups) -> LineMeaning:
    meaning = f"Input or output errors of {groups['device'] or 'a disk'}"
    return LineMeaning(finding=codes.IO_ERRORS, severity=_WARNING, action=Action.INSPECT_HARDWARE, meaning=meaning)


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


_NAME = rf"(?P<process>{BYTE}{{1,{NAME_BYTES}}}?)"
_DISK = r"(?P<device>[\w.!@+-]{1,64})(?::? state \w{1,16})?"
LINES = tuple(
    line_pattern(kind, words, expression, read)
    for kind, words, expression, read in (
        (
            "edac",
            ("EDAC",),
            r"EDAC (?:\w{1,32} )?MC\d+: \d+ (?P<what>CE|UE) (?:[\w ,./()-]{1,120} )?on ",
            _edac,
        ),
        (
            "edac",
            ("Memory failure",),
            r"Memory failure: 0x[0-9a-f]+: (?:recovery action for|"
            rf"(?:Sending SIGBUS to|Killing) {_NAME}:(?P<pid>\d+) due to hardware memory corruption)",
            _memory_failure,
        ),
        (
            "mce",
            ("mce: [Hardware Error]",),
            r"mce: \[Hardware Error\]: (?:(?P<logged>Machine check events logged)|"
            r"CPU \d+: Machine Check(?P<exception> Exception)?: )",
            _mce,
        ),
        (
            "mce",
            ("[Hardware Error]",),
            r"(?:\{\d+\})?\[Hardware Error\]:\s+event severity: (?P<severity>\w+)",
            _ghes,
        ),
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
            "fs_readonly",
            ("read-only",),
            rf"(?:EXT[234]-fs|F2FS-fs|FAT-fs|JBD2?) \((?:device )?{_DISK}\): (?:error: )?"
            r"[Rr]emounting filesystem read-only",
            _readonly,
        ),
        (
            "fs_readonly",
            ("hut down", "hutting down"),
            rf"XFS \({_DISK}\): (?:Filesystem has been shut down|(?:[A-Z][\w/ -]{{1,60}}(?: \(0x[0-9a-f]{{1,8}}\))? "
            r"(?:[Dd]etected|received)(?: at [\w.+/]{1,120}(?: \[\w{1,32}\])? \([\w./-]{1,120}:\d+\))?\. {1,2})?"
            r"[Ss]hutting down filesystem)",
            _readonly,
        ),
        (
            "fs_readonly",
            ("forced readonly",),
            rf"BTRFS:?(?: \w{{1,16}})? \(device {_DISK}\): forced readonly",
            _readonly,
        ),
        ("fs_readonly", ("Aborting journal",), r"Aborting journal on device (?P<device>[\w.-]{1,64})\.", _readonly),
        (
            "io_error",
            ("O error", "medium error"),
            r"(?:(?:blk_update_request|print_req_error): )?(?:I/O error|critical medium error), dev "
            r"(?P<device>(?!fd\d|sr\d)\S{1,32}), sector ",
            _io_error,
        ),
        (
            "io_error",
            ("Buffer I/O error",),
            r"Buffer I/O error on dev(?:ice)? (?P<device>(?!fd\d|sr\d)[^\s,]{1,32})",
            _io_error,
        ),
        (
            "io_error",
            ("nvme",),
            r"nvme (?P<device>nvme\d+): (?:I/O (?:tag )?\d+ (?:\([0-9a-f]{1,8}\) )?(?:type \d+ )?"
            r"(?:opcode 0x[0-9a-f]+ )?(?:\([\w/ -]{1,40}\) )?QID \d+ timeout|controller is down; will reset|"
            r"Removing after probe failure|Device not ready; aborting)",
            _io_error,
        ),
        ("io_error", ("EXT4-fs error",), rf"EXT4-fs error \(device {_DISK}\)", _io_error),
        ("io_error", ("metadata I/O error",), rf"XFS \({_DISK}\): metadata I/O error", _io_error),
        (
            "io_error",
            ("Disk failure on",),
            r"md/raid[\w:-]+: ?Disk failure on (?P<device>\S{1,32}), disabling",
            _io_error,
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


_WORDS = (
    "rror",  # [Hardware Error], I/O error, EXT4-fs error, medium error, mlx5
    "mlx5_core",
    "ink ",  # Link is Down, link status
    "EDAC",
    "nvme",
    "blocked ",
    "lockup",
    "LOCKUP",
    "segfault",
    "process ",  # Killed process
    "ead-only",
    "eadonly",
    "hut down",
    "hutting down",
    "stall",
    "Memory failure",
    "Aborting journal",
    "Disk failure",
)


def _read(record: KernelRecord, _driver: int | None) -> KernelEvent | None:
    return match(LINES, record)


PATTERNS = LogPatterns(
    words=_WORDS,
    read=_read,
    user_text={"hung_task": _hung_task, "soft_lockup": _soft_lockup, "oom": _oom, "segfault": _segfault},
)
