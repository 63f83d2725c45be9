"""Kernel-log messages about NVIDIA GPUs: XIDs, SXids, other NVRM lines of the driver, and PCIe errors (AER, DPC).

Every expression is anchored at the start of the kernel message: a line that merely quotes one of these does not match.
None skips text before its fixed words that could be a user's. In an XID line the process name is such text.
"""

from __future__ import annotations

import re

from gpuhealth.kernel_log.pattern import Ends, LogPatterns, PartialMessage
from gpuhealth.kernel_log.pattern import match as match_lines
from gpuhealth.kernel_log.user_text import BYTE, NAME_BYTES
from gpuhealth.model.finding import Severity
from gpuhealth.model.kernel_event import KernelEvent, KernelRecord
from gpuhealth.model.pci import slot
from gpuhealth.monitors.nvidia import nvrm_lines, pci_lines
from gpuhealth.monitors.nvidia.catalog import sxid, xid
from gpuhealth.monitors.nvidia.nvrm_lines import PCI

# The driver prints the MIG instance ids in decimal ("GPU-I:%02u GPU-CI:%02u"); very old drivers print no "PCI:".
_XID = re.compile(
    rf"NVRM: Xid \((?:PCI:)?{PCI}(?: GPU-I:(\d{{1,4}}))?(?: GPU-CI:(\d{{1,4}}))?\): (\d{{1,6}})(?:, ?(.*)|\s*)$",
    re.ASCII | re.DOTALL,
)
_PROCESS = re.compile(rf"pid=[^,]{{1,24}}, (?:name={BYTE}{{0,{NAME_BYTES}}}, )?", re.DOTALL)
_SXID = re.compile(
    rf"nvidia-nvswitch\d+: SXid \((?:PCI:)?{PCI}\): (\d{{1,6}}), "
    r"(?:(Fatal|Non-fatal|Nonfatal|Correctable), )?(?:Link (-?\d{1,4})\b)?",
    re.ASCII | re.IGNORECASE,
)
_SXID_FOLLOW_UP = re.compile(r"(?:Severity \d+ Engine instance|Data \{)", re.IGNORECASE)


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


_DRIVER_LOADED = "NVRM: loading NVIDIA UNIX"  # nv.c of the kernel module, at the end of its initialisation
EVENT_KINDS = ("xid", "sxid", "nvrm")
"""Kinds of the events that the driver reports itself."""
_WORDS = (
    "NVRM",
    "nvidia",  # also of modules in a stack
    "gdrdrv",
    "pcieport ",
    "PCIe Bus Error",
    "error received",
    "error message received",
    "fallen off",
)


def _read_first(record: KernelRecord, driver: int | None) -> KernelEvent | None:
    """An XID line: its head is longer than any program name, and a name in it is recognised there."""
    return xid_event(record, driver) if record.text.startswith("NVRM: Xid (") else None


def _read(record: KernelRecord, _driver: int | None) -> KernelEvent | PartialMessage | None:
    text = record.text
    if text.startswith("nvidia-nvswitch") and ": SXid (" in text:
        return sxid_event(record)
    if text.startswith(("NVRM", "nvidia-nv")) and (found := nvrm_lines.nvrm_event(record)):
        return found
    return match_lines(pci_lines.LINES, record)


def _ends(record: KernelRecord, event: KernelEvent | None) -> Ends | None:
    """Loading the driver initialises every GPU and NVSwitch; XID 154 also reports that a GPU has recovered.

    The fixed text is longer than the name of a program, so that no program can begin a record with it.
    """
    if record.text.startswith(_DRIVER_LOADED):
        return lambda earlier: earlier.kind in EVENT_KINDS
    if event and (event.kind, event.code, event.severity) == ("xid", xid.RECOVERY_ACTION, Severity.INFO):
        return lambda earlier: earlier.pci is not None and earlier.pci == event.pci
    return None


# Whatever looks like an XID or SXid, also cut or damaged.
_REPORT = re.compile(r"Xid \(")
_DETAIL = re.compile(rf"SXid \([^()]{{1,32}}\): \d{{1,6}}, {_SXID_FOLLOW_UP.pattern}", re.ASCII | re.IGNORECASE)

PATTERNS = LogPatterns(
    words=_WORDS,
    read=_read,
    read_first=_read_first,
    ends=_ends,
    reports=_REPORT,
    report_words=("Xid (",),
    details=_DETAIL,
)
