"""Text of a user in the kernel log: a program's name or a file's name forges no event, whatever record carries it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import NamedTuple

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from testing.kernel_lines import LINES

from gpuhealth.kernel_log import user_text
from gpuhealth.kernel_log.escapes import unescape
from gpuhealth.kernel_log.formats import KernelLogText
from gpuhealth.model.finding import Severity
from gpuhealth.model.kernel_event import KernelEvent, KernelRecord
from gpuhealth.monitors.registry import kernel_log_parser

NAME_BYTES, FILE_BYTES = 15, 255
REGISTERS = "ip 0 sp 0 error 4"
XID = "NVRM: Xid (PCI:0000:3b:00): {}, pid=12, name={}, {}"
REGISTERS_OF_74 = "NVLink: fatal error detected on link 3(0x0, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0)"
RECOVERY = "GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)"


class Form(NamedTuple):
    """A record of the kernel with a program's name and, in some, a file's."""

    record: Callable[[str, str], str]
    kind: str = ""  # of its own event, if it is one


FORMS = {
    "segfault": Form(lambda name, file: f"{name}[12]: segfault at 0 {REGISTERS} in {file}[7f00+1000]", "segfault"),
    "segfault on a CPU": Form(
        lambda name, file: f"{name}[1]: segfault at 7f0 {REGISTERS} in {file}[7f+1] likely on CPU 3 (core 1, socket 0)",
        "segfault",
    ),
    "segfault of powerpc": Form(
        lambda name, file: f"{name}[12]: segfault (11) at 0 nip 0 lr 0 code 1 in {file}[7f00+1000]", "segfault"
    ),
    "the rest of a segfault": Form(lambda _, file: f" in {file}[7f00+1000]"),
    "bad frame": Form(lambda name, file: f"{name}[12] bad frame in sigreturn frame:0 ip:0 sp:0 orax:0 in {file}[7f+1]"),
    "trap": Form(lambda name, file: f"traps: {name}[12] trap invalid opcode ip:0 sp:0 error:0 in {file}[7f+1]"),
    "trap of old": Form(lambda name, file: f"{name}[12] trap int3 ip:0 sp:0 error:0 in {file}[7f+1]"),
    "protection": Form(lambda name, file: f"traps: {name}[12] general protection fault ip:0 sp:0 error:0 in {file}[7]"),
    "protection of old": Form(lambda name, file: f"{name}[12] general protection ip:0 sp:0 error:0 in {file}[7f+1]"),
    "vsyscall": Form(lambda name, _: f"{name}[12] vsyscall attempted with vsyscall=none ip:0 cs:33 sp:0 ax:0 si:0"),
    "umip": Form(lambda name, _: f"umip: {name}[12] ip:0 sp:0: SGDT instruction cannot be used by applications."),
    "arm64": Form(lambda name, file: f"{name}[12]: unhandled exception: DABT (lower EL), ESR 0x9, x in {file}[7f+1]"),
    "arm64 of old": Form(lambda name, file: f"{name}[12]: unhandled level 2 translation fault (11) at 0x0 in {file}"),
    "riscv": Form(lambda name, file: f"{name}[12]: unhandled signal 11 code 0x1 at 0x0 in {file}[7f+1]"),
    "arm": Form(lambda name, _: f"{name}: unhandled page fault (11) at 0x00000000, code 0x005"),
    "arm instruction": Form(lambda name, _: f"{name} (12): undefined instruction: pc=(ptrval)"),
    "fatal signal": Form(lambda name, file: f"{file}: {name}: potentially unexpected fatal signal 11."),
    "fatal signal of old": Form(lambda name, _: f"{name}/12: potentially unexpected fatal signal 11."),
    "oom": Form(lambda name, _: f"Out of memory: Killed process 12 ({name}) total-vm:1kB, anon-rss:1kB", "oom"),
    "oom of a group": Form(lambda name, _: f"Memory cgroup out of memory: Killed process 12 ({name}) total:1", "oom"),
    "oom killer": Form(lambda name, _: f"{name} invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score=0"),
    "oom table": Form(lambda name, _: f"[     12]     0    12     1000      100    57344        0           0 {name}"),
    "oom constraint": Form(
        lambda name, file: f"oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),task_memcg=/{file},task={name},pid=12"
    ),
    "oom reaper": Form(lambda name, _: f"oom_reaper: reaped process 12 ({name}), now anon-rss:0kB"),
    "allocation": Form(lambda name, _: f"{name}: page allocation failure: order:4, mode:0xcc0(GFP_KERNEL), nodemask=0"),
    "hung task": Form(lambda name, _: f"INFO: task {name}:12 blocked for more than 120 seconds.", "hung_task"),
    "hung task in I/O": Form(
        lambda name, _: f"INFO: task {name}:12 blocked in I/O wait for more than 120 seconds.", "hung_task"
    ),
    "mutex": Form(lambda name, _: f"INFO: task {name}:12 is blocked on a mutex likely owned by task {name}:13."),
    "soft lockup": Form(
        lambda name, _: f"watchdog: BUG: soft lockup - CPU#3 stuck for 22s! [{name}:12]", "soft_lockup"
    ),
    "oops": Form(lambda name, _: f"CPU: 3 PID: 12 Comm: {name} Not tainted 6.8.0 #1"),
    "task dump": Form(lambda name, _: f"task:{name:<15} state:D stack:0     pid:12"),
    "task dump of old": Form(lambda name, _: f"{name:<15} D 0000000000000000     0    12      1 0x00000000"),
    "lockdep": Form(lambda name, _: f"{name}/12 is trying to acquire lock:"),
    "drop_caches": Form(lambda name, _: f"{name} (12): drop_caches: 3"),
    "deprecated": Form(lambda name, _: f"{name} (12) uses deprecated remap_file_pages() syscall."),
    "obsolete": Form(lambda name, _: f"{name} uses obsolete (PF_INET,SOCK_PACKET)"),
    "sysctl": Form(lambda name, _: f"warning: process `{name}' used the deprecated sysctl system call with 1.2."),
    "stack": Form(lambda _, file: f"process '{file}' started with executable stack"),
    "vfs": Form(lambda name, _: f"{name}[12]: vfs: something that a program does"),
    "scsi": Form(lambda name, _: f"program {name} is using a deprecated SCSI ioctl, please convert it to SG_IO"),
    "split lock": Form(lambda name, _: f"x86/split lock detection: #AC: {name}/12 took a split_lock trap"),
    "usbfs": Form(lambda name, _: f"usb 1-1: usbfs: process 12 ({name}) did not claim interface 0 before use"),
    "usb product": Form(lambda _, file: f"usb 1-1: Product: {file}"),
    "input": Form(lambda _, file: f"input: {file} as /devices/pci0000:00/input0"),
    "ptrace": Form(lambda name, file: f'ptrace attach of "{file}"[12] was attempted by "{name}"[13]'),
    "core": Form(lambda name, _: f"coredump: 12({name}): over coredump resource limit, skipping core dump"),
    "audit": Form(lambda name, _: f'audit: type=1400 audit(1763.1:2): apparmor="DENIED" comm="{name}" pid=12'),
    "audit alone": Form(lambda name, file: f'type=1701 audit(1763.1:2): pid=12 comm="{name}" exe="{file}" sig=11'),
    "netfilter": Form(lambda name, _: f"{name}IN=eth0 OUT= MAC=00:00 SRC=1.1.1.1 DST=2.2.2.2 LEN=40 TOS=0x00 TTL=64"),
    "netfilter ARP": Form(lambda name, _: f"{name}IN=eth0 OUT= ARP HTYPE=1 PTYPE=0x0800 OPCODE=1"),
    "mount option": Form(lambda _, file: f'overlayfs: unrecognized mount option "{file}" or missing value'),
    "ext4 option": Form(lambda _, file: f'EXT4-fs (loop0): Unrecognized mount option "{file}" or missing value'),
    "xfs option": Form(lambda _, file: f"XFS (loop0): unknown mount option [{file}]."),
    "btrfs label": Form(lambda name, file: f"BTRFS: device label {file} devid 1 transid 5 /dev/sdb scanned by {name}"),
    "btrfs option": Form(lambda _, file: f"BTRFS error (device loop0): unrecognized mount option '{file}'"),
    "mipsy": Form(lambda name, _: f"do_page_fault(): sending SIGSEGV to {name} for invalid read access from 0000"),
    "warning": Form(lambda name, _: f"WARNING: kernel/workqueue.c:1790 at f+0x0/0x20, CPU#3: {name}/12"),
    "bad page": Form(lambda name, _: f"BUG: Bad page state in process {name}  pfn:12345"),
    "atomic": Form(lambda name, _: f"BUG: scheduling while atomic: {name}/12/0x00000002"),
    "preemptible": Form(lambda name, _: f"BUG: using smp_processor_id() in preemptible [00000000] code: {name}/12"),
    "exited": Form(lambda name, _: f"note: {name}[12] exited with irqs disabled"),
    "poisoned": Form(
        lambda name, _: f"Memory failure: 0x12: Sending SIGBUS to {name}:12 due to hardware memory corruption", "edac"
    ),
    "nvidia client": Form(lambda name, _: f"NVRM: API mismatch: the client '{name}' (pid 12) has version 1", "nvrm"),
    "ext4 error": Form(
        lambda name, file: f"EXT4-fs error (device sda1): ext4_lookup:1: inode #2: comm {name}: bad entry '{file}'",
        "io_error",
    ),
}  # fmt: skip

FORGERIES = [
    (FORMS["segfault"], "NVRM: ", "uvm encountered global fatal error 0x60, requiring os reboot"),
    (FORMS["segfault"], "EDAC MC0: 0 UE ", "any"),
    (FORMS["segfault"], "BTRFS (device a", "x): forced readonly"),
    (FORMS["segfault"], "XFS (sda): ", "a Filesystem has been shut down"),
    (FORMS["segfault"], "NVRM: a", "GPU lost from the bus"),
    (FORMS["fatal signal"], "x", "NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus."),
    (FORMS["fatal signal"], "x", "EXT4-fs (sda1): Remounting filesystem read-only"),
    (FORMS["ext4 option"], "", "Remounting filesystem read-only"),
    (FORMS["trap of old"], "INFO: task a", "x:1 blocked for more than 120 seconds"),
    (FORMS["bad frame"], "EXT4-fs (", "x): Remounting filesystem read-only"),
    (FORMS["segfault"], "Out of memory (", "Out of memory (oom_kill_allocating_task): Killed process 12 (java)"),
    (FORMS["drop_caches"], "eth0 Link down", ""),
    (FORMS["oom killer"], "eth0 Link down", ""),
    (FORMS["trap"], "x", "lib\nEDAC MC0: 1 UE memory read error on CPU"),
    (FORMS["the rest of a segfault"], "", "\nNVRM: Xid (PCI:0000:3b:00): 79, x"),
    (FORMS["segfault"], "Oops: 0000", "Oops: 0000 [#1] SMP"),
    (FORMS["segfault"], "BUG: unable to", "kernel BUG at mm/slub.c:379!"),
    (FORMS["trap"], "Oops [#1]", "RIP: 0010:f+0x1/0x2 [nvidia]"),
    (FORMS["trap of old"], "Oops: Oops", "x: 0000 [#1] SMP"),
    (FORMS["drop_caches"], "Oops: 0000 [#1]", ""),
    (FORMS["segfault"], "NVRM: nvAssertO", "Assertion failed: Reset required [NV_ERR_RESET_REQUIRED] (0x00000062)"),
    (FORMS["segfault"], "NVRM: k", "GSP RM heartbeat timed out"),
    (FORMS["segfault"], "NVRM: BAR1 is ", "0M @ 0x0 (PCI:0000:05:00.0)"),
    (FORMS["segfault"], "nvidia: probe o", "of 0000:05:00.0 failed with error -1"),
    (FORMS["trap"], "x", "nvidia 0000:3b:00.0: Unable to change power state from D3cold to D0"),
    (FORMS["segfault"], "Memory failure:", "0x1: recovery action for huge page: Failed"),
    (FORMS["segfault"], "WARNING: CPU: 1", "at x.c:1 f+0x1/0x2 [nvidia]"),
    (FORMS["warning"], "f+0x1 [nvidia]", ""),
    (FORMS["netfilter"], "Oops: 0000 [#1]", ""),
    (FORMS["segfault"], "pciehp: Slot(1)", "pcieport 0000:00:01.1: pciehp: Slot(0): Link Down"),
]


def fed(text: str) -> KernelEvent | None:
    """What the agent makes of a record, which the kernel escapes and the reader of /dev/kmsg takes apart."""
    raw = "".join(chr(byte) if 32 <= byte < 127 and byte != 92 else f"\\x{byte:02x}" for byte in text.encode())
    return kernel_log_parser().feed(KernelRecord(unescape(raw)))


@pytest.mark.parametrize(("form", "name", "file"), FORGERIES)
def test_forgeries(form: Form, name: str, file: str) -> None:
    """Names that make a record look like a fault of the node, as real programs have done it, change nothing."""
    assert len(name.encode()) <= NAME_BYTES
    event = fed(form.record(name, file))
    assert (event.kind if event else "") == form.kind
    assert event is None or event.severity is not Severity.CRITICAL


def _cut(text: str, size: int) -> str:
    return text.encode("utf-8", "replace")[:size].decode("utf-8", "ignore").replace("\0", "")


HEADS = [line for line, *_ in LINES]
FRAGMENTS = st.one_of(
    st.sampled_from(HEADS),
    st.sampled_from([word for line in HEADS for word in line.split(" ")]).map(lambda word: f"{word} "),
    st.sampled_from([line[start : start + 15] for line in HEADS for start in range(0, len(line), 5)]),
    st.sampled_from(
        ["\n", "\x1b", "[1]: segfault at", "(1)", ": ", "kernel: ", "[    1.000000] ", "<3>", "\\x0a", "#012", ") "]
    ),
    st.text(max_size=6),
)  # fmt: skip
NAMES = st.lists(FRAGMENTS, min_size=1, max_size=4).map(lambda parts: _cut("".join(parts), NAME_BYTES) or "x")
HEADS_OF_LINES = st.sampled_from(HEADS).map(lambda line: _cut(line, NAME_BYTES))
FILES = st.lists(FRAGMENTS, min_size=1, max_size=4).map(lambda parts: _cut("".join(parts), FILE_BYTES) or "x")


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@given(name=st.one_of(NAMES, HEADS_OF_LINES), file=FILES)
def test_no_name_makes_an_event(form: Form, name: str, file: str) -> None:
    """Whatever the names are, a record is the event of its own form, or none, and never a critical one."""
    event = fed(form.record(name, file))
    assert event is None or (event.kind == form.kind and event.severity is not Severity.CRITICAL)


def _imitates_a_head(name: str) -> bool:
    form = user_text.recognise(f"{name}[12]: x")
    return form is not None and form.form == "fixed_head"


@pytest.mark.parametrize("form", [form for form in FORMS.values() if form.kind], ids=lambda form: form.kind)
@given(name=NAMES)
def test_a_name_hides_no_event(form: Form, name: str) -> None:
    """Hung tasks, lockups, crashes and the like are events whatever the program is called."""
    event = fed(form.record(name, "x"))
    if form.kind == "segfault" and _imitates_a_head(name):
        return  # a program may hide its own crash
    assert event is not None
    assert event.kind == form.kind


ORDINARY = {code: fed(XID.format(code, "python", said)) for code, said in ((74, REGISTERS_OF_74), (154, RECOVERY))}


@given(name=st.one_of(NAMES, HEADS_OF_LINES), code=st.sampled_from([13, 48, 74, 79, 94, 154]))
@example(name="a, link 1(0x8)", code=74)
@example(name="x[1]: segfault ", code=79)
@example(name="IN= OUT= ", code=79)
def test_a_name_in_an_xid_changes_nothing(name: str, code: int) -> None:
    """The name of the process changes neither number nor address, severity or action of an XID, and hides none."""
    said = {74: REGISTERS_OF_74, 154: RECOVERY}.get(code, "GPU has fallen off the bus.")
    event, plain = fed(XID.format(code, name, said)), fed(XID.format(code, "python", said))
    assert event is not None
    assert plain is not None
    assert msgspec.structs.replace(event, line="", process="") == msgspec.structs.replace(plain, line="", process="")


@given(name=st.one_of(NAMES, HEADS_OF_LINES))
def test_real_faults_with_a_name(name: str) -> None:
    """A page of memory that failed under a program is that fault, whatever the program is called."""
    event = fed(f"Memory failure: 0x12345: Sending SIGBUS to {name}:77 due to hardware memory corruption")
    assert event is not None
    assert (event.kind, event.pid) == ("edac", 77)


@pytest.mark.parametrize("line", HEADS)
def test_real_lines_have_no_text_of_a_user(line: str) -> None:
    """No line that means something is taken for text of a user, except the forms that are events of their own."""
    form = user_text.recognise(line)
    event = fed(line)
    assert event is not None
    assert form is None or form.form == event.kind


NOT_IN_A_TEXT = {"ext4 option", "xfs option", "btrfs option", "ext4 error", "fatal signal"}
"""Forms in which a line break is not recognised: of the first four root chooses the text, who mounts; the last begins
with a file's name, so that its first line is like a record of its own. The kernel prints it only when asked to."""
STAMP = "[    1.000001] "
WRITTEN: dict[str, Callable[[str], list[str]]] = {
    "dmesg -S, console": lambda record: [STAMP + line for line in record.split("\n")],
    "dmesg": lambda record: (STAMP + record).replace("\n", "\n" + " " * len(STAMP)).split("\n"),
    "old dmesg": lambda record: (STAMP + record).split("\n"),
    "syslog": lambda record: [f"Nov 22 01:43:47 gpu kernel: {STAMP}{line}" for line in record.split("\n")],
    "syslog, escaped": lambda record: [f"Nov 22 01:43:47 gpu kernel: {STAMP}{record}".replace("\n", "#012")],
    "pdsh of dmesg": lambda record: [f"node1: {line}" for line in (STAMP + record).split("\n")],
    "grep of dmesg": lambda record: [
        f"dmesg.1:{number}:{line}" for number, line in enumerate((STAMP + record).split("\n"))
    ],
    "kubectl logs of dmesg": lambda record: [
        f"[pod/a-1/b] 2025-03-07T10:11:12.1Z {line}" for line in (STAMP + record).split("\n")
    ],
    "CRI of dmesg": lambda record: [f"2025-03-07T10:11:12.1Z stdout F {line}" for line in (STAMP + record).split("\n")],
    "docker of dmesg": lambda record: [json.dumps({"log": f"{line}\n"}) for line in (STAMP + record).split("\n")],
    "Fluent Bit": lambda record: [json.dumps({"priority": 6, "msg": record})],
    "journal": lambda record: [json.dumps({"_TRANSPORT": "kernel", "MESSAGE": record})],
    "docker of Fluent Bit": lambda record: [json.dumps({"log": json.dumps({"msg": STAMP + record})})],
    "dmesg, escaped": lambda record: [STAMP + record.replace("\n", "\\x0a").replace("\x1b", "\\x1b")],
}


