"""What the kernel itself and the network drivers write to the kernel log, of those things that matter to a GPU node.

Every expression is anchored at the start of the kernel message, and none skips text before the words that count:
what it skips could be text of a user. Records with such text are recognised by `user_text`, before any of these.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeAlias

import msgspec

from gpuhealth.kernel_log.codes import LogCode
from gpuhealth.kernel_log.user_text import BYTE, NAME_BYTES, UserText
from gpuhealth.model.finding import Action, Severity
from gpuhealth.model.kernel_event import KernelEvent, KernelRecord
from gpuhealth.monitors.nvidia.catalog.log_lines import address

_INFO, _WARNING, _CRITICAL = Severity.INFO, Severity.WARNING, Severity.CRITICAL


class Found(msgspec.Struct, frozen=True):
    """What a line says, beside the line itself."""

    finding: LogCode
    severity: Severity
    action: Action
    meaning: str
    pci: str | None = None
    pid: int | None = None
    process: str | None = None
    interface: str = ""  # the network interface, where the line names its device too


Groups: TypeAlias = dict[str, str]
Reader: TypeAlias = Callable[[Groups], Found]


def _number(text: str | None) -> int | None:
    return int(text) if text and len(text) < 12 else None


def _pci(text: str | None) -> str | None:
    parts = text.partition(".")[0].split(":") if text else []
    return address(*parts) if len(parts) == 3 else None


def _aer(g: Groups) -> Found:
    pci = _pci(g.get("source") or g["device"])
    word = g["severity"].lower()
    if word.startswith("correct"):
        return Found(LogCode.PCIE_CORRECTABLE, _INFO, Action.NONE, "PCIe corrected an error", pci)
    meaning = f"PCIe error that was not corrected ({word})"
    return Found(LogCode.PCIE_UNCORRECTABLE, _CRITICAL, Action.INSPECT_HARDWARE, meaning, pci)


def _dpc(g: Groups) -> Found:
    meaning = "The PCIe port cut off the device below it after an error that was not corrected"
    return Found(LogCode.PCIE_UNCORRECTABLE, _CRITICAL, Action.INSPECT_HARDWARE, meaning, _pci(g["device"]))


def _edac(g: Groups) -> Found:
    if g["what"] == "UE":
        meaning = "Uncorrectable error in the host's memory"
        return Found(LogCode.MEMORY_EDAC, _CRITICAL, Action.INSPECT_HARDWARE, meaning)
    return Found(LogCode.MEMORY_EDAC, _INFO, Action.NONE, "Corrected error in the host's memory")


def _memory_failure(g: Groups) -> Found:
    pid, process = _number(g["pid"]), g["process"] or None
    meaning = "A page of the host's memory has failed"
    return Found(LogCode.MEMORY_EDAC, _CRITICAL, Action.INSPECT_HARDWARE, meaning, None, pid, process)


def _mce(g: Groups) -> Found:
    if g["logged"]:
        return Found(LogCode.MCE, _WARNING, Action.NONE, "The processor logged machine-check events")
    if g["exception"]:
        return Found(LogCode.MCE, _CRITICAL, Action.INSPECT_HARDWARE, "The processor raised a machine-check exception")
    return Found(LogCode.MCE, _WARNING, Action.INSPECT_HARDWARE, "The processor reported a machine check")


def _ghes(g: Groups) -> Found:
    word = g["severity"].lower()
    meaning = f"The firmware reported a hardware error ({word})"
    if word in ("corrected", "info", "informational"):
        return Found(LogCode.MCE, _INFO, Action.NONE, meaning)
    severity = _CRITICAL if word in ("fatal", "panic") else _WARNING
    return Found(LogCode.MCE, severity, Action.INSPECT_HARDWARE, meaning)


def _hung_task(g: Groups) -> Found:
    pid, process = _number(g["pid"]), g["process"] or None
    meaning = f"{process} has waited in the kernel for more than {g['seconds']} s"
    return Found(LogCode.HUNG_TASK, _WARNING, Action.NONE, meaning, None, pid, process)


def _soft_lockup(g: Groups) -> Found:
    pid, process = _number(g["pid"]), g["process"] or None
    meaning = f"CPU {g['cpu']} has been stuck in the kernel for {g['seconds']} s"
    return Found(LogCode.CPU_LOCKUP, _WARNING, Action.NONE, meaning, None, pid, process)


def _hard_lockup(g: Groups) -> Found:
    meaning = f"CPU {g['cpu']} is stuck with interrupts off"
    return Found(LogCode.CPU_LOCKUP, _CRITICAL, Action.REBOOT_NODE, meaning)


def _rcu_stall(_g: Groups) -> Found:
    return Found(LogCode.CPU_LOCKUP, _WARNING, Action.NONE, "A CPU has kept the kernel waiting (RCU stall)")


def _oom(g: Groups) -> Found:
    pid, process = _number(g["pid"]), g["process"] or None
    if g["cgroup"]:  # the limit of the program's own container: a fault of the program
        meaning = f"{process} was ended at the memory limit of its group"
        return Found(LogCode.OOM, _INFO, Action.NONE, meaning, None, pid, process)
    meaning = f"{process} was ended because the host had run out of memory"
    return Found(LogCode.OOM, _WARNING, Action.RESTART_WORKLOAD, meaning, None, pid, process)


def _readonly(g: Groups) -> Found:
    meaning = f"The kernel gave up writing to the filesystem on {g['device'] or 'a disk'} after errors"
    return Found(LogCode.DISK_READONLY, _CRITICAL, Action.INSPECT_HARDWARE, meaning)


def _io_error(g: Groups) -> Found:
    meaning = f"Input or output errors of {g['device'] or 'a disk'}"
    return Found(LogCode.IO_ERRORS, _WARNING, Action.INSPECT_HARDWARE, meaning)


def _mlx5(g: Groups) -> Found:
    severity, meaning = (
        (_CRITICAL, "The network adapter reports a fatal error of itself")
        if g["grave"]
        else (_WARNING, "The network adapter or its cable reports an error")
    )
    return Found(LogCode.INFINIBAND_ERRORS, severity, Action.INSPECT_HARDWARE, meaning, _pci(g["device"]))


def _segfault(g: Groups) -> Found:
    pid, process = _number(g["pid"]), g["process"] or None
    meaning = f"{process} crashed in {g['library']}" if g["library"] else f"{process} crashed"
    return Found(LogCode.SEGFAULT, _INFO, Action.NONE, meaning, None, pid, process)


def _link(g: Groups) -> Found:
    name, pci = g.get("slave") or g["name"], _pci(g.get("device"))
    finding = LogCode.INFINIBAND_DOWN if name.startswith("ib") else LogCode.NIC_DOWN
    interface = name if pci else ""  # without a device it may be one that a user made in a network namespace
    if g["state"].lower() == "down":
        meaning = f"Link of {name} went down"
        return Found(finding, _WARNING, Action.INSPECT_HARDWARE, meaning, pci, interface=interface)
    return Found(finding, _INFO, Action.NONE, f"Link of {name} came up", pci, interface=interface)


_BDF = r"[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7]"
_DEVICE = rf"(?:[\w-]{{1,32}} (?P<device>{_BDF}): )"
_NAME = rf"(?P<process>{BYTE}{{1,{NAME_BYTES}}}?)"
_DISK = r"(?P<device>[\w.!@+-]{1,64})(?::? state \w{1,16})?"
_PRINTER = r"(?:(?:aer|AER): )?"
_SEVERITY = (
    r"(?P<severity>Correct(?:ed|able)|Uncorrect(?:ed|able) \((?:Non-)?Fatal\)|Uncorrect(?:ed|able)|(?:Non-)?Fatal)"
)

# kind, words of which one is in every such line, expression, reader. The first that fits counts.
LINES: tuple[tuple[str, tuple[str, ...], re.Pattern[str], Reader], ...] = tuple(
    (kind, words, re.compile(pattern, re.ASCII | re.DOTALL), reader)
    for kind, words, pattern, reader in (
        (
            "aer",
            ("PCIe Bus Error",),
            rf"{_DEVICE}{_PRINTER}PCIe Bus Error: severity={_SEVERITY}",
            _aer,
        ),
        (
            "aer",
            (" received",),
            rf"{_DEVICE}{_PRINTER}(?:Multiple )?{_SEVERITY} error (?:message )?received(?:: | from )"
            rf"(?P<source>{_BDF})?",
            _aer,
        ),
        ("aer", ("DPC: ",), rf"{_DEVICE}DPC: containment event", _dpc),
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
            rf"(?:[\w-]{{1,32}}:? )?(?:(?P<device>{_BDF}):? |\w+\.\w+:? )?"
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
            rf"mlx5_core (?P<device>{_BDF})(?: [\w.-]{{1,32}})?: (?:[\w()\[\],.:'-]{{1,64}} ){{0,16}}?(?:"
            r"(?P<grave>device's health compromised|[Ff]atal error)|"
            r"Port module event\[error\]|[Cc]able error|insufficient power|[Hh]igh [Tt]emperature|assert_var\[\d+\]|"
            r"assert_exit_ptr|TX timeout|[Tt]imeout|syndrome|ACCESS_REG\(0x\w+\) (?:\w+\(\w+\) ){0,3}failed)",
            _mlx5,
        ),
    )
)


_OF_USER_TEXT: dict[str, Reader] = {
    "hung_task": _hung_task,
    "soft_lockup": _soft_lockup,
    "oom": _oom,
    "segfault": _segfault,
}


def user_event(record: KernelRecord, found: UserText) -> KernelEvent | None:
    """The event of a record with text of a user: that of its form, or none."""
    reader = _OF_USER_TEXT.get(found.form)
    return _event(record, found.form, reader(found.parts)) if reader else None


def host_event(record: KernelRecord) -> KernelEvent | None:
    """The event of a record that is not NVIDIA's and has no text of a user; None for one that means nothing."""
    text = record.text
    for kind, words, pattern, reader in LINES:
        for word in words:
            if word in text:
                if match := pattern.match(text):
                    return _event(record, kind, reader(match.groupdict(default="")))
                break
    return None


def _event(record: KernelRecord, kind: str, found: Found) -> KernelEvent:
    return KernelEvent(
        kind=kind,
        line=record.text,
        finding=found.finding.value,
        severity=found.severity,
        action=found.action,
        time=record.time,
        pci=found.pci,
        pid=found.pid,
        process=found.process,
        interface=found.interface,
        meaning=found.meaning,
        sequence=record.sequence,
    )
