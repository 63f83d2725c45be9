"""Escaped and unprintable characters in the text of a log."""

from __future__ import annotations

import re

_ESCAPED = re.compile(rb"\\x([0-9a-fA-F]{2})")


def unescape(text: str) -> str:
    r"""The text of a raw record, in which the kernel escapes unprintable characters as `\x0a`."""
    raw = text.encode("utf-8", "surrogatepass")
    return _ESCAPED.sub(lambda match: bytes.fromhex(match[1].decode()), raw).decode("utf-8", "replace")
