"""What nvidia-smi says: its XML (`-q -x`) and its CSV (`--query-gpu`), as numbers, flags and texts.

The names of elements differ between versions: a value has several paths, and the first one that exists counts. Texts in
place of a value, such as N/A and [Not Supported], are `Unavailable`.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeAlias
from xml.etree import ElementTree

import msgspec

_UNSUPPORTED = frozenset({"n/a", "not supported", ""})
_UNAVAILABLE = (
    "unknown error", "gpu is lost", "gpu requires reset", "insufficient permissions", "reset required", "timeout",
    "err!",
)  # fmt: skip
_DEPRECATED = "requested functionality has been deprecated"
_NUMBER = re.compile(r"(-?\d+(?:\.\d+)?)\s*(%|[A-Za-z/()]*)")
_SCALE = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "W": 1000.0, "us": 1000.0}
"""To the units of the readings: bytes, milliwatts, nanoseconds."""
_FLAGS = {
    "enabled": True, "yes": True, "active": True, "on": True, "pending": True,
    "disabled": False, "no": False, "not active": False, "off": False,
}  # fmt: skip


class Unavailable(msgspec.Struct, frozen=True):
    """A text in place of a value."""

    text: str
    unsupported: bool  # the GPU has no such thing; else it could not be read


Value: TypeAlias = float | bool | str | Unavailable
Convert: TypeAlias = Callable[[str], float | bool | str]


class SmiError(Exception):
    """The output cannot be read; the text says why."""


def number(text: str) -> float:
    """A number in the units of the readings: `8188 MiB`, `95.00 W`, `16x`, `2560 bank(s)`. Raises SmiError."""
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise SmiError(f"{text!r} is no number")
    return float(match[1]) * _SCALE.get(match[2], 1)


def flag(text: str) -> bool:
    """Enabled or Disabled, Yes or No, Active or Not Active. Raises SmiError."""
    if text.lower() not in _FLAGS:
        raise SmiError(f"{text!r} is neither yes nor no")
    return _FLAGS[text.lower()]


def text(value: str) -> str:
    """A text as it is."""
    return value


def one_of(*names: str) -> Convert:
    """The place of a word among these; several words for one place are divided by `|`. Raises SmiError."""
    places = {word: place for place, words in enumerate(names) for word in words.split("|")}

    def place(value: str) -> float:
        if value.lower() not in places:
            raise SmiError(f"{value!r} is none of {', '.join(places)}")
        return float(places[value.lower()])

    return place


def bus_id(value: str) -> str:
    """A PCI address in the form of the readings, such as 0000:3b:00.0. Raises SmiError."""
    match = re.fullmatch(r"([0-9A-Fa-f]{4,8}):([0-9A-Fa-f]{2}):([0-9A-Fa-f]{2})\.([0-7])", value)
    if match is None:
        raise SmiError(f"{value!r} is no PCI address")
    return f"{int(match[1], 16):04x}:{match[2]}:{match[3]}.{match[4]}".lower()


def converted(raw: str, convert: Convert) -> Value | None:
    """The value of a text; None for one that this version of nvidia-smi gives no more."""
    shown = raw.strip().removeprefix("[").removesuffix("]").strip()
    lower = shown.lower()
    if lower == _DEPRECATED:
        return None
    if lower in _UNSUPPORTED:
        return Unavailable(shown, unsupported=True)
    if lower.startswith(_UNAVAILABLE):
        return Unavailable(shown, unsupported=False)
    try:
        return convert(shown)
    except SmiError as error:
        return Unavailable(str(error), unsupported=False)


class Smi:
    """The GPUs of one run of `nvidia-smi -q -x`, by uuid."""

    def __init__(self, xml: str) -> None:
        """Raises SmiError where the text is no such XML."""
        try:
            root = ElementTree.fromstring(xml)
        except ElementTree.ParseError as error:
            raise SmiError(f"no XML: {error}") from None
        if root.tag != "nvidia_smi_log":
            raise SmiError(f"the XML is a {root.tag} and no nvidia_smi_log")
        self.root = root
        self.gpus = {
            uuid.strip(): gpu for gpu in root.findall("gpu") if (uuid := gpu.findtext("uuid", "")).startswith("GPU-")
        }

    def of_driver(self, name: str) -> str:
        """A text about the whole driver; empty where there is none."""
        return self.root.findtext(name, "").strip()

    def values(self, uuid: str, paths: Sequence[str], convert: Convert) -> Value | None:
        """The first of these paths that exists, of one GPU; None where there is none. `a + b` adds."""
        for path in paths:
            found = [self.gpus[uuid].findtext(part) for part in path.split(" + ")]
            if not all(part is not None for part in found):
                continue
            values = [converted(part or "", convert) for part in found]
            if len(values) == 1 or not all(isinstance(value, float) for value in values):
                return values[0]
            return sum(value for value in values if isinstance(value, float))
        return None


def table(output: str, names: Sequence[str]) -> dict[str, dict[str, str]]:
    """The rows of `--query-gpu` with these columns, by uuid, which is the first. Raises SmiError."""
    rows = {}
    for row in csv.reader(io.StringIO(output), skipinitialspace=True):
        if len(row) != len(names):
            raise SmiError(f"{len(row)} columns instead of {len(names)}: {row}")
        rows[row[0].strip()] = dict(zip(names, row, strict=True))
    return rows


def invalid_column(output: str) -> str:
    """The column that this version of nvidia-smi does not have; empty if it complains about none."""
    with suppress(AttributeError):
        match = re.search(r'Field "([^"]+)" is not a valid field', output)
        return match[1] if match else ""
    return ""
