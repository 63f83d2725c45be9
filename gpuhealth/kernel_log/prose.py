"""Text that mentions a kernel message without being one: sentences, source code, log lines of programs."""

from __future__ import annotations

import re

# Only words and punctuation before the mention: "what does NVRM: Xid (…" A log's prefix has digits or brackets.
_SENTENCE = re.compile(
    r"[^\w]*(?:[^\W\d_]['\u2019\w-]*[,;.!?]?[\s\"'`(*]+){2,}(?:[^\W\d_]+:)?[\s\"'`(*]*(?:NVRM: )?S?$"
)
_SENTENCE_AFTER = re.compile(r"Xid \([^()]{1,40}\):? \d{1,6}[\"'`)]? (?!pid=)[a-z]{2,}", re.ASCII)
_COMMENT = re.compile(r"\s*(?:#|//|/\*|<!--|;|--\s)")
_CODE = re.compile(r"(?:[\w\])] *(?:[:+=!]?=|<-) *[frbu]?|\w\([^\"'`]{0,40})[\"'`][^\"'`]{0,120}$", re.ASCII)
_SOURCE = re.compile(r"[\w-]\.(?:go|py|rs|cc?|cpp|h|java|js|ts|rb|sh|md|rst):\d", re.ASCII)
_KLOG = re.compile(r"[IWEF]\d{4} \d\d:\d\d:\d\d", re.ASCII)
# `python[12]: `, also behind a host; and the program and its process id of RFC 5424.
_IDENTIFIER = re.compile(
    r"(?:[\w.:%@-]{1,253} +)?(?!NVRM|nvidia-nv|(?:vm)?kernel\b)"
    r"(?:[\w./@-]{1,80}(?:\[[\w-]{1,12}\])?: |[\w./@-]{1,80} (?:\d+|-) \S+ (?:-|\[))"
)


def mentions(text: str, mention: int) -> bool:
    """Whether the report of a fault at this position is only mentioned."""
    before = text[:mention]
    return bool(
        _SENTENCE.match(before)
        or _COMMENT.match(before)
        or _CODE.search(before)
        or _SENTENCE_AFTER.match(text, mention)
        or _SOURCE.search(before)
    )


def of_program(text: str, message: str, *, dated: bool) -> bool:
    """Whether the line is of the log of a program other than the kernel; `message` is what follows its time, if any."""
    return bool(_KLOG.search(text[:200]) or (dated and _IDENTIFIER.match(message)))
