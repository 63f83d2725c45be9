"""Text from outside that is shown to people, or sent as JSON."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with control characters and unpaired surrogates escaped: it controls no terminal, and is valid UTF-8."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)
