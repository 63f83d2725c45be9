"""Kernel-log messages about NVIDIA GPUs: XIDs, SXids, other NVRM lines of the driver, and PCIe errors (AER, DPC).

Every expression is anchored at the start of the kernel message: a line that merely quotes one of these does not match.
None skips text before its fixed words that could be a user's. In an XID line the process name is such text.
"""

from __future__ import annotations

import re
from functools import partial

from gpuhealth.kernel_log.pattern import (
    BDF,
    DEVICE,
    Ends,
    Groups,
    LineMeaning,
    LogPatterns,
    PartialMessage,
    line_pattern,
    pci_slot,
)
from gpuhealth.kernel_log.pattern import match as match_lines
from gpuhealth.kernel_log.user_text import BYTE, NAME_BYTES
from gpuhealth.model.codes import Code
from gpuhealth.model.finding import Action, Severity
from gpuhealth.model.kernel_event import KernelEvent, KernelRecord
from gpuhealth.model.pci import PciSlot, slot
from gpuhealth.monitors.nvidia.catalog import sxid, xid
from gpuhealth.monitors.nvidia.checks import log_events as codes
from gpuhealth.monitors.nvidia.checks import pcie

_PCI = r"(?:([0-9a-fA-F]{4,8}):)?([0-9a-fA-F]{2}):([0-9a-fA-F]{2})(?:\.[0-7])?"
# The driver prints the MIG instance ids in decimal ("GPU-I:%02u GPU-CI:%02u"); very old drivers print no "PCI:".
_XID = re.compile(
    rf"NVRM: Xid \((?:PCI:)?{_PCI}(?: GPU-I:(\d{{1,4}}))?(?: GPU-CI:(\d{{1,4}}))?\): (\d{{1,6}})(?:, ?(.*)|\s*)$",
    re.ASCII | re.DOTALL,
)
_PROCESS = re.compile(rf"pid=[^,]{{1,24}}, (?:name={BYTE}{{0,{NAME_BYTES}}}, )?", re.DOTALL)
_SXID = re.compile(
    rf"nvidia-nvswitch\d+: SXid \((?:PCI:)?{_PCI}\): (\d{{1,6}}), "
    r"(?:(Fatal|Non-fatal|Nonfatal|Correctable), )?(?:Link (-?\d{1,4})\b)?",
    re.ASCII | re.IGNORECASE,
)
_SXID_FOLLOW_UP = re.compile(r"(?:Severity \d+ Engine instance|Data \{)", re.IGNORECASE)

# Fixed text of the driver: without a bracket, which the kernel prints after a program's name, and without quotes.
_WORDS = r"(?:[\w.,:=!'/%-]{1,80} ){0,24}?"

_LOST_HEAD = re.compile(rf"NVRM: The NVIDIA GPU {_PCI}", re.ASCII)
_LOST_WHOLE = re.compile(
    rf"{_LOST_HEAD.pattern}\s+(?:NVRM: )?\(PCI ID: [0-9a-f:]{{3,9}}\) installed in this system has\s+(?:NVRM: )?"
    "fallen off the bus",
    re.ASCII | re.IGNORECASE,
)
_LOST_TAIL = re.compile(r"\s*(?:NVRM: )?(?:system has )?fallen off the bus and is not responding")
_LOST = re.compile(rf"NVRM: (?:GPU (?:at )?(?:PCI:)?{_PCI}:? )(?:GPU )?has fallen off the bus", re.ASCII)
_OF_GPU = re.compile(rf"NVRM: GPU (?:at )?(?:PCI:)?{_PCI}: ", re.ASCII)

NVRM = (
    (
        re.compile(r"(?:RmInitAdapter failed|rm_init_adapter failed|The NVIDIA probe routine failed)"),
        (codes.INIT_FAILED, Severity.CRITICAL, Action.REBOOT_NODE, "The driver could not initialise a GPU"),
    ),
    (
        re.compile(r"None of the NVIDIA (?:devices|graphics adapters) were initialized"),
        (codes.INIT_FAILED, Severity.CRITICAL, Action.REBOOT_NODE, "The driver could not initialise any GPU"),
    ),
    (
        re.compile(r"API mismatch: "),
        (
            codes.CLIENT_MISMATCH,
            Severity.WARNING,
            Action.UPDATE_SOFTWARE,
            "A program came with a driver library of another version than the kernel module",
        ),
    ),
    (
        re.compile(r"(?:GPU\d+ )?(?:\w{1,64}: )?uvm encountered global fatal error 0x[0-9a-f]+, requiring os reboot"),
        (
            codes.NEEDS_REBOOT,
            Severity.CRITICAL,
            Action.REBOOT_NODE,
            "Unified memory met an error that only a reboot ends",
        ),
    ),
    (
        re.compile(
            rf"{_WORDS}(?:GPU lost from the bus|GSP RM heartbeat timed out|Rpc[A-Z]\w+ {_WORDS}timed out"
            rf"|rpcSendMessage failed|rpcRecvPoll {_WORDS}timed? ?out|GPU is probably locked|\[?NV_ERR_GPU_IS_LOST"
            r"|(?:Assertion|Check) failed: [\w ()=|&!>,.-]{0,200}NV_ERR_GPU_IS_LOST)",
            re.IGNORECASE,
        ),
        (
            codes.ERRORS,
            Severity.WARNING,
            Action.CONTACT_SUPPORT,
            "The driver's calls to the GPU or its firmware fail",
        ),
    ),
    (
        re.compile(rf"(?:GPU\d+ )?knvlink\w{{1,64}}: {_WORDS}fail", re.IGNORECASE),
        (codes.ERRORS, Severity.WARNING, Action.CONTACT_SUPPORT, "The driver could not set up NVLink"),
    ),
)
_NVLINK = re.compile(
    rf"(?:nvidia-nvlink\d*: {_WORDS}|nvidia-nvswitch\d+: [^\"'\n]{{0,200}}?)(?:fail|timed out|error)", re.IGNORECASE
)


