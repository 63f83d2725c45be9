"""What the kernel itself and the network drivers write to the kernel log, of those things that matter to a GPU node.

Every expression is anchored at the start of the kernel message.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeAlias

import msgspec

from gpuhealth.catalog.nvidia_lines import address
from gpuhealth.model import Action, KernelEvent, KernelRecord, Severity

_INFO, _WARNING, _CRITICAL = Severity.INFO, Severity.WARNING, Severity.CRITICAL


class Found(msgspec.Struct, frozen=True):
    """What a line says, beside the line itself."""

    finding: str
    severity: Severity
    action: Action
    meaning: str
    pci: str | None = None
    pid: int | None = None
    process: str | None = None


Groups: TypeAlias = dict[str, str]
Reader: TypeAlias = Callable[[Groups], Found | None]


def _number(text: str | None) -> int | None:
    return int(text) if text and len(text) < 12 else None


def _pci(text: str | None) -> str | None:
    parts = text.partition(".")[0].split(":") if text else []
    return address(*parts) if len(parts) == 3 else None


def _aer(g: Groups) -> Found:
    pci = _pci(g.get("source") or g["device"])
    word = g["severity"].lower()
    if word.startswith("correct"):
        return Found("pcie.aer_correctable_rate", _INFO, Action.NONE, "PCIe corrected an error", pci)
    meaning = f"PCIe error that was not corrected ({word})"
    return Found("pcie.aer_uncorrectable", _CRITICAL, Action.INSPECT_HARDWARE, meaning, pci)


def _dpc(g: Groups) -> Found:
    meaning = "The PCIe port cut off the device below it after an error that was not corrected"
    return Found("pcie.aer_uncorrectable", _CRITICAL, Action.INSPECT_HARDWARE, meaning, _pci(g["device"]))


def _edac(g: Groups) -> Found:
    if g["what"] == "UE":
        meaning = "Uncorrectable error in the host's memory"
        return Found("host.memory_edac", _CRITICAL, Action.INSPECT_HARDWARE, meaning)
    return Found("host.memory_edac", _INFO, Action.NONE, "Corrected error in the host's memory")


def _memory_failure(g: Groups) -> Found:
    pid, process = _number(g["pid"]), g["process"] or None
    meaning = "A page of the host's memory has failed"
    return Found("host.memory_edac", _CRITICAL, Action.INSPECT_HARDWARE, meaning, None, pid, process)


def _mce(g: Groups) -> Found | None:
    text = g["text"]
    if text.startswith("Machine check events logged"):
        return Found("host.mce", _WARNING, Action.NONE, "The processor logged machine-check events")
    if "Machine Check Exception" in text:
        return Found("host.mce", _CRITICAL, Action.INSPECT_HARDWARE, "The processor raised a machine-check exception")
    if "Machine Check" in text:
        return Found("host.mce", _WARNING, Action.INSPECT_HARDWARE, "The processor reported a machine check")
    return None


def _ghes(g: Groups) -> Found:
    word = g["severity"].lower()
    meaning = f"The firmware reported a hardware error ({word})"
    if word in ("corrected", "info", "informational"):
        return Found("host.mce", _INFO, Action.NONE, meaning)
    severity = _CRITICAL if word in ("fatal", "panic") else _WARNING
    return Found("host.mce", severity, Action.INSPECT_HARDWARE, meaning)


def _hung_task(g: Groups) -> Found:
    pid, process = _number(g["pid"]), g["process"] or None
    meaning = f"{process} has waited in the kernel for more than {g['seconds']} s"
    return Found("host.hung_task", _WARNING, Action.NONE, meaning, None, pid, process)


def _soft_lockup(g: Groups) -> Found:
    pid, process = _number(g["pid"]), g["process"] or None
    meaning = f"CPU {g['cpu']} has been stuck in the kernel for {g['seconds']} s"
    return Found("host.soft_lockup", _WARNING, Action.NONE, meaning, None, pid, process)


def _hard_lockup(g: Groups) -> Found:
    meaning = f"CPU {g['cpu']} is stuck with interrupts off"
    return Found("host.soft_lockup", _CRITICAL, Action.REBOOT_NODE, meaning)


def _rcu_stall(_g: Groups) -> Found:
    return Found("host.soft_lockup", _WARNING, Action.NONE, "A CPU has kept the kernel waiting (RCU stall)")


def _oom(g: Groups) -> Found:
    pid, process = _number(g["pid"]), g["process"] or None
    if g["cgroup"]:  # the limit of the program's own container: a fault of the program
        meaning = f"{process} was ended at the memory limit of its group"
        return Found("host.oom", _INFO, Action.NONE, meaning, None, pid, process)
    meaning = f"{process} was ended because the host had run out of memory"
    return Found("host.oom", _WARNING, Action.RESTART_WORKLOAD, meaning, None, pid, process)


def _readonly(g: Groups) -> Found:
    meaning = f"The kernel gave up writing to the filesystem on {g['device'] or 'a disk'} after errors"
    return Found("host.disk_readonly", _CRITICAL, Action.INSPECT_HARDWARE, meaning)


def _io_error(g: Groups) -> Found:
    meaning = f"Input or output errors of {g['device'] or 'a disk'}"
    return Found("host.io_errors", _WARNING, Action.INSPECT_HARDWARE, meaning)


def _mlx5(g: Groups) -> Found:
    pci, text = _pci(g["device"]), g["text"].lower()
    grave = "health compromised" in text or "fatal" in text
    severity, meaning = (
        (_CRITICAL, "The network adapter reports that it is unwell")
        if grave
        else (_WARNING, "The network adapter or its cable reports an error")
    )
    return Found("infiniband.errors", severity, Action.INSPECT_HARDWARE, meaning, pci)


def _segfault(g: Groups) -> Found:
    pid, process = _number(g["pid"]), g["process"] or None
    meaning = f"{process} crashed in {g['library']}" if g["library"] else f"{process} crashed"
    return Found("host.segfault", _INFO, Action.NONE, meaning, None, pid, process)


def _link(g: Groups) -> Found:
    name, pci = g.get("slave") or g["name"], _pci(g.get("device"))
    finding = "infiniband.down" if name.startswith("ib") else "nic.down"
    if g["state"].lower() == "down":
        return Found(finding, _WARNING, Action.INSPECT_HARDWARE, f"Link of {name} went down", pci)
    return Found(finding, _INFO, Action.NONE, f"Link of {name} came up", pci)


_BDF = r"[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7]"
_DEVICE = rf"(?:[\w-]{{1,32}} (?P<device>{_BDF}): )"
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
        ("edac", ("EDAC",), r"EDAC (?:\w+ )?MC\d+: \d+ (?P<what>CE|UE) ", _edac),
        (
            "edac",
            ("Memory failure",),
            r"Memory failure: 0x[0-9a-f]+: (?:recovery action for|"
            r"(?:Sending SIGBUS to|Killing) (?P<process>.{1,64}?):(?P<pid>\d+) due to hardware memory corruption)",
            _memory_failure,
        ),
        ("mce", ("mce: [Hardware Error]",), r"mce: \[Hardware Error\]: (?P<text>.*)", _mce),
        (
            "mce",
            ("[Hardware Error]",),
            r"(?:\{\d+\})?\[Hardware Error\]:\s+event severity: (?P<severity>\w+)",
            _ghes,
        ),
        (
            "hung_task",
            (" blocked ",),
            r"INFO: task (?P<process>.{1,64}):(?P<pid>\d+) blocked (?:[\w/ ]{1,40} )?for more than "
            r"(?P<seconds>\d+) sec",
            _hung_task,
        ),
        (
            "soft_lockup",
            ("soft lockup",),
            r"(?:(?:NMI )?watchdog: )?BUG: soft lockup - CPU#(?P<cpu>\d+) stuck for (?P<seconds>\d+)s!"
            r"(?: \[(?P<process>[^\]]{1,64}):(?P<pid>\d+)\])?",
            _soft_lockup,
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
            "oom",
            ("illed process", "ill process"),
            r"(?P<cgroup>Memory cgroup )?[Oo]ut of memory(?: \([^)]*\))?: Kill(?:ed)? process (?P<pid>\d+) "
            r"\((?P<process>[^)]*)\)",
            _oom,
        ),
        (
            "fs_readonly",
            ("read-only",),
            r"(?:EXT[234]-fs|F2FS-fs|FAT-fs|JBD2?) \((?:device )?(?P<device>[^):]{1,64})[^)]*\): .{0,80}"
            r"[Rr]emounting filesystem read-only",
            _readonly,
        ),
        (
            "fs_readonly",
            ("hut down", "hutting down"),
            r"XFS \((?P<device>[^)]{1,64})\): .{0,160}(?:[Ff]ilesystem has been shut down|[Ss]hutting down filesystem)",
            _readonly,
        ),
        (
            "fs_readonly",
            ("forced readonly",),
            r"BTRFS\S*(?: \w+)? \(device (?P<device>[^):]{1,64})[^)]*\)(?: in .{0,80})?: .{0,160}forced readonly",
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
            r"nvme (?P<device>nvme\d+): (?:I/O (?:tag )?\d+ .{0,80}timeout|controller is down; will reset|"
            r"Removing after probe failure|Device not ready; aborting)",
            _io_error,
        ),
        ("io_error", ("EXT4-fs error",), r"EXT4-fs error \(device (?P<device>[^):]{1,64})[^)]*\)", _io_error),
        ("io_error", ("metadata I/O error",), r"XFS \((?P<device>[^)]{1,64})\): metadata I/O error", _io_error),
        ("io_error", ("Disk failure on",), r"md/raid\S*: ?Disk failure on (?P<device>\S{1,32}), disabling", _io_error),
        (
            "segfault",
            ("segfault at ",),
            r"(?P<process>.{1,64})\[(?P<pid>\d+)\]: segfault at [0-9a-f]+ ip "
            r"(?:.{0,120}? in (?P<library>[^\s\[]{1,120}))?",
            _segfault,
        ),
        (
            "link",
            ("ink is ", "ink up", "ink Up", "ink UP", "ink down", "ink Down", "ink DOWN"),
            rf"(?:[\w-]{{1,32}}:? )?(?:(?P<device>{_BDF}):? |\w+\.\w+:? )?"
            r"(?=[\w.-]*\d)(?P<name>[\w.-]{1,32}):? (?:\w{1,32}: [\w.-]{1,32} )?"
            r"(?:NIC )?[Ll]ink (?:is )?(?P<state>[Uu][Pp]|[Dd]own|DOWN)\b",
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
            rf"mlx5_core (?P<device>{_BDF})(?: [\w.-]{{1,32}})?: (?P<text>.{{0,160}}?(?:Port module event\[error\]|"
            r"[Cc]able error|insufficient power|[Hh]igh [Tt]emperature|health compromised|[Ff]atal error|"
            r"assert_var\[\d+\]|assert_exit_ptr|TX timeout|[Tt]imeout|ACCESS_REG\(0x\w+\).{0,40}failed|syndrome).*)",
            _mlx5,
        ),
    )
)


def host_event(record: KernelRecord) -> KernelEvent | None:
    """The event of a record that the driver of NVIDIA did not write; None for one that means nothing."""
    text = record.text
    for kind, words, pattern, reader in LINES:
        for word in words:
            if word in text:
                match = pattern.match(text)
                found = reader(match.groupdict(default="")) if match else None
                if found is not None:
                    return KernelEvent(
                        kind=kind,
                        line=text,
                        finding=found.finding,
                        severity=found.severity,
                        action=found.action,
                        time=record.time,
                        pci=found.pci,
                        pid=found.pid,
                        process=found.process,
                        meaning=found.meaning,
                        sequence=record.sequence,
                    )
                break
    return None
