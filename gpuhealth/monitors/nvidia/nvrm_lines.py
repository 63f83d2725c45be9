"""Kernel-log messages of the NVIDIA driver other than XIDs and SXids.

Sources are NVIDIA's open-gpu-kernel-modules, by file below src/nvidia/src/kernel or the folder that is named, and logs
in its public issues for what the closed modules print.
"""

from __future__ import annotations

import re
from functools import partial

import msgspec

from gpuhealth.kernel_log.pattern import PartialMessage
from gpuhealth.model.codes import Code
from gpuhealth.model.finding import Action, Severity
from gpuhealth.model.kernel_event import KernelEvent, KernelRecord
from gpuhealth.model.pci import PciSlot, slot
from gpuhealth.monitors.nvidia.catalog import xid
from gpuhealth.monitors.nvidia.checks import log_events as codes

PCI = r"(?:([0-9a-fA-F]{4,8}):)?([0-9a-fA-F]{2}):([0-9a-fA-F]{2})(?:\.[0-7])?"
"""A PCI address as the driver prints it; three groups."""

# Fixed text of the driver: without a bracket, which the kernel prints after a program's name, and without quotes.
_WORDS = r"(?:[\w.,:=!'/%-]{1,80} ){0,24}?"
_HEAD = re.compile(r"NVRM:? ")  # the first open drivers printed no colon before the name of a function
_OF_GPU = re.compile(rf"GPU (?:at )?(?:PCI:)?{PCI}: ", re.ASCII)


class _Line(msgspec.Struct, frozen=True):
    """One form of message, without its head; its groups, if any, are a PCI address."""

    pattern: re.Pattern[str]
    finding: Code
    severity: Severity
    action: Action
    meaning: str


def _line(finding: Code, action: Action, meaning: str, pattern: str, flags: int = 0) -> _Line:
    return _Line(re.compile(pattern, re.ASCII | flags), finding, finding.severity, action, meaning)


def _status(words: str) -> str:
    """A message of nvAssert or nvCheck with one of these words of common/sdk/nvidia/inc/nvstatuscodes.h."""
    return (
        r"(?:GPU\d+ )?(?:\w{1,64}: )?(?:(?:Assertion|Check) failed: )?"
        rf"[\w ,./'()-]{{0,120}}\[NV_ERR_(?:{words})\]"
    )


def _rpc_status(numbers: str) -> str:
    """A call to the GPU's system processor that failed with one of these status numbers (vgpu/rpc.c)."""
    return (
        r"(?:GPU\d+ )?(?:\w{1,64}: )?(?:rpcSendMessage failed with|"
        r"\w{1,64} failed: (?:\w{1,32}=0x[0-9a-f]{1,16}; ){0,12})"
        rf" ?status[ =]0x0{{0,7}}(?:{numbers})\b"
    )


