"""Assembles kernel-log records into messages, and parses the event in each one.

The patterns belong to the monitors. This module defines the order in which they are tried, and the rule that keeps a
program from forging a fault: a record with text of a user is recognised as such before any pattern may read it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType

import msgspec

from gpuhealth.kernel_log import user_text
from gpuhealth.kernel_log.pattern import Ends, LogPatterns, PartialMessage, event_of
from gpuhealth.kernel_log.user_text import UserText
from gpuhealth.model.kernel_event import KernelEvent, KernelRecord
from gpuhealth.runtime.text import printable

NO_WORDS: Mapping[str, Collection[str]] = MappingProxyType({})
_MAX_RECORDS_BETWEEN = 16
"""How many other records may appear between the lines of one message."""


class KernelLogParser:
    """Parses one kernel log, record by record. It stores only the first line of an incomplete message.

    `may_matter(text)` is whether a line, with or without a log's prefix, can have a meaning: cheap, no false negatives.
    `names_report(text)` is whether `report_in` can find something, and `may_report(text)` whether either is the case.
    """

    def __init__(self, patterns: Sequence[LogPatterns], driver_branch: int | None = None) -> None:
        self.driver_branch = driver_branch  # of the NVIDIA driver (570, 575 …), once it is known
        self.may_matter = any_of(
            {word for pattern in patterns for word in pattern.words},
            {word: others for pattern in patterns for word, others in pattern.guarded_words.items()},
        )
        self._read = [pattern.read for pattern in patterns]
        self._ends = [pattern.ends for pattern in patterns if pattern.ends]
        self._read_first = [pattern.read_first for pattern in patterns if pattern.read_first]
        self._user_text = {form: read for pattern in patterns for form, read in pattern.user_text.items()}
        self._after_user_text = {form: read for pattern in patterns for form, read in pattern.after_user_text.items()}
        self._reports = [pattern.reports for pattern in patterns if pattern.reports]
        self._details = [pattern.details for pattern in patterns if pattern.details]
        self._partial: PartialMessage | None = None
        self._records_since = 0
        self.names_report = any_of({word for pattern in patterns for word in pattern.report_words})
        self.may_report = any_of({word for pattern in patterns for word in (*pattern.words, *pattern.report_words)})

    def report_in(self, text: str) -> re.Match[str] | None:
        """Where the text reports a fault, in whatever form; None where it does not, or only adds details."""
        for pattern in self._reports:
            found = pattern.search(text)
            if found and not any(detail.search(text) for detail in self._details):
                return found
        return None

    def feed(self, record: KernelRecord) -> KernelEvent | None:
        """The event of this record, if it has one, in printable text. Never raises, for any text."""
        event = self._feed(record)
        return event if event is None or event.line.isprintable() else _printable(event)

    def _feed(self, record: KernelRecord) -> KernelEvent | None:
        if self._partial is not None:
            self._count_record()
        text = record.text
        if not self.may_matter(text):
            return None
        for read_first in self._read_first:
            if event := read_first(record, self.driver_branch):
                return None if user_text.file_first(text) else event
        if form := user_text.event_form(text):
            return self._of_user_text(record, form)
        # Most records have no meaning, so the check for text of a user is cheaper when it comes last.
        partial = self._partial
        found = self._by_patterns(record)
        if found is None:
            return None
        if user_text.recognise(text):
            self._partial = partial
            return None
        if isinstance(found, PartialMessage):
            self._partial, self._records_since = found, 0
            return found.event
        return found

    def ends(self, record: KernelRecord, event: KernelEvent | None) -> Ends | None:
        """The earlier faults that this record, with its event if it has one, proves to be over; mostly None."""
        return next((ends for pattern in self._ends if (ends := pattern(record, event))), None)

    def _of_user_text(self, record: KernelRecord, form: UserText) -> KernelEvent | None:
        if finish := self._after_user_text.get(form.form):
            self._partial, self._records_since = PartialMessage(finish), 0
        read = self._user_text.get(form.form)
        return event_of(record, form.form, read(form.parts)) if read else None

    def _by_patterns(self, record: KernelRecord) -> KernelEvent | PartialMessage | None:
        if self._partial is not None and (event := self._partial.finish(record)):
            self._partial = None
            return event
        for read in self._read:
            if found := read(record, self.driver_branch):
                return found
        return None

    def _count_record(self) -> None:
        """Counts another record, or the last of the message; after too many the message is dropped."""
        self._records_since += 1
        if self._records_since > _MAX_RECORDS_BETWEEN + 1:
            self._partial = None


def _printable(event: KernelEvent) -> KernelEvent:
    """The event without control characters, which a program may have in its name: it is shown, and sent as JSON."""
    return msgspec.structs.replace(
        event,
        line=printable(event.line),
        meaning=printable(event.meaning),
        process=None if event.process is None else printable(event.process),
        disk=printable(event.disk),
    )


def any_of(words: Collection[str], guarded: Mapping[str, Collection[str]] = NO_WORDS) -> Callable[[str], bool]:
    """Return a function that tests whether one of the words is in a text, or one guarded word and one of its others.

    Nearly all lines of a log have no meaning, and this test is what makes reading them cheap. A compiled expression of
    plain substring tests is several times faster here than a loop over the words, or one regular expression.
    """
    shortest = [word for word in words if not any(other != word and other in word for other in words)]
    tests = " or ".join(f"{word!r} in text" for word in sorted(shortest))
    for word, others in guarded.items():
        tests += f" or {word!r} in text and ({' or '.join(f'{other!r} in text' for other in others)})"
    found: Callable[[str], bool] = eval(f"lambda text: {tests.removeprefix(' or ') or False}")  # noqa: S307 - built from constants only
    return found
