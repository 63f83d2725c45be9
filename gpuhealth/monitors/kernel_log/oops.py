"""A kernel that fails itself: oopses, and CPUs and tasks that are stuck in the NVIDIA driver.

The first line of an oops is an event. The line with the instruction pointer, some records later, says in which module
it was, and is an event of its own if that is one of the NVIDIA driver. Lists of loaded modules are no evidence.
"""

from __future__ import annotations

import re

from gpuhealth.kernel_log.pattern import Groups, LineMeaning, PartialMessage, event_of, line_pattern
from gpuhealth.model.codes import Code
from gpuhealth.model.finding import Action, Severity
from gpuhealth.model.kernel_event import KernelEvent, KernelRecord
from gpuhealth.monitors.kernel_log import codes

_DIE_WORDS = (
    "Oops|general protection fault|invalid opcode|divide error|int3|stack segment|segment not present|invalid TSS|"
    "double fault|bounds|alignment check|control protection fault|kernel stack overflow|kernel access of bad area|"
    "Kernel access of bad area|Kernel BUG|Exception in kernel mode|Machine check in kernel mode"
)


def _oops(groups: Groups) -> LineMeaning:
    if groups["panic"]:
        return LineMeaning(
            finding=codes.KERNEL_OOPS,
            severity=Severity.CRITICAL,
            action=Action.REBOOT_NODE,
            meaning="The kernel has stopped (panic)",
        )
    return LineMeaning(
        finding=codes.KERNEL_OOPS,
        severity=Severity.WARNING,
        action=Action.REBOOT_NODE,
        meaning="The kernel met an error in itself (oops) and ended the task that ran",
    )


# arch/x86/mm/fault.c and kernel/traps.c, arch/arm64/mm/fault.c and kernel/traps.c, arch/powerpc/kernel/traps.c,
# lib/bug.c, kernel/panic.c. "[#1]" counts the oopses of this boot.
LINES = (
    line_pattern(
        "oops",
        ("BUG", "[#", "Unable to handle kernel", "Kernel panic"),
        r"(?P<panic>Kernel panic - not syncing: )|"
        r"BUG: (?:kernel NULL pointer dereference, address: |unable to handle (?:kernel )?"
        r"(?:NULL pointer dereference|page fault|paging request|page fault for address)|stack guard page was hit )|"
        r"Unable to handle kernel (?:NULL pointer dereference|paging request|access|read|write|execute)[\w ]{0,60} at |"
        r"kernel BUG at [\w./-]{1,200}:\d{1,6}!|"
        rf"(?:Internal error: |Oops: |traps: PANIC: )?(?:{_DIE_WORDS}|[\w ,/-]{{1,80}}: [0-9a-f]{{4,16}})"
        r"(?:,? [\w ,:()-]{1,120}|: [\w ,:()-]{1,120})? \[#\d{1,6}\](?:$|[ \n])",
        _oops,
    ),
)

_MODULE = r"\[(?P<module>nvidia(?:_uvm|_modeset|_drm|_peermem|_fs|_vgpu_vfio)?|gdrdrv)(?: [0-9a-f]{8,64})?\]"
_FUNCTION = rf"[\w.]{{1,200}}\+0x[0-9a-f]{{1,8}}/0x[0-9a-f]{{1,8}} {_MODULE}"
_ADDRESS = r"(?:\[<[0-9a-f]{4,16}>\] {0,2}){0,2}"
# x86 of all ages, arm64, powerpc.
_POINTER = re.compile(
    r"(?:[RE]?IP(?:: | is at | {1,3})(?:[0-9a-f]{4}:)?|pc : |PC is at |NIP \[[0-9a-f]{8,16}\] )"
    rf"{_ADDRESS}{_FUNCTION}",
    re.ASCII,
)
_FRAME = re.compile(rf"\s{{0,4}}{_ADDRESS}{_FUNCTION}", re.ASCII)


def begun(event: KernelEvent) -> PartialMessage:
    """The oops whose first line is the event."""
    return PartialMessage(_oops_in_driver, event)


def _oops_in_driver(record: KernelRecord) -> KernelEvent | None:
    meaning = "The kernel met an error within the NVIDIA driver ({}): what it held stays locked"
    return _in_driver(record, _POINTER, "oops", codes.KERNEL_OOPS, Severity.CRITICAL, meaning)


def hung_in_driver(record: KernelRecord) -> KernelEvent | None:
    """The event of a line of the stack of a hung task that is in the NVIDIA driver."""
    meaning = "A task has waited in the NVIDIA driver ({}) for minutes"
    return _in_driver(record, _FRAME, "hung_task", codes.HUNG_TASK, Severity.WARNING, meaning)


def stuck_in_driver(record: KernelRecord) -> KernelEvent | None:
    """The event of the line that shows that a CPU is stuck in the NVIDIA driver."""
    meaning = "A CPU is stuck in the NVIDIA driver ({})"
    return _in_driver(record, _POINTER, "soft_lockup", codes.CPU_LOCKUP, Severity.WARNING, meaning)


def _in_driver(
    record: KernelRecord, line: re.Pattern[str], kind: str, finding: Code, severity: Severity, meaning: str
) -> KernelEvent | None:
    found = line.match(record.text)
    if found is None:
        return None
    return event_of(
        record,
        kind,
        LineMeaning(
            finding=finding,
            severity=severity,
            action=Action.REBOOT_NODE,
            meaning=meaning.format(found["module"]),
        ),
    )
