"""Every way in which a function of the simulated driver can lie, and lies within this process."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator, Mapping
from typing import TypeAlias

from nvmlsim.simulator import LIBRARY

Answer: TypeAlias = Mapping[str, int | float | str]
"""What is answered: the words of `nvmlsim lie`."""

CODES = (*range(1, 32), 77, 255, 998, 999, 1000, -1, -(1 << 31))
NUMBERS = (0, 1, 2, 200, -1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 4_000_000_000, 1 << 63, (1 << 64) - 1)
DOUBLES = (0.0, 0.5, -0.5, 1e-300, 1e300, float("nan"), float("inf"), float("-inf"))
TEXTS = ("@empty", "@long", "@invalid", "@control", "text")
TYPES = (*range(11), 255, (1 << 32) - 1)


def answers(*, fields: bool = False, text: bool = False) -> list[Answer]:
    """Every lie about a function that answers with numbers; also with field values, or with text."""
    lies: list[Answer] = [{"code": code} for code in CODES]
    lies += [{"zero": 1}, {"shift": 1}]
    lies += [{"value": number} for number in (*NUMBERS, *DOUBLES)]
    if text:
        lies += [{"text": each} for each in TEXTS]
    if fields:
        lies += [{"type": kind} for kind in TYPES]
        lies += [{"type": kind, "value": number} for kind in TYPES for number in (1, -1, 0.5, float("nan"))]
    return lies


def _library() -> ctypes.CDLL:
    return ctypes.CDLL(str(LIBRARY))


def add(function: str, gpu: int | None = None, **answer: int | float | str) -> None:
    """Adds a lie to the node of this process, as `Simulator.lie` does. Raises ValueError if there is none such."""
    words = [function, *([] if gpu is None else [f"gpu={gpu}"]), *(f"{name}={value}" for name, value in answer.items())]
    given = (ctypes.c_char_p * len(words))(*(word.encode() for word in words))
    if _library().nvmlsimLie(len(words), given):
        raise ValueError(f"no such lie: {' '.join(words)}")


def end() -> None:
    """Ends all lies in the node of this process."""
    _library().nvmlsimTruth()


@contextlib.contextmanager
def tell(function: str, gpu: int | None = None, **answer: int | float | str) -> Iterator[None]:
    """Adds one lie to the node of this process, and ends it. Raises ValueError if there is no such lie."""
    add(function, gpu, **answer)
    try:
        yield
    finally:
        end()
