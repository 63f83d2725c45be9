"""What a fuzz target is, and the checks that several of them make."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any, Protocol

import msgspec
import structlog

_JSON = msgspec.json.Decoder()


class BrokenRuleError(AssertionError):
    """A rule that has to hold for every input does not hold; the text says which."""


class FuzzTarget(Protocol):
    """Makes inputs for one boundary, and checks what gpuhealth does with them.

    A case is what is saved, timed and reproduced; it may consist of many inputs, such as the lines of a log.
    """

    def make(self, chance: random.Random, /) -> bytes:
        """A case, decided by `chance` alone."""

    def check(self, case: bytes, /) -> int:
        """Runs the case; returns the number of inputs in it. Raises an error where a rule is broken."""

    def close(self) -> None:
        """Releases files, servers and patches."""


def require(holds: object, rule: str) -> None:
    """Raises BrokenRuleError unless the rule holds."""
    if not holds:
        raise BrokenRuleError(rule)


def encoded(value: object, most_bytes: int) -> bytes:
    """The value as JSON, which must be possible, read back, and be of bounded size."""
    text = msgspec.json.encode(value)
    require(len(text) <= most_bytes, f"{len(text)} bytes of JSON, at most {most_bytes} are allowed")
    return text


def require_printable(text: str, what: str, most_characters: int = 1 << 16, allowed: str = "") -> None:
    """The text reaches a terminal, the Node or a log: no control characters but those allowed, and bounded."""
    require(len(text) <= most_characters, f"{what} has {len(text)} characters, at most {most_characters} are allowed")
    if text.isprintable():
        return
    odd = sorted({character for character in text if not character.isprintable()} - set(allowed))
    require(not odd, f"{what} has the control characters {odd[:5]!a}: {text[:200]!a}")


def require_sentence(error: object, what: str, most_characters: int = 2000) -> None:
    """An error for people is one printable sentence."""
    text = str(error)
    require(text.strip(), f"{what} is empty")
    require_printable(text, what, most_characters)


class _Discard:
    """A logger that renders nothing: targets check results, and errors that are only logged count as handled."""

    def __getattr__(self, _: str) -> Any:
        return self._drop

    def _drop(self, *_: object, **__: object) -> None:
        pass


@contextlib.contextmanager
def quiet_log() -> Iterator[None]:
    """No log output meanwhile."""
    before = structlog.get_config()
    structlog.configure(
        processors=[_dropped], wrapper_class=structlog.BoundLogger, logger_factory=structlog.ReturnLoggerFactory()
    )
    try:
        yield
    finally:
        structlog.configure(**before)


def _dropped(_: object, __: str, ___: Any) -> Any:
    raise structlog.DropEvent


def documents(output: bytes) -> list[Any]:
    """The JSON documents of an output of one per line. Raises BrokenRuleError for anything else."""
    try:
        return [_JSON.decode(line) for line in output.split(b"\n") if line]
    except msgspec.DecodeError as error:
        raise BrokenRuleError(f"the output is not JSON: {error}: {output[:200]!a}") from None
