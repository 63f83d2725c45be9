"""Changes valid samples into odd ones: texts, bytes, and values of JSON. Fast, and decided by one random.Random."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

TEXTS = (
    "", " ", "\n", "\0", "\x1b[2J\x1b[31m", "\r", "\t", "\x7f", "\x85", "\u2028", "\u202e", "\ufeff", "é", "²", "١",
    "𝟗", "\ud800",
    "-", "--", "-1", "0", "00", "0x", "1e999", "nan", "inf", "None", "null", "true", "{}", "[]", '"', "'", "\\",
    "\\x0a", "\\x1b",
    "%s", "{0}", "$(x)", "../..", "/", "a" * 300, "9" * 30, "9" * 5000, "[" * 500, "<" * 500, "GPU-", "xid.79", "node",
    "2026-02-30T00:00:00Z", "0000-01-01T00:00:00Z", "9999-12-31T23:59:59-12:00", "2026-01-01T00:00:00+99:99", "1h",
    "-5s", "1e300s",
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 2, 3, 7, 8, 15, 16, 42, 79, 100, 127, 128, 255, 256, 999, 1000, 65535, 65536, 2**31 - 1, 2**31,
    2**32 - 1, 2**32,
    2**53, 2**63 - 1, 2**63, 2**64 - 1, -(2**31), -(2**63), 10**15, 10**18,
)  # fmt: skip
FLOATS = (0.0, -0.0, 0.5, -1.5, 1e-320, 1e15, 1e300, -1e300, 1.7976931348623157e308)


def text(chance: random.Random) -> str:
    """A text that few programs expect: control characters, odd digits, very long ones, and the like."""
    roll = chance.random()
    if roll < 0.7:
        return chance.choice(TEXTS)
    length = chance.choice((1, 2, 3, 8, 20, 80))
    return "".join(
        chr(chance.choice((chance.randrange(32), chance.randrange(32, 127), chance.randrange(0x3000))))
        for _ in range(length)
    )


def encodable_text(chance: random.Random) -> str:
    """An odd text that is valid UTF-8, as in JSON."""
    return text(chance).replace("\ud800", "\ufffd")


def value(chance: random.Random, depth: int = 0) -> Any:
    """Any value of JSON."""
    roll = chance.randrange(10 if depth < 3 else 7)
    if roll < 1:
        return None
    if roll < 2:
        return chance.random() < 0.5
    if roll < 4:
        return chance.choice(NUMBERS)
    if roll < 5:
        return chance.choice(FLOATS)
    if roll < 7:
        return encodable_text(chance)
    if roll < 8:
        return [value(chance, depth + 1) for _ in range(chance.randrange(4))]
    if roll < 9:
        return {encodable_text(chance): value(chance, depth + 1) for _ in range(chance.randrange(3))}
    return chance.choice(([], {}, [[]], {"": {}}, [None], "", 0))


def places(item: Any) -> list[tuple[Any, Any]]:
    """Every container and key within a value."""
    found: list[tuple[Any, Any]] = []
    left = [item]
    while left:
        outer = left.pop()
        for key, inner in outer.items() if isinstance(outer, dict) else enumerate(outer):
            found.append((outer, key))
            if isinstance(inner, dict | list):
                left.append(inner)
    return found


def mutate_value(item: Any, chance: random.Random, changes: int = 2) -> None:
    """Replaces, removes, duplicates or swaps up to `changes` values within a value, in place."""
    for _ in range(chance.randint(1, changes)):
        found = places(item)
        if not found:
            return
        outer, key = chance.choice(found)
        roll = chance.random()
        if roll < 0.55:
            outer[key] = value(chance)
        elif roll < 0.7:
            del outer[key]
        elif roll < 0.85:
            other, other_key = chance.choice(found)
            if not isinstance(other[other_key], dict | list) and not isinstance(outer[key], dict | list):
                outer[key], other[other_key] = other[other_key], outer[key]
        elif isinstance(outer, list):
            outer.insert(key, outer[key] if not isinstance(outer[key], dict | list) else copied(outer[key]))
        else:
            outer[encodable_text(chance)] = value(chance)


def copied(item: Any) -> Any:
    """A deep copy of a value of JSON; several times faster than copy.deepcopy."""
    if isinstance(item, dict):
        return {key: copied(inner) for key, inner in item.items()}
    if isinstance(item, list):
        return [copied(inner) for inner in item]
    return item


def mutate_bytes(data: bytes, chance: random.Random, words: Sequence[bytes] = ()) -> bytes:
    """A copy of the data with a few changes: bits, bytes, parts cut, doubled, moved or replaced by a word."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 6))):
        at = int(chance.random() * (len(changed) + 1))
        roll = chance.random()
        if roll < 0.2 and at < len(changed):
            changed[at] ^= 1 << chance.randrange(8)
        elif roll < 0.35 and at < len(changed):
            changed[at] = chance.randrange(256)
        elif roll < 0.5:
            del changed[at : at + chance.choice((1, 1, 2, 4, 16, 64))]
        elif roll < 0.6:
            changed[at:at] = changed[at : at + chance.choice((1, 4, 32))]
        elif roll < 0.7:
            changed[at:at] = bytes(chance.randrange(256) for _ in range(chance.choice((1, 2, 8))))
        elif roll < 0.95:
            word = (
                chance.choice(words)
                if words and chance.random() < 0.6
                else text(chance).encode("utf-8", "surrogatepass")
            )
            changed[at : at + chance.choice((0, 0, len(word)))] = word
        else:
            del changed[at:]
    return bytes(changed)


def smaller(case: bytes, fails: Callable[[bytes], bool], tries: int = 400) -> None:
    """Calls `fails` with ever smaller cases: of JSON without some items, of text without some lines, else some bytes.

    It goes on with each that still fails, and the caller keeps the last one.
    """
    try:
        item = json.loads(case)
    except ValueError:
        separator = b"\n" if b"\n" in case else b""
        parts = case.split(separator) if separator else [bytes([byte]) for byte in case]
        _leave_out(parts, lambda rest: fails(separator.join(rest)), tries)
        return
    lists = [inner for outer, key in places([item]) if isinstance(inner := outer[key], list)]
    for items in lists:
        if len(items) > 1:

            def fails_without(rest: list[Any], items: list[Any] = items) -> bool:
                before, items[:] = [*items], rest
                failing = fails(json.dumps(item).encode())
                if not failing:
                    items[:] = before
                return failing

            _leave_out([*items], fails_without, tries // len(lists) + 4)


def _leave_out(parts: list[Any], fails: Callable[[list[Any]], bool], tries: int) -> None:
    size = len(parts) // 2
    while size and tries > 0:
        at = 0
        while at < len(parts) and tries > 0:
            tries -= 1
            rest = parts[:at] + parts[at + size :]
            if rest and fails(rest):
                parts = rest
            else:
                at += size
        size //= 2
