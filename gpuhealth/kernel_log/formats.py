"""Kernel events in the text of a log, in whatever format it was written, shipped, viewed or pasted.

A kernel message is found wherever it stands in its line (`prefix`), in structured records (`structured`), and in a line
that a terminal has wrapped. Only messages of the kernel count: what stands behind the identifier of a program counts
for nothing, nor does a sentence that mentions a message. Where a line names its facility, it must be kern, or user or
syslog, which are those of drills: a text does not prove who wrote it, and a person reads the result.

A line that reports a fault and was not understood is counted (`KernelLogText.unread`), so that no result means that
there was nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from gpuhealth.kernel_log import prose, structured, user_text
from gpuhealth.kernel_log.continuation import Continues, EarlierLines
from gpuhealth.kernel_log.escapes import plain, unescape
from gpuhealth.kernel_log.parser import KernelLogParser
from gpuhealth.kernel_log.prefix import Place, common_place, is_tag, places
from gpuhealth.model.kernel_event import KernelEvent, KernelRecord

_MOST_DEPTH = 4  # of logs in logs: a journal entry in the log of a container, in a record of a shipper
_MOST_LINES = 512  # of a structured record
# The driver's name is split off by journald and syslog where a program wrote the record, or lost in a paste.
_XID_HEAD = re.compile(r"(?:N?V?R?M(?:\[\d{1,10}\])?: ?|: )?Xid \(", re.ASCII)
_RAW = re.compile(r"\d{1,4},\d{1,20},\d{1,20},", re.ASCII)  # the head of a record of /dev/kmsg
_QUOTES = "\"'`“”«»\u2018\u2019|*"
_ENCODED = re.compile(r'"MESSAGE"\s*:\s*(?:\[|"[^"]*\\u)')
_PRETTY = re.compile(r'\s*(?:"[\w@. -]{1,100}"\s*:\s|(?:- )?(?:MESSAGE|message|textPayload): )')  # JSON, YAML
_FIELD = re.compile(r"(?: {4})?[A-Z_][A-Z0-9_]{0,63}=")
_CUT = re.compile(
    r"(?:NVRM:?(?: X?i?d?)?|Xid(?: \((?:P?C?I?:?[0-9a-fA-F:. ]{0,24}(?:GPU-[\w: -]{0,24})?)?(?:\):? ?\d{0,6})?)?)\s*$",
    re.ASCII,
)


class FoundEvent(NamedTuple):
    """An event and its line; of a message over several lines the last one, which completes it."""

    number: int  # from 1
    line: str
    event: KernelEvent

    def described(self) -> dict[str, Any]:
        """What `classify` prints of it."""
        event = self.event
        return {
            "number": self.number,
            "line": self.line,
            "kind": event.kind,
            "code": event.code,
            "pci": event.pci,
            "pid": event.pid,
            "process": event.process,
            "severity": event.severity,
            "action": event.action,
            "finding": event.finding,
        }


class _Block(NamedTuple):
    """Lines of one structured record, as far as they have been read."""

    lines: list[str]
    number: int  # of the line with the message
    line: str


class KernelLogText:
    """Finds the events in the lines of one log."""

    def __init__(self, parser: KernelLogParser) -> None:
        self.unread = 0  # lines that report a fault and were not understood
        self.first_unread: tuple[int, str] = (0, "")  # number and text
        self.of_users = False  # the last line that was read is text of a user or a program
        self._parser = parser
        self._earlier = EarlierLines()
        self._block: _Block | None = None
        self._cut: tuple[int, str] | None = None  # number and text of a line that may go on in the next
        self._waits = False  # whether there is one of the two

    def events(self, lines: Iterable[bytes | str]) -> Iterator[FoundEvent]:
        """The events in the lines, as soon as they are known. Never raises for any text."""
        may_report, add, previous = self._parser.may_report, self._earlier.lines.append, ""
        for number, raw in enumerate(lines, 1):
            add(previous)
            previous = line = raw if isinstance(raw, str) else raw.decode("utf-8", "replace")
            if self._waits:
                yield from self._next_line(number, line)
            elif may_report(line):
                line = line.strip("\r\n\0")  # a crash leaves zeros in a file that was not yet written to disk
                if (place := common_place(line)) and (event := self._feed(line[place.start :], line, place)):
                    continues = self._earlier.end_in(line, number, place)
                    if continues is Continues.NO:
                        yield FoundEvent(number, line, event)
                    elif continues is Continues.PERHAPS and self._parser.report_in(line):
                        self._count_unread(number, line)
                elif place is None or self._parser.names_report(line) or "NVRM" in line[-16:]:
                    yield from self._line(number, line)
            elif line.startswith("{") and '"MESSAGE"' in line and _ENCODED.search(line):
                yield from self._line(number, line.strip("\r\n\0"))
        if self._block is not None:
            yield from self._end_block()
        self._end_cut()

    @property
    def _is_waiting(self) -> bool:
        return self._block is not None or self._cut is not None

    def _next_line(self, number: int, line: str) -> Iterator[FoundEvent]:
        """The events of a line that may go on with what has begun before."""
        if self._block is not None:
            if self._belongs(line):
                self._continue_block(number, line.rstrip("\r\n"))
                return
            yield from self._end_block()
        if self._cut is not None and (joined := self._joined(number, line)):
            yield joined
        elif self._parser.may_report(line):
            yield from self._line(number, line.strip("\r\n\0"))
        self._waits = self._is_waiting

    # -- one line ------------------------------------------------------------------------------------------------------

    def _line(self, number: int, line: str) -> Iterator[FoundEvent]:
        if _FIELD.match(line) or _PRETTY.match(line):
            self._begin_block(number, line)
            return
        self.of_users = found = False
        text = plain(line)
        for part in text.split("\r") if "\r" in text else (text,):  # a serial console
            for event in self._read(part, number):
                found = True
                yield FoundEvent(number, line, event)
            if self.of_users:
                break
            if part is not text:
                self._earlier.lines.append(part)
        if found or self.of_users:
            return
        report = self._parser.report_in(text)
        if _CUT.search(text):
            self._cut, self._waits = (number, line), True
        elif report and not prose.mentions(text, report.start()):
            self._count_unread(number, line)

    def _read(self, text: str, number: int, depth: int = 0) -> Iterator[KernelEvent]:
        if is_tag(text):
            self.of_users = True
            return
        place, rest = Place(0), text
        common = common_place(text)
        for place in (common,) if common else places(text):
            rest = text[place.start :]
            if place.after_time and _is_list_of_tasks(text[place.after_time :], rest):
                self.of_users = True
                return
            if rest[:1] in ("{", "[") and depth < _MOST_DEPTH and _may_be_structured(rest, place):
                found = False
                for event in self._of_records(structured.records(rest), number, depth):
                    found = True
                    yield event
                if found or self.of_users:
                    return
            if of_message := self._feed(rest, text, place):
                continues = self._earlier.end_in(text, number, place)
                if continues is Continues.NO:
                    yield of_message
                elif continues is Continues.YES:
                    self.of_users = True
                return
            if not place.guessed and user_text.recognise(rest):
                self.of_users = True
                if place.of_kernel or not place.dated:  # else a host may stand before the identifier of a program
                    return
        if prose.of_program(text, rest, dated=place.dated or bool(place.seconds)):
            self.of_users = True

    def _feed(self, rest: str, text: str, place: Place) -> KernelEvent | None:
        if place.raw:
            if "\\x" in rest:
                rest = unescape(rest)
        elif place.start and text[place.start - 1] in _QUOTES:
            rest = rest.rstrip(f"{_QUOTES},; \t\0")
        if "Xid (" in rest[:24] and not rest.startswith("NVRM: ") and (head := _XID_HEAD.match(rest)):
            rest = f"NVRM: Xid ({rest[head.end() :]}"
        return self._parser.feed(KernelRecord(rest))

    # -- structured records --------------------------------------------------------------------------------------------

    def _of_records(self, records: Iterable[structured.Record], number: int, depth: int = 0) -> Iterator[KernelEvent]:
        for record in records:
            named = record.identifier not in ("", "-", "kernel")
            for text in record.texts:
                if named and not record.of_other_transport:
                    # journald splits the identifier off a record that a program wrote to /dev/kmsg
                    whole = f"{record.identifier}: {text}"
                    if event := self._parser.feed(KernelRecord(whole)):
                        yield event
                        continue
                if record.of_program:
                    self.of_users = self.of_users or self._parser.may_report(text)
                elif self._parser.may_report(text) or record.transport:
                    yield from self._message(text, number, depth, whole=bool(record.transport))

    def _message(self, text: str, number: int, depth: int, *, whole: bool) -> Iterator[KernelEvent]:
        """The events in a text of a structured record: one message, which may have several lines, or a log."""
        if whole:
            if event := self._parser.feed(KernelRecord(text)):
                yield event
            elif user_text.recognise(text):
                self.of_users = True
            return
        lines = plain(text).splitlines()
        if len(lines) > 1 and user_text.recognise(text):
            self.of_users = True
            return
        crash: Place | None = None  # in the line before is text of a user, which may have a line break
        for line in lines:
            place = common_place(line) or next(places(line), Place(0))
            if crash and not (crash.seconds and (place.seconds or place.dated)):
                continue
            yield from self._read(line, number, depth + 1)
            crash = place if user_text.recognise(line[place.start :]) else None
            if len(lines) > 1:
                self._earlier.lines.append(line)

    def _begin_block(self, number: int, line: str) -> None:
        """Starts a record that has a field in each line, with those lines of it that came before."""
        self._block, self._waits = _Block([line], number, line), True
        before: list[str] = []
        for earlier in reversed(self._earlier.lines):
            if not self._belongs(earlier):
                break
            before.append(earlier.strip("\r\n"))
        self._block.lines[:0] = reversed(before)

    def _belongs(self, line: str) -> bool:
        """Whether a line is a part of the present block."""
        assert self._block is not None
        line, begun = line.rstrip("\r\n"), self._block.line
        if len(self._block.lines) > _MOST_LINES:
            return False
        if _PRETTY.match(begun):
            return line.strip() != "" and len(line) - len(line.lstrip()) >= len(begun) - len(begun.lstrip())
        return bool(_FIELD.match(line)) or line.isupper() or "\0" in line

    def _continue_block(self, number: int, line: str) -> None:
        """Adds a line to the present block; it may be the one with the message."""
        assert self._block is not None
        block = self._block
        block.lines.append(line)
        if self._parser.report_in(line) or ("MESSAGE" in line and "MESSAGE" not in block.line):
            self._block = block._replace(number=number, line=line)

    def _end_block(self) -> Iterator[FoundEvent]:
        assert self._block is not None
        block, self._block = self._block, None
        self.of_users = found = False
        record = structured.fields(block.lines)
        for event in self._of_records([record] if record else [], block.number):
            found = True
            yield FoundEvent(block.number, block.line, event)
        if not found and not self.of_users and self._parser.report_in(block.line):
            self._count_unread(block.number, block.line)

    # -- lines that go on, and lines that were not understood ----------------------------------------------------------

    def _joined(self, number: int, line: str) -> FoundEvent | None:
        """The event of a line that was cut, together with this one; without one, the line before was not understood."""
        assert self._cut is not None
        begun = self._cut[1].rstrip("\r\n")
        line = line.rstrip("\r\n")
        rest = line.lstrip(" \t>|")
        for space in () if self._stands_alone(line, begun) else ("", " "):
            whole = plain(f"{begun.rstrip() if space else begun}{space}{rest}")
            for event in self._read(whole, number):
                self._cut = None
                return FoundEvent(number, whole, event)
        self._end_cut()
        return None

    def _stands_alone(self, line: str, begun: str) -> bool:
        """Whether the line has a prefix of the kernel, or names another XID, so that it continues none."""
        names_another = self._parser.names_report(begun) and self._parser.names_report(line)
        return names_another or common_place(line) is not None or _RAW.match(line) is not None

    def _end_cut(self) -> None:
        if self._cut is not None:
            number, line = self._cut
            self._cut = None
            if self._parser.report_in(line):
                self._count_unread(number, line)

    def _count_unread(self, number: int, line: str) -> None:
        self.unread += 1
        if self.unread == 1:
            self.first_unread = number, line


def _may_be_structured(rest: str, place: Place) -> bool:
    """Whether structured data may begin at this place. In a record of the kernel it would be text of a user."""
    quoted = '"' in rest or "'" in rest
    return quoted and not place.seconds and not place.raw and not user_text.recognise(rest)


def _is_list_of_tasks(after_time: str, rest: str) -> bool:
    """Whether what seems to be more of a prefix after the kernel's time is numbers of a task, and then its name."""
    text = after_time.lstrip(" :")
    return text != rest and user_text.recognise(text) is not None
