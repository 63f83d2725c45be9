"""64-bit words: what a device can make by itself and compare exactly, wherever the data has been meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import torch
from torch import Tensor

from gpuhealth.model.burnin_run import Miscompare

BYTES = 8
_AGAIN = 3
_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # 2^64 / golden ratio: odd, and its multiples differ in all their bits


def signed(word: int) -> int:
    """The int64 that has the bits of `word`."""
    return word - (1 << 64) if word >> 63 else word


def numbers(count: int, seed: int, device: torch.device) -> Tensor:
    """`count` words, int64, that differ from one another and from those of other seeds.

    Integer products wrap the same way everywhere, so that every device makes the same words.
    """
    return (
        torch.arange(count, dtype=torch.int64, device=device).add_(signed(seed * 0x1_0000_0001 & _MASK)).mul_(_GOLDEN)
    )


def miscompare(what: str, held: Tensor, wanted: Tensor | int, offset_bytes: int = 0) -> Miscompare | None:
    """The first word of `held` that is not as `wanted`, and how many are not.

    Both int64 of one dimension, on the same device, which compares; `index` is the byte offset of the first wrong byte,
    counted from `offset_bytes`.
    """
    wrong = held.ne(wanted)
    count = int(wrong.count_nonzero())
    if not count:
        return None
    index = int(wrong.view(torch.uint8).argmax())  # of equal values the first, as torch documents
    got = int(held[index]) & _MASK
    expected = (wanted if isinstance(wanted, int) else int(wanted[index])) & _MASK
    xor = got ^ expected
    byte = ((xor & -xor).bit_length() - 1) // 8  # little-endian: the lowest bits stand in the first byte
    return Miscompare(
        what=what,
        index=offset_bytes + BYTES * index + byte,
        wrong=count,
        xor=f"0x{xor:016x}",
        got=f"0x{got:016x}",
        expected=f"0x{expected:016x}",
    )


def classified(miss: Miscompare, again: Callable[[], Miscompare | None]) -> Miscompare:
    """The miss with its kind: `again` does the same once more and compares."""
    wrong = sum(again() is not None for _ in range(_AGAIN))
    kind = "repeatable" if wrong else "transient"
    return msgspec.structs.replace(miss, kind=kind, repeats=f"{wrong} of {_AGAIN} when done again")


def in_words(miss: Miscompare) -> str:
    """A miss as a part of a sentence."""
    kind = f", {miss.kind.replace('_', ' ')}" if miss.kind else ""
    return (
        f"{miss.wrong} wrong words of 64 bits in {miss.what}, the first at byte {miss.index:#x} (bits {miss.xor}{kind})"
    )


def failure(misses: Sequence[Miscompare]) -> str:
    """What is wrong, as a part of a sentence that names the first miss; empty without one."""
    if not misses:
        return ""
    return in_words(misses[0]) + (f"; {len(misses) - 1} more like it" if len(misses) > 1 else "")
