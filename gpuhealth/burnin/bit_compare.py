"""Compares matrices bit for bit, in any number format."""

from __future__ import annotations

import torch
from torch import Tensor

from gpuhealth.burnin.faults import bits
from gpuhealth.model.burnin_run import Miscompare


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Whether all bits are equal: -0.0 differs from 0.0, and a NaN equals itself."""
    if not left.is_contiguous():  # stored by columns
        left, right = left.t(), right.t()
    left, right = bits(left).flatten(), bits(right).flatten()
    if left.numel() * left.element_size() % 8 == 0:
        left, right = left.view(torch.int64), right.view(torch.int64)
    return torch.equal(left, right)


def compare_bits(what: str, got: Tensor, expected: Tensor) -> Miscompare | None:
    """The first element, row by row, whose bits differ, and how many do; None where all are equal."""
    width = 8 * got.element_size()
    got_bits, expected_bits = bits(got).flatten(), bits(expected).flatten()
    differ = torch.nonzero(got_bits != expected_bits).flatten()
    if not len(differ):
        return None
    index = int(differ[0])
    got_value, expected_value = (int(side[index]) % (1 << width) for side in (got_bits, expected_bits))
    digits = width // 4
    return Miscompare(
        what=what,
        index=index,
        wrong=len(differ),
        xor=f"0x{got_value ^ expected_value:0{digits}x}",
        got=f"0x{got_value:0{digits}x}",
        expected=f"0x{expected_value:0{digits}x}",
    )
