"""Kernel-log patterns: how a monitor recognises its messages, and their meaning.

Every expression is anchored at the start of the kernel message, and none skips text before its fixed words: skipped
text could be text of a user.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TypeAlias

import msgspec

from gpuhealth.model.codes import Code
from gpuhealth.model.finding import Action, Severity
from gpuhealth.model.kernel_event import KernelEvent, KernelRecord
from gpuhealth.model.pci import PciSlot, slot

BDF = r"[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7]"
"""A PCI address as the kernel prints it."""
DEVICE = rf"(?:[\w-]{{1,32}} (?P<device>{BDF}): )"
"""The head of a message about a PCI device: driver and address."""


class LineMeaning(msgspec.Struct, frozen=True, kw_only=True):
    """The meaning of one line."""

    finding: Code
    severity: Severity
    action: Action
    meaning: str
    pci: PciSlot | None = None
    pid: int | None = None
    process: str | None = None
    interface: str = ""  # the network interface, if the line names its device, too
    disk: str = ""  # the block device


Groups: TypeAlias = Mapping[str, str]
"""Named groups of a matched expression; empty text for a group that did not match."""


Ends: TypeAlias = Callable[[KernelEvent], bool]
"""Whether the fault of an earlier event is over."""


class LinePattern(msgspec.Struct, frozen=True):
    """One form of message."""

    kind: str  # of the event
    words: tuple[str, ...]  # at least one is in every such line: this test is cheaper than the expression
    expression: re.Pattern[str]
    read: Callable[[Groups], LineMeaning]


def line_pattern(
    kind: str, words: tuple[str, ...], expression: str, read: Callable[[Groups], LineMeaning]
) -> LinePattern:
    """A pattern from the text of its expression."""
    return LinePattern(kind, words, re.compile(expression, re.ASCII | re.DOTALL), read)


class PartialMessage(msgspec.Struct, frozen=True):
    """The first line of a message of several lines; `finish` makes the event from a later one."""

    finish: Callable[[KernelRecord], KernelEvent | None]
    event: KernelEvent | None = None  # of the first line alone, if it has a meaning of its own


class LogPatterns(msgspec.Struct, frozen=True, kw_only=True):
    """Kernel-log patterns of one monitor."""

    words: tuple[str, ...]
    """At least one of these is in every line with a meaning, with or without a log's prefix. Case-sensitive."""
    guarded_words: Mapping[str, tuple[str, ...]] = {}
    """Or one of these words, together with one of those that it stands before here: for a word of many other lines."""
    read: Callable[[KernelRecord, int | None], KernelEvent | PartialMessage | None]
    """The event of a record, given the driver branch if known. Never raises, for any text."""
    read_first: Callable[[KernelRecord, int | None], KernelEvent | None] | None = None
    """Tried before records with text of a user are recognised: for lines whose fixed head no user can write."""
    ends: Callable[[KernelRecord, KernelEvent | None], Ends | None] | None = None
    """The earlier faults that a record, with its event if it has one, proves to be over; None for most records."""
    user_text: Mapping[str, Callable[[Groups], LineMeaning]] = {}
    """By form: the meaning of records that contain text of a user."""
    after_user_text: Mapping[str, Callable[[KernelRecord], KernelEvent | None]] = {}
    """By form: the event of a later line of the message that such a record begins."""
    reports: re.Pattern[str] | None = None
    """Found in lines that report a fault. Where such a line of a text has no event, it was not understood."""
    report_words: tuple[str, ...] = ()
    """At least one of these is in every line in which `reports` is found."""
    details: re.Pattern[str] | None = None
    """Found in lines that only add details to the event of another line."""


def match(lines: tuple[LinePattern, ...], record: KernelRecord) -> KernelEvent | None:
    """The event of the first pattern that matches the record; None if none does."""
    text = record.text
    for pattern in lines:
        for word in pattern.words:
            if word in text:
                if found := pattern.expression.match(text):
                    return event_of(record, pattern.kind, pattern.read(found.groupdict(default="")))
                break
    return None


def event_of(record: KernelRecord, kind: str, meaning: LineMeaning) -> KernelEvent:
    """The event of a record with this meaning."""
    return KernelEvent(
        kind=kind,
        line=record.text,
        finding=meaning.finding.name,
        severity=meaning.severity,
        action=meaning.action,
        time=record.time,
        pci=meaning.pci,
        pid=meaning.pid,
        process=meaning.process,
        interface=meaning.interface,
        disk=meaning.disk,
        meaning=meaning.meaning,
        sequence=record.sequence,
    )


def pci_slot(text: str | None) -> PciSlot | None:
    """The slot in the text of a BDF group."""
    parts = text.partition(".")[0].split(":") if text else []
    return slot(*parts) if len(parts) == 3 else None


def number(text: str | None) -> int | None:
    """The number in the text of a group; None if it is too large for a process id."""
    return int(text) if text and len(text) < 12 else None