def xid_event(record: KernelRecord, driver: int | None) -> KernelEvent | None:
    """The event of an "NVRM: Xid" line; None if the line is incomplete."""
    match = _XID.match(record.text)
    if match is None:
        return None
    domain, bus, device, gpu_instance, compute_instance, number, text = match.groups()
    code, text = int(number), text or ""
    pid, process = _process(text)
    found = xid.assess(code, _own_text(text) if code in xid.BY_TEXT else "", driver)
    return KernelEvent(
        kind="xid",
        line=record.text,
        finding=f"xid.{code}",
        severity=found.severity,
        action=found.action,
        time=record.time,
        code=code,
        pci=slot(domain, bus, device),
        gpu_instance=int(gpu_instance) if gpu_instance else None,
        compute_instance=int(compute_instance) if compute_instance else None,
        pid=pid,
        process=process,
        link=found.link,
        meaning=found.meaning,
        sequence=record.sequence,
    )


def _process(text: str) -> tuple[int | None, str | None]:
    """Process id and name, if the text begins with them and they are known."""
    if not text.startswith("pid="):
        return None, None
    number, _, text = text[4:].partition(", ")
    pid = int(number) if number.isascii() and number.isdigit() and len(number) < 12 else None
    name = text[5:].partition(", ")[0] if text.startswith("name=") else ""
    return pid, None if name.startswith(("<", "'<")) else name or None


def _own_text(text: str) -> str:
    """The driver's own text about the fault, which follows the process.

    A program's name may contain a comma, and text that looks like the driver's: the driver's text begins after the last
    comma that a name can reach.
    """
    match = _PROCESS.match(text)
    return text[match.end() :] if match else text


def sxid_event(record: KernelRecord) -> KernelEvent | None:
    """The event of an "SXid" line; None for the lines of detail that follow it under the same code."""
    match = _SXID.match(record.text)
    if match is None or _SXID_FOLLOW_UP.match(record.text, match.end()):
        return None
    domain, bus, device, number, word, link = match.groups()
    code = int(number)
    severity, action = sxid.assess(code, word or "")
    return KernelEvent(
        kind="sxid",
        line=record.text,
        finding=f"sxid.{code}",
        severity=severity,
        action=action,
        time=record.time,
        code=code,
        pci=slot(domain, bus, device),
        link=int(link) if link and not link.startswith("-") else None,
        meaning=sxid.lookup(code).meaning,
        sequence=record.sequence,
    )


def _lost_head(text: str) -> PartialMessage | None:
    """The first of the three lines about a GPU that does not respond, if the rest is on other lines."""
    found = _LOST_HEAD.match(text)
    return PartialMessage(partial(_lost_tail, slot(found[1], found[2], found[3]))) if found else None


def _lost_tail(pci: PciSlot, record: KernelRecord) -> KernelEvent | None:
    """The event of a GPU that does not respond, from the last of the three lines."""
    return lost_event(record, pci) if _LOST_TAIL.match(record.text) else None


def nvrm_event(record: KernelRecord) -> KernelEvent | None:
    """The event of any other relevant line of the driver."""
    text = record.text
    if "allen off the bus" in text:
        match = _LOST.match(text) or _LOST_WHOLE.match(text)
        return lost_event(record, slot(match[1], match[2], match[3])) if match else None
    if text.startswith("NVRM: "):
        of_gpu = _OF_GPU.match(text)
        start = of_gpu.end() if of_gpu else len("NVRM: ")
        pci = slot(of_gpu[1], of_gpu[2], of_gpu[3]) if of_gpu else None
        for pattern, facts in NVRM:
            if pattern.match(text, start):
                return _nvrm(record, pci, *facts)
    elif _NVLINK.match(text):
        meaning = "The NVLink driver reports errors"
        return _nvrm(record, None, codes.ERRORS, Severity.WARNING, Action.CONTACT_SUPPORT, meaning)
    return None


