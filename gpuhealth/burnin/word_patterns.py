"""64-bit words that every device can generate by itself, so that data is compared exactly wherever it was copied to."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import torch
from torch import Tensor

from gpuhealth.burnin.device import Device
from gpuhealth.model.burnin_run import Miscompare

BYTES = 8
BUFFER_BYTES = 512 << 20  # as nvbandwidth's: far beyond any cache
SMALL_BUFFER_BYTES = 1 << 20
_SHARE_OF_FREE = 8  # source, target, and what they are compared with must fit
_REPEATS = 3
_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # 2^64 / golden ratio: odd, and its multiples differ in all their bits


def signed(word: int) -> int:
    """The int64 with the same bits as an unsigned 64-bit word."""
    return word - (1 << 64) if word >> 63 else word


def buffer_words(device: Device) -> int:
    """The number of words of a buffer for timing copies."""
    wanted = SMALL_BUFFER_BYTES if device.small else BUFFER_BYTES
    return min(wanted, device.free_bytes() // _SHARE_OF_FREE) // BYTES


def distinct_words(count: int, seed: int, device: torch.device) -> Tensor:
    """`count` int64 words that differ from each other, and position by position from those of other seeds.

    Integer products wrap in the same way everywhere, so that every device generates the same words.
    """
    return (
        torch.arange(count, dtype=torch.int64, device=device).add_(signed(seed * 0x1_0000_0001 & _MASK)).mul_(_GOLDEN)
    )


def compare_words(what: str, got: Tensor, expected: Tensor | int, offset_bytes: int = 0) -> Miscompare | None:
    """The first word that differs, and how many do; None where all are equal.

    Both are int64 of one dimension on the same device, which compares them. The index is the byte offset of the first
    wrong byte, counted from `offset_bytes`.
    """
    wrong = got.ne(expected)
    count = int(wrong.count_nonzero())
    if not count:
        return None
    index = int(wrong.view(torch.uint8).argmax())  # of equal values the first, as torch documents
    got_word = int(got[index]) & _MASK
    expected_word = (expected if isinstance(expected, int) else int(expected[index])) & _MASK
    xor = got_word ^ expected_word
    byte = ((xor & -xor).bit_length() - 1) // 8  # little-endian: the lowest bits are in the first byte
    return Miscompare(
        what=what,
        index=offset_bytes + BYTES * index + byte,
        unit="byte",
        wrong=count,
        xor=f"0x{xor:016x}",
        got=f"0x{got_word:016x}",
        expected=f"0x{expected_word:016x}",
    )


def classify(miss: Miscompare, repeat: Callable[[], Miscompare | None]) -> Miscompare:
    """Add `kind` and `repeats` to a miscompare; `repeat` does the operation once more and compares again."""
    wrong = sum(repeat() is not None for _ in range(_REPEATS))
    kind = "repeatable" if wrong else "transient"
    return msgspec.structs.replace(miss, kind=kind, repeats=f"{wrong} of {_REPEATS} when repeated")
