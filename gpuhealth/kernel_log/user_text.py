"""Kernel records with text of a user, recognised before any other pattern so that no program can forge a fault.

A program chooses its own name (up to 15 bytes, any bytes) and the names of its files (up to 255 bytes). The kernel
prints the first at the start of many records, and the second in them or, in one case, at the start. A record of such a
form is never read as anything else.

Two more rules protect forms that are not listed here. Every pattern of the catalogue begins with more fixed text than a
name can hold, and none skips text before its fixed words.
"""

from __future__ import annotations

import re

import msgspec

BYTE = r"(?>\\x[0-9a-fA-F]{2}|#[0-7]{3}|.)"
"""One byte of a name as the kernel, dmesg (`\\x1b`) or rsyslog (`#033`) writes it."""
NAME_BYTES = 15
"""The longest name of a task: TASK_COMM_LEN in the kernel's include/linux/sched.h, less the terminating zero."""
_NAME = rf"{BYTE}{{0,{NAME_BYTES}}}?"
_PROCESS = rf"(?P<process>{_NAME})"
_PID = r"(?P<pid>\d{1,10})"


class UserText(msgspec.Struct, frozen=True):
    """A record with text of a user: its form, and the named parts of the form."""

    form: str
    parts: dict[str, str]


class _Form(msgspec.Struct, frozen=True):
    name: str
    source: str  # where the kernel prints it
    words: tuple[str, ...]  # at least one is in every such record
    pattern: re.Pattern[str]


def _form(name: str, source: str, pattern: str, *words: str) -> _Form:
    return _Form(name, source, words or ("",), re.compile(pattern, re.ASCII | re.DOTALL))


# A file's name at the start: the only text of a user there that is longer than the head of an XID line.
_FILE_FIRST = (
    _form(
        "fatal_signal",
        "kernel/signal.c",
        r".{0,1200}?potentially unexpected fatal signal \d+\.?\s*$",
        "potentially unexpected fatal signal ",
    ),
    _form(
        "netfilter",
        "net/netfilter/nf_log_syslog.c",
        r".{0,160}?IN=\S* OUT=\S* (?:\S+ ){0,6}?(?:SRC=\S+ DST=\S+ LEN=|ARP HTYPE=|MACSRC=\S+ MACDST=)",
        " OUT=",
    ),
)

_EVENTS = (  # events themselves
    _form(
        "hung_task",
        "kernel/hung_task.c",
        rf"INFO: task {_PROCESS}:{_PID} (?:is )?blocked (?:[\w/ ]{{1,40}} )?for more than (?P<seconds>\d+) sec",
        "INFO: task ",
    ),
    _form(
        "soft_lockup",
        "kernel/watchdog.c",
        r"(?:(?:NMI )?watchdog: )?BUG: soft lockup - CPU#(?P<cpu>\d+) stuck for (?P<seconds>\d+)s!"
        rf"(?: \[{_PROCESS}:{_PID}\])?",
        "BUG: soft lockup - ",
    ),
    _form(
        "oom",
        "mm/oom_kill.c",
        r"(?P<cgroup>Memory cgroup )?[Oo]ut of memory(?: \(\w{1,40}\))?: Kill(?:ed)? process "
        rf"{_PID} \({_PROCESS}\)",
        "ut of memory",
    ),
)

