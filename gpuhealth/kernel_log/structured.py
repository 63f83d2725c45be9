"""Kernel messages in structured records: JSON of any shape, Ruby's form of it, and the fields of a journal entry.

The message may be in any value that is text. Other fields may name who wrote it: a record of a program counts for
nothing, whatever text it carries.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import msgspec

_PROGRAM_KEYS = frozenset(
    ("syslog_identifier", "identifier", "ident", "program", "programname", "appname", "app_name", "app-name",
     "syslogtag", "process", "process.name", "process_name", "logger", "func", "funcname")
)  # fmt: skip
"""Keys, in lower case, of the writer: in journald, rsyslog, syslog-ng, Fluentd, Vector, ECS, and logs of programs."""
_TRANSPORT_KEYS = ("_transport", "transport")
_KERNEL_NAMES = ("", "-", "kernel", "vmkernel", "kmsg", "dmesg")
_MOST_DEPTH = 8
_MOST_RECORDS = 10_000
_PAIR = re.compile(
    r"""(?P<quote>["'])(?P<key>[\w@. -]{1,100})(?P=quote)\s*(?::|=>)\s*"""
    r"""(?:"(?P<text>(?:[^"\\]|\\.){0,65536})"?|'(?P<other>(?:[^'\\]|\\.){0,65536})'|\[(?P<bytes>[\d,\s]{1,65536})\])""",
    re.DOTALL,
)
_YAML = re.compile(r"\s*(?:- )?(?P<key>[\w.-]{1,100}): +(?P<value>\S.*)")
_FIELD = re.compile(r"([A-Z_][A-Z0-9_]{0,63})=(.*)", re.DOTALL)


class Record(NamedTuple):
    """One structured record: the texts in it, and who wrote it."""

    texts: tuple[str, ...]
    identifier: str = ""  # of the writer, as the journal splits it off the message
    transport: str = ""  # by which the journal got it

    @property
    def of_other_transport(self) -> bool:
        """Whether the journal got it from elsewhere than the kernel."""
        return self.transport not in ("", "kernel")

    @property
    def of_program(self) -> bool:
        """Whether a program wrote it."""
        if self.transport:
            return self.transport != "kernel"
        return self.identifier not in _KERNEL_NAMES


def records(text: str) -> Iterator[Record]:
    """The records in a text that begins with structured data; whole JSON documents and others, also truncated."""
    try:
        document = msgspec.json.decode(text.strip().rstrip(","))
    except (msgspec.DecodeError, ValueError, RecursionError):
        pairs = _pairs(text)
        if pairs:
            yield _record(pairs)
        return
    budget = [_MOST_RECORDS]
    yield from _walk(document, budget)


def _walk(value: object, budget: list[int], depth: int = 0) -> Iterator[Record]:
    """A record for each object that is not a part of another one; a list may hold many."""
    if depth > _MOST_DEPTH or budget[0] <= 0:
        return
    if isinstance(value, list):
        for each in value:
            yield from _walk(each, budget, depth + 1)
    elif isinstance(value, str):
        budget[0] -= 1
        yield Record((value,))
    elif isinstance(value, dict):
        budget[0] -= 1
        pairs: list[tuple[str, str]] = []
        lists: list[object] = []
        _flatten(value, "", pairs, lists, depth)
        record = _record(pairs)
        yield record
        if not record.of_program:
            for each in lists:
                yield from _walk(each, budget, depth + 1)


def _flatten(
    value: Mapping[str, object], outer: str, pairs: list[tuple[str, str]], lists: list[object], depth: int
) -> None:
    """Adds the texts of an object and of those in it to `pairs`, and its lists to `lists`."""
    for key, each in value.items():
        if isinstance(each, str):
            full = f"{outer}.{key}".lower()
            pairs.append((full if full in _PROGRAM_KEYS else key, each))
        elif isinstance(each, dict) and depth < _MOST_DEPTH:
            _flatten(each, key, pairs, lists, depth + 1)
        elif isinstance(each, list) and each:
            if all(isinstance(one, int) and 0 <= one < 256 for one in each):
                pairs.append((key, bytes(each).decode("utf-8", "replace")))
            else:
                lists.append(each)


def _pairs(text: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for pair in _PAIR.finditer(text):
        if pair["bytes"] is not None:
            found.append((pair["key"], _from_numbers(pair["bytes"])))
        else:
            found.append((pair["key"], _unquoted(pair["text"] if pair["text"] is not None else pair["other"])))
    return found


def _from_numbers(text: str) -> str:
    numbers = [int(word) for word in text.replace(",", " ").split() if len(word) < 4]
    return bytes(number for number in numbers if number < 256).decode("utf-8", "replace")


def _unquoted(text: str) -> str:
    if "\\" not in text:
        return text
    try:
        decoded: object = msgspec.json.decode(f'"{text}"')
    except (msgspec.DecodeError, ValueError):
        return text
    return decoded if isinstance(decoded, str) else text


def _record(pairs: Iterable[tuple[str, str]]) -> Record:
    texts: list[str] = []
    identifier = transport = ""
    for key, value in pairs:
        name = key.lower()
        if name in _PROGRAM_KEYS or (name == "caller" and ":" in value):  # a file and a line; of the kernel: T123
            identifier = identifier or value.strip().rstrip(":").partition("[")[0]
        elif name in _TRANSPORT_KEYS:
            transport = value
        else:
            texts.append(value)
    return Record(tuple(texts), identifier, transport)


def fields(lines: Iterable[str]) -> Record | None:
    """The record of a journal entry in the formats export, verbose and json-pretty; None where there are no fields."""
    pairs: list[tuple[str, str]] = []
    binary = ""
    for line in lines:
        text = line.strip()
        if found := _FIELD.match(text):
            pairs.append((found[1], found[2]))
        elif binary:  # a size of eight bytes, then the value
            pairs.append((binary, re.sub(r"^.{1,7}\0{1,7}", "", line, count=1, flags=re.DOTALL)))
        binary = text if text.isupper() and text.replace("_", "").isalnum() else ""
    pairs = pairs or _pairs("\n".join(lines))
    pairs = pairs or [(found["key"], found["value"].strip("\"'")) for found in map(_YAML.match, lines) if found]
    return _record(pairs) if pairs else None
