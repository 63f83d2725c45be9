"""Text of a log as it was before a kernel, terminal, shipper or web page escaped it."""

from __future__ import annotations

import html
import re

_ESCAPED = re.compile(rb"\\x([0-9a-fA-F]{2})")
# Colours and other sequences of a terminal; also with the escape character as rsyslog, `less` or JSON show it.
_ESCAPE = r"(?:\x1b|\^\[|#033|\\x1b|\\033|\\u001b|\\e)"
_TERMINAL = re.compile(rf"{_ESCAPE}(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[()][0-9A-B])")
_ENTITY = re.compile(r"&(?:[a-z]{2,6}|#\d{2,6}|#x[0-9a-f]{2,5});", re.IGNORECASE)


def unescape(text: str) -> str:
    r"""The text of a raw record, in which the kernel escapes unprintable characters as `\x0a`."""
    raw = text.encode("utf-8", "surrogatepass")
    return _ESCAPED.sub(lambda match: bytes.fromhex(match[1].decode()), raw).decode("utf-8", "replace")


def plain(line: str) -> str:
    """The line without sequences for a terminal, and without entities of HTML."""
    if "[" in line and ("\x1b" in line or "^[" in line or "33[" in line or "1b[" in line or "\\e[" in line):
        line = _TERMINAL.sub("", line)
    if "\x1b" in line:
        line = _TERMINAL.sub("", line).replace("\x1b", "")
    if "&" in line and _ENTITY.search(line):
        line = html.unescape(line)
    return line
