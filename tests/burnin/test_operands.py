"""Operands are exact by construction: no draw breaks the bound, no order of sums changes a bit, no flip is missed."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from gpuhealth.burnin.faults import bits, flip
from gpuhealth.burnin.gemm import FORMATS, GemmFormat, GemmShape, multiply
from gpuhealth.burnin.operands import OperandPair, draw

SEEDS = st.integers(0, 2**32)
MANY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
FEW = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
FORM = pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)


@st.composite
def _shapes(draw_from: st.DrawFn) -> GemmShape:
    return GemmShape(*(draw_from(st.integers(1, most)) for most in (24, 90, 24)))


def _fitting(fmt: GemmFormat, shape: GemmShape) -> GemmShape:
    """The shape, rounded up to sizes that the library accepts for the format."""
    step = fmt.multiple_of
    return GemmShape(*(-(-size // step) * step for size in (shape.m, shape.k, shape.n)))


def _integers(pair: OperandPair) -> tuple[Tensor, Tensor]:
    return pair.left.integers(slice(None)), pair.right.integers(slice(None))


@FORM
@MANY
@given(shape=_shapes(), seed=SEEDS)
def test_no_draw_breaks_the_bound(fmt: GemmFormat, shape: GemmShape, seed: int) -> None:
    """Σ|a·b| of every element fits the accumulator, the sum fits the output, and no output is zero."""
    a, b = _integers(draw(fmt, shape, seed))
    assert int((a.abs() @ b.abs()).max()) <= 1 << fmt.sum_bits
    result = a @ b
    assert int(result.abs().max()) <= 1 << min(fmt.output_bits, fmt.sum_bits)
    if fmt.output.is_floating_point:
        assert bool((result != 0).all())


@FORM
@MANY
@given(shape=_shapes(), seed=SEEDS)
def test_operands_and_outputs_are_normal_numbers_that_mean_their_integers(
    fmt: GemmFormat, shape: GemmShape, seed: int
) -> None:
    """Operands are made without rounding, and no operand or output is subnormal or infinite."""
    pair = draw(fmt, shape, seed)
    for operand in (pair.left, pair.right):
        assert operand.times(torch.ones(operand.values.shape[1], dtype=torch.int64))[1].all()
    middle, _ = pair.right.times(pair.vector)
    assert torch.equal(pair.left.times(middle)[0], pair.expected)
    if fmt.output.is_floating_point:
        for values in (pair.left.values, pair.right.values, pair.truth(torch.arange(shape.m))):
            wide = values.to(torch.float64).abs()
            assert bool(wide.isfinite().all())
            assert bool(((wide == 0) | (wide >= torch.finfo(values.dtype).tiny)).all())


@FORM
@MANY
@given(shape=_shapes(), seed=SEEDS)
def test_every_order_of_summation_gives_the_same_bits(fmt: GemmFormat, shape: GemmShape, seed: int) -> None:
    """Summing in shuffled order, in parts, or term by term gives the same bits, in the accumulator's format."""
    pair = draw(fmt, shape, seed)
    truth = pair.truth(torch.arange(shape.m))
    chance = random.Random(seed)
    accumulator = {torch.float64: torch.float64, torch.int32: torch.int64}.get(fmt.output, torch.float32)
    left, right = (operand.values.to(accumulator) for operand in (pair.left, pair.right))
    order = chance.sample(range(shape.k), shape.k)
    shuffled = left[:, order] @ right[order]
    parts = random.Random(seed).randint(1, 7)
    split = torch.stack([left[:, part::parts] @ right[part::parts] for part in range(parts)]).flip(0).sum(0)
    single = torch.zeros_like(shuffled)
    for index in order:
        single += left[:, index, None] * right[index]
    for result in (shuffled, split, single):
        assert torch.equal(bits(result.to(fmt.output)), bits(truth))


@FORM
@FEW
@given(shape=_shapes(), seed=SEEDS)
def test_the_library_s_product_is_proven_right(fmt: GemmFormat, shape: GemmShape, seed: int) -> None:
    """The processor's own kernels compute right results in every format."""
    pair = draw(fmt, _fitting(fmt, shape), seed)
    result = multiply(fmt, pair.left.values, pair.right.values)
    assert not len(pair.wrong_rows(result))
    assert torch.equal(bits(result), bits(pair.truth(torch.arange(pair.shape.m))))


@FORM
@MANY
@given(shape=_shapes(), seed=SEEDS, data=st.data())
def test_every_flip_is_found_in_its_row(fmt: GemmFormat, shape: GemmShape, seed: int, data: st.DataObject) -> None:
    """Flipping any bits of one element of a row is found, and the row is located."""
    pair = draw(fmt, shape, seed)
    result = pair.truth(torch.arange(shape.m))
    rows = data.draw(st.sets(st.integers(0, shape.m - 1), min_size=1))
    for row in rows:
        mask = data.draw(st.integers(1, (1 << (8 * result.element_size())) - 1))
        flip(result, [row * shape.n + data.draw(st.integers(0, shape.n - 1))], mask)
    assert pair.wrong_rows(result).tolist() == sorted(rows)


def test_the_same_seed_draws_the_same() -> None:
    """Equal seeds draw equal operands; different seeds draw different ones."""
    fmt, shape = FORMATS[4], GemmShape(9, 30, 9)
    one, again, other = (draw(fmt, shape, seed) for seed in (5, 5, 6))
    assert torch.equal(one.left.values, again.left.values)
    assert not torch.equal(one.left.values, other.left.values)


@FORM
def test_the_full_width_of_operands_and_accumulator_is_used(fmt: GemmFormat) -> None:
    """Operands use all bits of a format whose products fit the accumulator, and sums come near its limit."""
    pairs = [_integers(draw(fmt, GemmShape(64, 4096, 64), seed)) for seed in range(4)]
    widest = max(int(operand.abs().max()).bit_length() for pair in pairs for operand in pair)
    assert widest >= (fmt.significand if 2 * fmt.significand < fmt.sum_bits else fmt.sum_bits - 10)
    largest = max(int((a.abs() @ b.abs()).max()) for a, b in pairs)
    assert largest.bit_length() >= min(fmt.sum_bits, 2 * fmt.significand + 12) - 4