@pytest.mark.parametrize("form", [form for key, form in FORMS.items() if key not in NOT_IN_A_TEXT])
@given(written=st.sampled_from(sorted(WRITTEN)), name=st.one_of(NAMES, HEADS_OF_LINES), file=FILES, line=HEADS_OF_LINES)
@example(written="dmesg", name="x\n", file="lib\n", line=HEADS[0])
@example(written="dmesg", name="x", file="lib\n[    2.000001] ", line=HEADS[0])
@example(written="dmesg -S, console", name="x", file="lib\n[    2.000001] ", line=HEADS[0])
@example(written="kubectl logs of dmesg", name="x\n", file="lib\n", line=HEADS[0])
@example(written="docker of dmesg", name="x", file="lib\n[    1.000001] ", line=HEADS[0])
@example(written="CRI of dmesg", name="x", file="lib\nMar  7 10:11:12 h kernel: ", line=HEADS[0])
@example(written="grep of dmesg", name="x", file="lib\r", line=HEADS[0])
@example(written="Fluent Bit", name="x", file='lib\n{"msg":"', line=HEADS[0])
@example(written="dmesg -S, console", name="x", file="lib\nEDAC MC0: 1 UE memory read error on CPU", line="")
@example(written="CRI of dmesg", name="Oops: 0000 [#1]", file="lib", line="")
def test_no_name_makes_an_event_in_a_text(form: Form, written: str, name: str, file: str, line: str) -> None:
    """In a log where a line break in a name begins a line, that line is no event of its own, and joins no other."""
    lines = WRITTEN[written](form.record(name, f"{file}{line}"))
    found = list(KernelLogText(kernel_log_parser()).events(lines))
    assert {each.event.kind for each in found} <= {form.kind}
    assert Severity.CRITICAL not in {each.event.severity for each in found}


@pytest.mark.parametrize(
    "lines",
    [
        ["x[1]: segfault at 0 ip 0 sp 0 error 4 in x[7f+1]", HEADS[0]],
        ["[    1.000001] traps: x[1] trap int3 ip:0 sp:0 error:0 in x[7f+1]", f"[    1.000002] {HEADS[0]}"],
        ["Nov 22 01:43:47 gpu kernel: x[1]: segfault at 0 ip 0 sp 0", f"Nov 22 01:43:47 gpu kernel: {HEADS[0]}"],
        ["[   1234]     0  1234     1000      100    57344        0             0 python", HEADS[0]],
    ],
    ids=["bare", "another time", "no kernel time", "bare table"],
)
def test_a_record_after_a_crash_counts(lines: list[str]) -> None:
    """A fault after a crash, of another time or in a log without exact times, is not lost."""
    assert list(KernelLogText(kernel_log_parser()).events(lines))[-1].event.finding == "xid.79"
