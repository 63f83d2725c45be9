"""Kernel messages from text: raw /dev/kmsg records, dmesg in its time formats, syslog, journalctl, journald's JSON.

The format is detected for each line separately, so files that mix formats are read, too. Only messages of the kernel
count: in syslog and the journal the kernel's entries, in raw records the facilities kern and user. The latter is what
a record written to /dev/kmsg gets, and so how a fault is injected for a test.

/dev/kmsg escapes a line break within a record. Other formats break the line there, and the rest looks like a record of
its own: text of a user (a file's name in a crash) could look like one. Where the kernel's time or the indentation shows
that a line is the rest of such a record, it is no event. Where times are coarser than a microsecond nothing shows it.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, NamedTuple

import msgspec

from gpuhealth.kernel_log import user_text
from gpuhealth.kernel_log.escapes import unescape
from gpuhealth.kernel_log.parser import KernelLogParser
from gpuhealth.model.kernel_event import KernelRecord


class Stamp(NamedTuple):
    """A time as written, with the clock it refers to."""

    clock: str  # kmsg (µs since boot), boot (s since boot), unix (s), iso, ctime; empty if unknown
    text: str


class Message(NamedTuple):
    """One kernel message without the prefix of its format."""

    text: str
    priority: int = 6
    stamp: Stamp = Stamp("", "")
    sequence: int = -1
    since_boot: str = ""  # the kernel's own time as written, to the microsecond: lines of one record have the same


_LEVELS = {"emerg": 0, "alert": 1, "crit": 2, "err": 3, "warn": 4, "notice": 5, "info": 6, "debug": 7}
_FACILITIES = (0, 1)  # kern, user
_KMSG = re.compile(r"(\d{1,4}),(\d{1,20}),(\d{1,20}),[^;]*;(.*)", re.ASCII | re.DOTALL)
_KMSG_TAG = re.compile(r" [A-Z][A-Z0-9_]*=")
_PRI = re.compile(r"<(\d{1,3})>", re.ASCII)
_RFC5424 = re.compile(r"1 (\S+) \S+ (\S+) \S+ \S+ (?:-|(?:\[[^\]]*\])+) ?\ufeff?(.*)", re.ASCII | re.DOTALL)
# The thread or CPU that wrote the record: the kernel prints it behind its time, dmesg behind times of all its formats.
_REST = r"(?: ?\[ *[TC]\d+\])? ?(.*)"
_SECONDS = re.compile(r"\[ *(\d{1,12}\.\d{1,9})(?: *<[ \d.]+>)?\]" + _REST, re.ASCII | re.DOTALL)
_CTIME = re.compile(r"\[([A-Z][a-z]{2} [A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \d{4})\]" + _REST, re.ASCII | re.DOTALL)
_RELATIVE = re.compile(r"\[(?:[A-Z][a-z]{2} ?\d{1,2} \d\d:\d\d| *\+ *\d+\.\d+)\]" + _REST, re.ASCII | re.DOTALL)
_DECODED = re.compile(r"([a-z0-9]{3,9}) *:(emerg|alert|crit|err|warn|notice|info|debug) *: ?(.*)", re.ASCII | re.DOTALL)
_ISO = re.compile(
    r"(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d{1,9})?(?:Z|[+-]\d\d:?\d\d)?)(?= )" + _REST, re.ASCII | re.DOTALL
)
_SYSLOG = re.compile(r"[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d(?:\.\d{1,9})? (.*)", re.ASCII | re.DOTALL)
_FULL = re.compile(
    r"[A-Z][a-z]{2} (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)(?:\.\d{1,9})? (?:[A-Z]{2,5}|[+-]\d{2,4}) (.*)",
    re.ASCII | re.DOTALL,
)
_UNIX = re.compile(r"(\d{9,11}\.\d{1,9}) (.*)", re.ASCII | re.DOTALL)
_OF_KERNEL = re.compile(r"(?:[^\s:]+ )?kernel(?:\[\d+\])?: (.*)", re.DOTALL)
_OF_PROGRAM = re.compile(r"[^\s:]+ [\w./@-]+(?:\[\d+\])?: ", re.ASCII)
_COLOUR = re.compile("\x1b\\[[\\d;]*m")
_LINES_OF_A_RECORD = 256  # a record has at most 1 KiB, and a file's name of 255 bytes as many line breaks


class _JournalEntry(msgspec.Struct):
    message: Any = msgspec.field(name="MESSAGE", default="")
    transport: Any = msgspec.field(name="_TRANSPORT", default="")
    identifier: Any = msgspec.field(name="SYSLOG_IDENTIFIER", default="")
    priority: Any = msgspec.field(name="PRIORITY", default="6")
    time: Any = msgspec.field(name="__REALTIME_TIMESTAMP", default="")


_journal_entry = msgspec.json.Decoder(_JournalEntry)


def message(line: str) -> Message | None:
    """The kernel message in a line of any format; None for a line that is not from the kernel."""
    if "\x1b" in line:
        line = _COLOUR.sub("", line)
    first = line[:1]
    if first == "[":
        return _dmesg(line)
    if first.isdigit():
        return _kmsg(line) or _iso(line) or _unix(line) or Message(line)
    if first == "{":  # JSON, or the number that the kernel prefixes to a firmware error: {1}[Hardware Error]
        return Message(line) if line[1:2].isdigit() else _journald(line)
    if first == "<":
        return _with_priority(line)
    if first in (" ", "\t"):  # a second line of the record before, or, in raw records, a tag such as " SUBSYSTEM=pci"
        return None if _KMSG_TAG.match(line) else Message(line.strip())
    return _worded(line)


def _kmsg(line: str) -> Message | None:
    match = _KMSG.match(line)
    if match is None:
        return None
    facility, level = divmod(int(match[1]), 8)
    if facility not in _FACILITIES:
        return Message("")
    text = match[4]
    if "\\x" in text:
        text = unescape(text)
    return Message(text, level, Stamp("kmsg", match[3]), int(match[2]))


def _dmesg(line: str) -> Message | None:
    for pattern, clock in ((_SECONDS, "boot"), (_CTIME, "ctime")):
        if match := pattern.match(line):
            since_boot = match[1] if clock == "boot" else ""
            return _of_kernel(match[2], Stamp(clock, match[1]), bare=True, since_boot=since_boot)
    if match := _RELATIVE.match(line):
        return Message(match[1])
    return Message(line)


def _iso(line: str) -> Message | None:
    match = _ISO.match(line)
    if match is None:
        return None
    # dmesg writes its fraction after a comma and no host; of syslog and the journal a host and a program follow.
    of_dmesg = "," in match[1]
    bare = of_dmesg or not _OF_PROGRAM.match(match[2])
    return _of_kernel(match[2], Stamp("iso", match[1].replace(",", ".")), bare=bare) or Message("")


def _unix(line: str) -> Message | None:
    match = _UNIX.match(line)
    return _of_kernel(match[2], Stamp("unix", match[1]), bare=False) if match else None


def _worded(line: str) -> Message | None:
    if line.startswith("kernel: "):
        return _of_kernel(line, Stamp("", ""), bare=False)
    if match := _SYSLOG.match(line):
        return _of_kernel(match[1], Stamp("", ""), bare=False)
    if match := _FULL.match(line):
        return _of_kernel(match[2], Stamp("", ""), bare=False)
    if match := _DECODED.match(line):
        if match[1] not in ("kern", "user"):
            return None
        timed = match[3][:1] == "[" or match[3][:1].isdigit()  # anything else would nest as deep as the line is long
        inner = message(match[3]) if timed else Message(match[3])
        return inner._replace(priority=_LEVELS[match[2]]) if inner else None
    return Message(line)


def _with_priority(line: str) -> Message | None:
    match = _PRI.match(line)
    if match is None:
        return Message(line)
    facility, level = divmod(int(match[1]), 8)
    if facility not in _FACILITIES:
        return None
    rest = line[match.end() :]
    if structured := _RFC5424.match(rest):
        stamp = Stamp("iso", structured[1])
        return Message(structured[3], level, stamp) if structured[2] == "kernel" else None
    if rest[:1] == "<":  # no log nests this; a line of many of them must not cause deep recursion
        return None
    inner = message(rest)
    return inner._replace(priority=level) if inner else None


def _of_kernel(rest: str, stamp: Stamp, *, bare: bool, since_boot: str = "") -> Message | None:
    """The message after a time: "host kernel: text"; if `bare`, also a text alone."""
    if match := _OF_KERNEL.match(rest):
        text = match[1]
        if inner := _SECONDS.match(text):  # syslog keeps the kernel's own time before the text
            return Message(inner[2], 6, stamp, -1, inner[1])
        return Message(text, 6, stamp, -1, since_boot)
    return Message(rest, 6, stamp, -1, since_boot) if bare else None


def _journald(line: str) -> Message | None:
    try:
        entry = _journal_entry.decode(line)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    if (entry.transport or entry.identifier) != "kernel":
        return None
    text = entry.message
    if isinstance(text, list):  # a message that is not valid UTF-8 is a list of its bytes
        try:
            text = bytes(text).decode("utf-8", "replace")
        except (TypeError, ValueError):
            return None
    if not isinstance(text, str):
        return None
    priority = int(entry.priority) if entry.priority in tuple("01234567") else 6
    micros = str(entry.time)
    timed = micros.isascii() and micros.isdecimal() and len(micros) < 18
    stamp = Stamp("unix", f"{int(micros) / 1e6:.6f}") if timed else Stamp("", "")
    return Message(text, priority, stamp)


def records(lines: Iterable[bytes | str], booted: datetime | None = None, zone: tzinfo = UTC) -> Iterator[KernelRecord]:
    """The kernel's records in the lines of a log.

    `booted` is the reference for times since boot, `zone` that of local times; a time without a year is dropped.
    """
    earlier = _Earlier()
    for number, raw in enumerate(lines):
        line = _decoded(raw)
        found = message(line)
        if found is not None and found.text and not earlier.end_in(line, number, found):
            yield KernelRecord(found.text, _time(found.stamp, booted, zone), found.sequence, found.priority)
        earlier.lines.append(line)


class _Earlier:
    """The lines before the current one: they show whether it continues a record with text of a user."""

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=_LINES_OF_A_RECORD)
        self._without_time = -1  # number of the last line without a time that was accepted as a record

    def end_in(self, line: str, number: int, found: Message) -> bool:
        """Whether the line with this number is the last line of such a record."""
        if found.since_boot:
            return self._has_time_of_user_text(found.since_boot)
        if found.stamp.clock or found.sequence >= 0:
            return False
        indented = line[:1] in (" ", "\t")
        if not indented and self._without_time == number - 1:
            self._without_time = number
            return False
        record: list[str] = []
        for earlier in reversed(self.lines):
            record.append(earlier)
            ends_indentation = indented and earlier[:1] not in (" ", "\t")
            if ends_indentation or (earlier[:1] == "[" and (head := message(earlier)) and head.since_boot):
                return any(map(_has_user_text, record))
        self._without_time = number  # a log without times: each line may be a record
        return False

    def _has_time_of_user_text(self, since_boot: str) -> bool:
        if not self.lines or since_boot not in self.lines[-1]:
            return False
        for earlier in reversed(self.lines):
            head = message(earlier)
            if head is None or head.since_boot != since_boot:
                return False
            if user_text.recognise(head.text):
                return True
        return False


def _has_user_text(line: str) -> bool:
    found = message(line)
    return found is not None and user_text.recognise(found.text) is not None


def _time(stamp: Stamp, booted: datetime | None, zone: tzinfo) -> datetime | None:
    try:
        match stamp.clock:
            case "kmsg":
                return booted + timedelta(microseconds=int(stamp.text)) if booted else None
            case "boot":
                return booted + timedelta(seconds=float(stamp.text)) if booted else None
            case "unix":
                return datetime.fromtimestamp(float(stamp.text), UTC)
            case "iso":
                when = datetime.fromisoformat(stamp.text)
            case "ctime":
                when = datetime.strptime(stamp.text, "%a %b %d %H:%M:%S %Y")  # noqa: DTZ007 - the zone follows
            case _:
                return None
        return (when if when.tzinfo else when.replace(tzinfo=zone)).astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _decoded(raw: bytes | str) -> str:
    line = raw if isinstance(raw, str) else raw.decode("utf-8", "replace")
    return line.rstrip("\r\n")


def classify(lines: Iterable[bytes | str], parser: KernelLogParser) -> Iterator[dict[str, Any]]:
    """One dictionary for each line with a known meaning; `number` is the line number, starting at 1.

    Of a message over several lines it is the last line, which completes the message.
    """
    feed, may_matter = parser.feed, parser.may_matter
    earlier, previous = _Earlier(), ""
    for number, raw in enumerate(lines, 1):
        earlier.lines.append(previous)
        previous = line = raw if isinstance(raw, str) else raw.decode("utf-8", "replace")
        if not may_matter(line) and not (line.startswith("{") and '"MESSAGE"' in line and _is_bytes(line)):
            continue
        line = line.strip("\r\n\0")  # a crash leaves zeros at the end of a file that was not yet written to disk
        found = message(line)
        event = feed(KernelRecord(found.text)) if found else None
        if found and event is not None and not earlier.end_in(line, number, found):
            yield {
                "number": number,
                "line": line,
                "kind": event.kind,
                "code": event.code,
                "pci": event.pci,
                "pid": event.pid,
                "process": event.process,
                "severity": event.severity,
                "action": event.action,
                "finding": event.finding,
            }


_BYTES = re.compile(r'"MESSAGE"\s*:\s*(?:\[|"[^"]*\\u)')


def _is_bytes(line: str) -> bool:
    """Whether the message of a JSON entry is encoded, so that its words are not visible in the line."""
    return _BYTES.search(line) is not None