_FAILED_INIT = r"(?:RmInitAdapter failed|rm_init_adapter failed|The NVIDIA probe routine failed)"
LINES = (
    _line(codes.INIT_FAILED, Action.REBOOT_NODE, "The driver could not initialise a GPU", _FAILED_INIT),
    _line(
        codes.INIT_FAILED,
        Action.REBOOT_NODE,
        "The driver could not initialise any GPU",
        r"None of the NVIDIA (?:devices|graphics adapters) were initialized",
    ),
    _line(  # kernel-open/nvidia/nv-pci.c
        codes.INIT_FAILED,
        Action.REBOOT_NODE,
        "The firmware or the virtual machine gave a GPU no room in the address space (BAR)",
        r"(?:This PCI I/O region assigned to your NVIDIA device is invalid:\s+(?:NVRM:? )?)?"
        rf"BAR\d is \d{{1,12}}M @ 0x[0-9a-f]{{1,16}} \(PCI:(?:{PCI})?",
    ),
    _line(
        codes.CLIENT_MISMATCH,
        Action.UPDATE_SOFTWARE,
        "A program came with a driver library of another version than the kernel module",
        r"API mismatch: ",
    ),
    _line(
        codes.NEEDS_REBOOT,
        Action.REBOOT_NODE,
        "Unified memory met an error that only a reboot ends",
        r"(?:GPU\d+ )?(?:\w{1,64}: )?uvm encountered global fatal error 0x[0-9a-f]+, requiring os reboot",
    ),
    _line(  # kernel-open/nvidia/nv-pci.c
        codes.ERRORS,
        Action.REBOOT_NODE,
        "A GPU was removed while programs used it",
        rf"Attempting to remove (?:device {PCI}|minor device \d+) with non-zero usage count!",
    ),
    _line(
        codes.ERRORS,
        Action.REBOOT_NODE,
        "The driver's calls to a GPU fail: it is lost",
        rf"{_status('GPU_IS_LOST|GPU_NOT_FULL_POWER')}|{_WORDS}GPU lost from the bus|{_rpc_status('f|11')}"
        rf"|{_WORDS}(?:Assertion|Check) failed: [\w ()=|&!<>,.-]{{0,200}}NV_ERR_GPU_IS_LOST",
        re.IGNORECASE,
    ),
    _line(
        codes.ERRORS,
        Action.INSPECT_HARDWARE,
        "A GPU has too little power",
        rf"{_status('INSUFFICIENT_POWER')}|{_rpc_status('1c')}",
        re.IGNORECASE,
    ),
    _line(
        codes.ERRORS,
        Action.RESET_GPU,
        "The driver's calls to a GPU fail until it is reset",
        _status("RESET_REQUIRED|GPU_IN_FULLCHIP_RESET|RISCV_ERROR|FLCN_ERROR|FATAL_ERROR|GPU_MEMORY_ONLINING_FAILURE")
        + f"|{_rpc_status('10|62|70|71|79')}",
        re.IGNORECASE,
    ),
    _line(  # gpu/gsp/kernel_gsp.c: _kgspIsHeartbeatTimedOut, _kgspRpcRecvPoll, _kgspLogRpcSanityCheckFailure …
        codes.ERRORS,
        Action.RESET_GPU,
        "The GPU's system processor (GSP) does not answer",
        rf"{_WORDS}(?:heartbeat timed ?out|(?:Timeout|Timed out)(?: after \d{{1,9}}s)?(?: of)? waiting for RPC\b"
        r"|sanity check failed 0x[0-9a-f]{1,8} waiting for RPC|\*{3,} ?GSP(?:-CrashCat Report| Timeout| Failure)\b)",
        re.IGNORECASE,
    ),
    _line(
        codes.ERRORS,
        Action.RESET_GPU,
        "The GPU's system processor (GSP) has failed so often that the driver reports no more",
        rf"Rate limiting GSP RPC error prints for GPU at PCI:{PCI}",
    ),
    _line(  # gpu/fsp/kern_fsp.c and arch/*, gpu/gsp/arch/*, gpu/sec2: a GPU that does not boot
        codes.ERRORS,
        Action.RESET_GPU,
        "The GPU's processors (FSP, SEC2, GSP) do not boot",
        rf"{_WORDS}(?:(?:FSP|SEC2) (?:command|secure boot partition) timed out"
        r"|Timed out waiting for (?:FSP|SEC2)\b|(?:Timeout|Error status 0x[0-9a-f]{1,8}) while polling for FSP boot"
        r"|(?:FSP|SEC2) (?:secure boot GSP prechecks|boot cmds) failed|FSP response reported error"
        r"|Fatal GSP-FMC Error|GSP-FMC reported an error while attempting to boot"
        r"|unexpected WPR2 already up|\(the GPU (?:is likely|may be) in a bad state"
        r"|failed to wait for GFW.?boot|GSP failed to halt|Timeout waiting for Falcon to halt"
        r"|cannot (?:initialize GSP firmware RM|bootstrap riscv/gsp)|failed to execute (?:FWSEC|Booter))",
        re.IGNORECASE,
    ),
    _line(
        codes.ERRORS,
        Action.CONTACT_SUPPORT,
        "The driver's calls to the GPU or its firmware fail",
        rf"(?:{_status('TIMEOUT|NVLINK_FABRIC_FAILURE|MEMORY_TRAINING_FAILED|SECURE_BOOT_FAILED')}"
        rf"|{_WORDS}(?:Rpc[A-Z]\w+ {_WORDS}timed out|rpcSendMessage failed|rpcRecvPoll {_WORDS}timed? ?out"
        r"|GPU is probably locked))",
        re.IGNORECASE,
    ),
    _line(
        codes.ERRORS,
        Action.CONTACT_SUPPORT,
        "The driver could not set up NVLink",
        rf"(?:GPU\d+ )?knvlink\w{{1,64}}: {_WORDS}fail",
        re.IGNORECASE,
    ),
)

# kernel-open/nvidia/linux_nvswitch.c and common/nvlink: fabric manager is of another version.
_FABRIC_MISMATCH = re.compile(
    r"nvidia-nv(?:switch|link)\d*: (?:\w{1,64}: )?version mismatch, kernel version ", re.ASCII | re.IGNORECASE
)
_NVLINK = re.compile(
    rf"(?:nvidia-nvlink\d*: {_WORDS}|nvidia-nvswitch\d+: [^\"'\n]{{0,200}}?)(?:fail|timed out|error)", re.IGNORECASE
)

# gpu/gsp/kernel_gsp.c: the firmware file is missing, or of another version than the driver.
_FIRMWARE = re.compile(
    r"(?:GPU\d+ )?(?:\w{1,64}: )?(?:GSP firmware image version mismatch|No firmware image found)", re.ASCII
)
_FAILED_INIT_OF = re.compile(rf"NVRM:? (?:GPU (?:at )?(?:PCI:)?{PCI}: )?{_FAILED_INIT}", re.ASCII)
_FIRMWARE_MEANING = "A GPU cannot start: its firmware (gsp_*.bin) is missing, or of another version than the driver"