# Fixed heads: no other pattern begins like them, nor may a new one.
_HEADS = (
    ("kernel/audit.c", r"audit: |(?:audit: )?type=\d+ audit\("),
    ("fs/exec.c, kernel/sysctl.c", r"(?:warning: )?process ['`\d]|program .{1,40} is using "),
    ("security/yama/yama_lsm.c", r"ptrace (?:attach|traceme) of "),
    ("fs/coredump.c", r"coredump: |(?:Pid|Process) \d+\("),
    ("mm/oom_kill.c", r"oom-kill:|oom_reaper: |\[ *\d+\] +\d+ +\d+ |,task=|Tasks? in /|Memory cgroup stats for "),
    ("mm/memory.c: the rest of a crash", r" ?in "),
    ("lib/dump_stack.c", r"CPU: \d+ (?:UID: \d+ )?PID: \d+ Comm: |Pid: \d+, comm: |task:"),
    ("drivers/usb/core/hub.c, devio.c", r"usb \S+: (?:Product|Manufacturer|SerialNumber|usbfs): "),
    ("drivers/input/input.c", r"input: "),
    ("fs/btrfs/volumes.c", r"BTRFS:? (?:info: )?device (?:label|fsid) "),
    ("fs/fs_context.c, fs/overlayfs", r"overlay(?:fs)?: "),
    ("kernel/capability.c, kernel/futex", r"capability: warning: |futex_wake_op: "),
    ("mm/mmap.c, kernel/cgroup", r"mmap: |cgroup: |perf: |random: "),
    ("arch/x86", r"traps: |umip: |x86/split lock detection: "),
    ("security", r"SELinux: |AppArmor: |Yama: "),
    ("arch/mips, arch/loongarch", r"do_page_fault\(\): "),
)
_FIXED_HEAD = _form(
    "fixed_head",
    ", ".join(source for source, _ in _HEADS),
    "|".join(f"(?:{head})" for _, head in _HEADS),
)

_SEGFAULT = _form(
    "segfault",
    "arch/x86/mm/fault.c, arch/powerpc/kernel/traps.c, arch/sparc/mm/fault_64.c",
    rf"{_PROCESS}\[{_PID}\]: segfault (?:\(\d+\) )?at [0-9a-f]+(?:.{{0,160}}? in (?P<library>[^\s\[]{{1,120}}))?",
    "]: segfault ",
)
_NAME_FIRST = (
    # x86 traps, bad frames and vsyscalls; arm64, riscv, powerpc "unhandled ..."; new ones beginning with "name[pid]"
    _form("task", "arch/x86/kernel/traps.c, arch/arm64/kernel/traps.c", rf"(?:traps: )?{_NAME}\[\d{{1,10}}\](?::| )"),
    # drop_caches, deprecated and obsolete system calls, "undefined instruction"
    _form("task", "fs/drop_caches.c, mm/mmap.c, arch/arm/kernel/traps.c", rf"{_NAME} \((?:pid )?\d{{1,10}}\)(?::| )"),
    _form("task", "kernel/locking/lockdep.c", rf"{_NAME}/\d{{1,10}}(?::| is )"),
    _form("oom_killer", "mm/oom_kill.c", rf"{_NAME} invoked oom-killer: ", "invoked oom-killer"),
    _form("allocation", "mm/page_alloc.c", rf"{_NAME}: .{{0,200}}?, (?:order:\d+, )?mode:0x", "mode:0x"),
    _form("unhandled", "arch/arm/mm/fault.c", rf"{_NAME}: unhandled page fault ", "unhandled page fault"),
    _form("obsolete", "net/packet/af_packet.c", rf"{_NAME} (?:uses|used|is using) (?:obsolete|deprecated|old) "),
    _form("task_dump", "kernel/sched/core.c", r".{15} [RSDTtXxZPIKWN?] +(?:running task|[0-9a-f]{1,16}) +\d+ "),
)

# The first match counts. Forms identified by their end go first, then fixed heads before a name: text after the head
# could imitate a record that begins with a name. A program whose name imitates a head only hides its own crash.
_FORMS = (*_FILE_FIRST, *_EVENTS, _FIXED_HEAD, _SEGFAULT, *_NAME_FIRST)
_CRASHES = (_FIXED_HEAD, _SEGFAULT)


def recognise(text: str) -> UserText | None:
    """The form of a record with text of a user, among all forms; None for any other record."""
    return _first(_FORMS, text)


def event_form(text: str) -> UserText | None:
    """A faster `recognise` for records whose form may be an event itself; None for most others."""
    return file_first(text) or _first(_EVENTS, text) or (_first(_CRASHES, text) if "]: segfault " in text else None)


def file_first(text: str) -> UserText | None:
    """A faster `recognise` for records whose fixed head is longer than the name of a task can be."""
    return _first(_FILE_FIRST, text) if "fatal signal" in text or " OUT=" in text else None


def _first(forms: tuple[_Form, ...], text: str) -> UserText | None:
    for form in forms:
        for word in form.words:
            if word in text:
                if match := form.pattern.match(text):
                    return UserText(form.name, match.groupdict(default=""))
                break
    return None