def lost_event(record: KernelRecord, pci: PciSlot) -> KernelEvent:
    """The event of a GPU that fell off the bus without an XID; handled like XID 79."""
    facts = xid.lookup(xid.FELL_OFF_THE_BUS)
    return _nvrm(record, pci, f"xid.{facts.code}", facts.severity, facts.action, facts.meaning)


def _nvrm(
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


def _aer(groups: Groups) -> LineMeaning:
    pci = pci_slot(groups.get("source") or groups["device"])
    word = groups["severity"].lower()
    if word.startswith("correct"):
        return LineMeaning(
            finding=pcie.AER_CORRECTABLE_RATE,
            severity=Severity.INFO,
            action=Action.NONE,
            meaning="PCIe corrected an error",
            pci=pci,
        )
    return _uncorrectable(f"PCIe error that was not corrected ({word})", pci)


def _dpc(groups: Groups) -> LineMeaning:
    meaning = "The PCIe port cut off the device below it after an error that was not corrected"
    return _uncorrectable(meaning, pci_slot(groups["device"]))


def _uncorrectable(meaning: str, pci: PciSlot | None) -> LineMeaning:
    return LineMeaning(
        finding=pcie.AER_UNCORRECTABLE,
        severity=Severity.CRITICAL,
        action=Action.INSPECT_HARDWARE,
        meaning=meaning,
        pci=pci,
    )


_PRINTER = r"(?:(?:aer|AER): )?"
_SEVERITY = (
    r"(?P<severity>Correct(?:ed|able)|Uncorrect(?:ed|able) \((?:Non-)?Fatal\)|Uncorrect(?:ed|able)|(?:Non-)?Fatal)"
)

PCIE_LINES = (
    line_pattern("aer", ("PCIe Bus Error",), rf"{DEVICE}{_PRINTER}PCIe Bus Error: severity={_SEVERITY}", _aer),
    line_pattern(
        "aer",
        (" received",),
        rf"{DEVICE}{_PRINTER}(?:Multiple )?{_SEVERITY} error (?:message )?received(?:: | from )(?P<source>{BDF})?",
        _aer,
    ),
    line_pattern("aer", ("DPC: ",), rf"{DEVICE}DPC: containment event", _dpc),
)


_DRIVER_LOADED = "NVRM: loading NVIDIA UNIX"  # nv.c of the kernel module, at the end of its initialisation
EVENT_KINDS = ("xid", "sxid", "nvrm")
"""Kinds of the events that the driver reports itself."""
_WORDS_OF_LINES = (
    "NVRM",
    "vidia-nv",
    "PCIe Bus Error",
    "error received",
    "error message received",
    "fallen off",
    "DPC: ",
)


def _read_first(record: KernelRecord, driver: int | None) -> KernelEvent | None:
    """An XID line: its head is longer than any program name, and a name in it is recognised there."""
    return xid_event(record, driver) if record.text.startswith("NVRM: Xid (") else None


def _read(record: KernelRecord, _driver: int | None) -> KernelEvent | PartialMessage | None:
    text = record.text
    if not text.startswith(("NVRM: ", "nvidia-nv")):
        return match_lines(PCIE_LINES, record)
    if text.startswith("nvidia-nvswitch") and ": SXid (" in text:
        return sxid_event(record)
    return nvrm_event(record) or _lost_head(text)


def _ends(record: KernelRecord, event: KernelEvent | None) -> Ends | None:
    """Loading the driver initialises every GPU and NVSwitch; XID 154 also reports that a GPU has recovered.

    The fixed text is longer than the name of a program, so that no program can begin a record with it.
    """
    if record.text.startswith(_DRIVER_LOADED):
        return lambda earlier: earlier.kind in EVENT_KINDS
    if event and (event.kind, event.code, event.severity) == ("xid", xid.RECOVERY_ACTION, Severity.INFO):
        return lambda earlier: earlier.pci is not None and earlier.pci == event.pci
    return None


# An XID or SXid with an address, or one that is cut before its end.
_REPORT = re.compile(r"Xid \((?:(?:PCI:)?[0-9a-fA-F]{2,8}:|(?:P(?:CI?)?|PCI:[0-9a-fA-F]*)?\s*$)", re.ASCII)
_DETAIL = re.compile(rf"SXid \([^()]{{1,32}}\): \d{{1,6}}, {_SXID_FOLLOW_UP.pattern}", re.ASCII | re.IGNORECASE)

PATTERNS = LogPatterns(
    words=_WORDS_OF_LINES,
    read=_read,
    read_first=_read_first,
    ends=_ends,
    reports=_REPORT,
    report_words=("Xid (",),
    details=_DETAIL,
)
