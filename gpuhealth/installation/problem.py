"""What a check of an installation results in: problems, or the reason why it could not be made. Pure."""

from __future__ import annotations

import enum
from collections.abc import Iterable

import msgspec

NAMES_SHOWN = 3


class Level(enum.StrEnum):
    """How bad a problem is."""

    ERROR = "error"  # something does not work
    WARNING = "warning"  # something works less well than expected, or will not work when it is needed
    INFO = "info"  # worth knowing; nothing to do


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """One problem of the installation."""

    check: str = ""  # name of the check that found it
    level: Level
    message: str  # what is wrong and where, in one sentence
    fix: str = ""  # what to do, in one sentence
    objects: tuple[str, ...] = ()  # names of all objects that have it, of which the message names some


class NotChecked(msgspec.Struct, frozen=True, kw_only=True):
    """A check, or a part of one, that could not be made."""

    check: str
    reason: str
    supported: bool = True  # False: this server lacks what the check is about, so there is nothing to check


class CannotCheckError(Exception):
    """A check cannot be made; the text is the reason."""

    def __init__(self, reason: str, *, supported: bool = True) -> None:
        super().__init__(reason)
        self.supported = supported


def error(message: str, fix: str = "", objects: Iterable[str] = ()) -> Problem:
    """A problem because of which something does not work."""
    return Problem(level=Level.ERROR, message=message, fix=fix, objects=tuple(objects))


def warning(message: str, fix: str = "", objects: Iterable[str] = ()) -> Problem:
    """A problem because of which something works less well than expected."""
    return Problem(level=Level.WARNING, message=message, fix=fix, objects=tuple(objects))


def info(message: str, fix: str = "", objects: Iterable[str] = ()) -> Problem:
    """A fact worth knowing that requires no action."""
    return Problem(level=Level.INFO, message=message, fix=fix, objects=tuple(objects))


def some_of(names: Iterable[str]) -> str:
    """The first names of a list, and how many more there are: `a, b, c and 17 more`."""
    known = list(names)
    more = f" and {len(known) - NAMES_SHOWN} more" if len(known) > NAMES_SHOWN else ""
    return ", ".join(known[:NAMES_SHOWN]) + more
