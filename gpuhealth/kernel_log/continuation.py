"""Lines that continue a record with text of a user.

/dev/kmsg escapes a line break within a record. Other formats break the line there, and the rest looks like a record of
its own: text of a user (a file's name in a crash) could look like one. Where the kernel's time or the indentation shows
that a line is the rest of such a record, it is no event. Where all times are coarser than a microsecond nothing shows
it.
"""

from __future__ import annotations

import re
from collections import deque
from enum import Enum, auto
from typing import NamedTuple

from gpuhealth.kernel_log import structured, user_text
from gpuhealth.kernel_log.escapes import plain
from gpuhealth.kernel_log.prefix import Place, common_place

_LINES_OF_A_RECORD = 256  # a record has at most 1 KiB, and a file's name of 255 bytes as many line breaks
_SHORTEST_DATED, _MOST_DATED = 16, 16  # a name of 255 bytes has not more lines that begin with a date
_DIGITS = re.compile(r"\d+")
_SECONDS = re.compile(r"\[ *(\d{1,12}\.\d{1,9})\](?: ?\[ *[TC]\d+\])? ?", re.ASCII)


class Continues(Enum):
    """Whether a line continues a record with text of a user."""

    NO = auto()
    PERHAPS = auto()  # or it is of another log in the same file
    YES = auto()


class EarlierLines:
    """The lines before the current one: they show whether it continues a record with text of a user."""

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=_LINES_OF_A_RECORD)
        self._without_time = -1  # number of the last line without a time that was accepted as a record

    def end_in(self, line: str, number: int, place: Place) -> Continues:
        """Whether the message at this place of the line with this number is the end of such a record."""
        if place.raw:
            return Continues.NO
        if line[:1] in (" ", "\t") and self._ends_user_text(line, number):
            return Continues.YES
        if place.seconds:
            return Continues.YES if self._has_time_of_user_text(place.seconds) else Continues.NO
        if place.dated:
            return self._lacks_time(line)
        return Continues.YES if self._ends_user_text(line, number) else Continues.NO

    def _ends_user_text(self, line: str, number: int) -> bool:
        """Whether a line without any time ends such a record."""
        indented = line[:1] in (" ", "\t")
        if not indented and self._without_time == number - 1:
            self._without_time = number
            return False
        if indented:
            record: list[str] = []
            for earlier in reversed(self.lines):
                record.append(earlier)
                if earlier[:1] not in (" ", "\t"):
                    return _has_user_text(record) or self._record_has_user_text("")
        elif any("." in earlier and _head(earlier).seconds for earlier in self.lines):
            return self._record_has_user_text("")
        self._without_time = number  # a log without times: each line may be a record
        return False

    def _has_time_of_user_text(self, seconds: str) -> bool:
        last = self.lines[-1] if self.lines else ""
        if not last or (seconds not in last and (_SECONDS.search(last) or common_place(last))):
            return False
        return self._record_has_user_text(seconds)

    def _lacks_time(self, line: str) -> Continues:
        """Whether the kernel's time is missing in this line, and is in one just before, after the same outer prefix."""
        compared = 0
        for earlier in reversed(self.lines):
            if len(earlier) < _SHORTEST_DATED:
                continue
            if time := _SECONDS.search(earlier):
                outer = "" if earlier.startswith("{") else earlier[: time.start()]
                if not (_begins_like(line, outer) and self._record_has_user_text("")):
                    return Continues.NO
                return Continues.YES if outer else Continues.PERHAPS
            compared += 1
            if compared == _MOST_DATED:
                break
        return Continues.NO

    def _record_has_user_text(self, seconds: str) -> bool:
        """Whether the record that the last lines belong to has text of a user: that of this time, or the last one."""
        record: list[str] = []
        for earlier in reversed(self.lines):
            head = _head(earlier)
            if head.seconds and seconds and head.seconds != seconds:
                return False
            seconds = seconds or head.seconds
            record.append(head.text)
            if head.seconds and _has_user_text(_without_prefix(record, head.outer)):
                return True
        return False


def _begins_like(line: str, prefix: str) -> bool:
    """Whether the line begins with this prefix, but for other digits."""
    if prefix and line[:1] != prefix[0] and not (line[:1].isdigit() and prefix[0].isdigit()):
        return False  # most lines of a file that mixes formats, without the cost of what follows
    return _DIGITS.sub("0", line).startswith(_DIGITS.sub("0", prefix))


def _without_prefix(record: list[str], outer: str) -> list[str]:
    """The lines of a record without the prefix that a shipper or viewer has put before each of them."""
    if not outer:
        return record
    prefix = re.compile(_DIGITS.sub(r"\\d+", re.escape(outer)))
    return [prefix.sub("", line, count=1) if prefix.match(line) else line for line in record]


def _has_user_text(record: list[str]) -> bool:
    """Whether the record whose lines these are, the last one first, has text of a user."""
    return user_text.recognise("\n".join(reversed(record))) is not None


class _Head(NamedTuple):
    seconds: str  # the kernel's time, as written
    outer: str  # what stands before it
    text: str  # the message


def _head(line: str) -> _Head:
    """The head of a line; of a structured record that of the text with the kernel's time, else its longest text."""
    if line.startswith("{"):
        texts = [text for record in structured.records(line) for text in record.texts if text[:1] not in ("", "{")]
        heads = map(_head, texts)
        return max(heads, key=lambda head: (head.seconds != "", len(head.text)), default=_Head("", "", ""))
    line = plain(line).rstrip("\r\n")
    if time := _SECONDS.search(line):
        return _Head(time[1], line[: time.start()], line[time.end() :])
    return _Head("", "", line.lstrip())