# A message of several lines that begins with the address of a GPU.
_GPU_HEAD = re.compile(rf"NVRM: The NVIDIA (?:\w{{1,32}} )?GPU {PCI}", re.ASCII)
_BREAK = r"\s+(?:NVRM: )?"
_INSTALLED = rf"{_BREAK}\(PCI ID: [0-9a-f:]{{3,9}}\){_BREAK}installed{_BREAK}in this(?: vGPU host)?{_BREAK}system"
_LOST_WHOLE = re.compile(rf"{_GPU_HEAD.pattern}{_INSTALLED} has{_BREAK}fallen off the bus", re.ASCII | re.IGNORECASE)
_LOST_TAIL = re.compile(r"\s*(?:NVRM: )?(?:system has )?fallen off the bus and is not responding")
_LOST = re.compile(rf"NVRM: (?:GPU (?:at )?(?:PCI:)?{PCI}:? )(?:GPU )?has fallen off the bus", re.ASCII)
_UNSUPPORTED_WHOLE = re.compile(rf"{_GPU_HEAD.pattern}{_INSTALLED} is{_BREAK}not supported by", re.ASCII)
_UNSUPPORTED_TAIL = re.compile(
    r"\s*(?:NVRM: )?(?:installed )?in this (?:vGPU host )?system is not supported by", re.ASCII
)
_UNSUPPORTED_MEANING = "The installed driver does not support this GPU"


def nvrm_event(record: KernelRecord) -> KernelEvent | PartialMessage | None:
    """The event of a line of the driver, or the message that it begins."""
    text = record.text
    if "allen off the bus" in text:
        match = _LOST.match(text) or _LOST_WHOLE.match(text)
        return lost_event(record, slot(match[1], match[2], match[3])) if match else None
    if head := _HEAD.match(text):
        return _of_table(record, head.end()) or _begun(record, head.end())
    if _FABRIC_MISMATCH.match(text):
        meaning = "Fabric manager is of another version than the kernel module"
        return _event(record, None, codes.CLIENT_MISMATCH, Severity.WARNING, Action.UPDATE_SOFTWARE, meaning)
    if _NVLINK.match(text):
        meaning = "The NVLink driver reports errors"
        return _event(record, None, codes.ERRORS, Severity.WARNING, Action.CONTACT_SUPPORT, meaning)
    return None


def _of_table(record: KernelRecord, start: int) -> KernelEvent | None:
    text = record.text
    of_gpu = _OF_GPU.match(text, start)
    for line in LINES:
        if match := line.pattern.match(text, of_gpu.end() if of_gpu else start):
            pci = _address(of_gpu) or (_address(match) if line.pattern.groups else None)
            return _event(record, pci, line.finding, line.severity, line.action, line.meaning)
    return None


def _begun(record: KernelRecord, start: int) -> KernelEvent | PartialMessage | None:
    """The message that a line begins, or the event if the record has all its lines."""
    text = record.text
    if _FIRMWARE.match(text, start):
        return PartialMessage(_failed_for_firmware, _without_firmware(record, None))
    if whole := _UNSUPPORTED_WHOLE.match(text):
        return _unsupported(record, slot(whole[1], whole[2], whole[3]))
    if head := _GPU_HEAD.match(text):
        return PartialMessage(partial(_rest_of_gpu_message, slot(head[1], head[2], head[3])))
    return None


def _rest_of_gpu_message(pci: PciSlot, record: KernelRecord) -> KernelEvent | None:
    """The event of a GPU that does not respond, or that the driver does not support, from a later line."""
    if _LOST_TAIL.match(record.text):
        return lost_event(record, pci)
    return _unsupported(record, pci) if _UNSUPPORTED_TAIL.match(record.text) else None


def _failed_for_firmware(record: KernelRecord) -> KernelEvent | None:
    """The event of a GPU that could not be initialised after the driver has complained about its firmware."""
    failed = _FAILED_INIT_OF.match(record.text)
    return _without_firmware(record, _address(failed)) if failed else None


def _without_firmware(record: KernelRecord, pci: PciSlot | None) -> KernelEvent:
    return _event(record, pci, codes.INIT_FAILED, Severity.CRITICAL, Action.UPDATE_SOFTWARE, _FIRMWARE_MEANING)


def _unsupported(record: KernelRecord, pci: PciSlot) -> KernelEvent:
    return _event(record, pci, codes.INIT_FAILED, Severity.CRITICAL, Action.UPDATE_SOFTWARE, _UNSUPPORTED_MEANING)


def _address(match: re.Match[str] | None) -> PciSlot | None:
    return slot(match[1], match[2], match[3]) if match and match[2] else None


def lost_event(record: KernelRecord, pci: PciSlot) -> KernelEvent:
    """The event of a GPU that fell off the bus without an XID; handled like XID 79."""
    facts = xid.lookup(xid.FELL_OFF_THE_BUS)
    return _event(record, pci, f"xid.{facts.code}", facts.severity, facts.action, facts.meaning)


def _event(
    record: KernelRecord, pci: PciSlot | None, finding: Code | str, severity: Severity, action: Action, meaning: str
) -> KernelEvent:
    return KernelEvent(
        kind="nvrm",
        line=record.text,
        finding=finding if isinstance(finding, str) else finding.name,
        severity=severity,
        action=action,
        time=record.time,
        pci=pci,
        meaning=meaning,
        sequence=record.sequence,
    )
