"""Lines that continue a record with text of a user.

/dev/kmsg escapes a line break within a record. Other formats break the line there, and the rest looks like a record of
its own: text of a user (a file's name in a crash) could look like one. Where the kernel's time or the indentation shows
that a line is the rest of such a record, it is no event. Where all times are coarser than a microsecond nothing shows
it.
"""

from __future__ import annotations

import re
from collections import deque

from gpuhealth.kernel_log import user_text
from gpuhealth.kernel_log.escapes import plain
from gpuhealth.kernel_log.prefix import Place, common_place, places

_LINES_OF_A_RECORD = 256  # a record has at most 1 KiB, and a file's name of 255 bytes as many line breaks
_DIGITS = re.compile(r"\d+")
_SECONDS = re.compile(r"\[ *\d{1,12}\.\d{1,9}\]", re.ASCII)


class EarlierLines:
    """The lines before the current one: they show whether it continues a record with text of a user."""

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=_LINES_OF_A_RECORD)
        self._without_time = -1  # number of the last line without a time that was accepted as a record

    def end_in(self, line: str, number: int, place: Place) -> bool:
        """Whether the message at this place of the line with this number is the end of such a record."""
        if place.raw:
            return False
        if place.seconds:
            return self._has_time_of_user_text(place.seconds)
        if place.dated:
            return self._lacks_time(line, place)
        indented = line[:1] in (" ", "\t")
        if not indented and self._without_time == number - 1:
            self._without_time = number
            return False
        record: list[str] = []
        for earlier in reversed(self.lines):
            record.append(earlier)
            ends_indentation = indented and earlier[:1] not in (" ", "\t")
            if ends_indentation or ("." in earlier and _head(earlier).seconds):
                return any(map(_has_user_text, record))
        self._without_time = number  # a log without times: each line may be a record
        return False

    def _has_time_of_user_text(self, seconds: str) -> bool:
        if not self.lines or seconds not in self.lines[-1]:
            return False
        for earlier in reversed(self.lines):
            head = _head(earlier)
            if head.seconds != seconds:
                return False
            if _has_user_text(earlier):
                return True
        return False

    def _lacks_time(self, line: str, place: Place) -> bool:
        """Whether the kernel's time is missing in this line only: a shipper has given each part a prefix of its own."""
        shape = ""
        for earlier in reversed(self.lines):
            time = _SECONDS.search(earlier)
            if time and not time.start():
                return False
            if earlier[:1] != line[:1] and not (earlier[:1].isdigit() and line[:1].isdigit()):
                return False
            shape = shape or _DIGITS.sub("0", line[: place.start])
            if time:
                return _DIGITS.sub("0", earlier[: time.start()]) == shape and _has_user_text(earlier)
            if _DIGITS.sub("0", earlier[: place.start]) != shape:
                return False
        return False


def _head(line: str) -> Place:
    line = plain(line)
    if common := common_place(line):
        return common
    last = Place(0)
    for last in places(line):
        pass
    return last


def _has_user_text(line: str) -> bool:
    line = plain(line)
    common = common_place(line)
    return any(user_text.recognise(line[place.start :]) for place in ((common,) if common else places(line)))
