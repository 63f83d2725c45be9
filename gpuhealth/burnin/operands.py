"""Operands whose product every correct kernel must compute exactly, and the check that proves a result right.

A and B are integers, scaled by powers of two: A[i,t] = a[i,t] · s[i] · e[t] and B[t,j] = b[t,j] / e[t] · z[j], where
s, e and z are ± powers of two. The factors e cancel, so that every product and every partial sum of C[i,j] is an
integer times s[i]·z[j], in any order of addition.

**The bound.** Column t of a and row t of b have widths u[t] and v[t]: |a[i,t]| ≤ 2^u[t], |b[t,j]| ≤ 2^v[t]. Then for
every i, j and every set T of indices |Σ_T a[i,t]·b[t,j]| ≤ Σ_t 2^(u[t]+v[t]). The sum of all 2^(u[t]+v[t]) is kept
within 2^sum_bits, up to which the accumulator holds every integer; so every partial sum of every element, in every
order and split, is exact. This does not depend on the random numbers: masks cut them to their width.

**The output** may be narrower than the accumulator (8 bits in bf16). There most indices come in pairs t, t' with
a[:,t'] = a[:,t] and b[t',:] = -b[t,:]: they use the full width of operands and accumulator, and cancel. Only *signals*,
with a sum of their own below 2^output_bits, remain in the result. One more index adds a bias, of which there are two
kinds. *Top*: 3/4 of the largest value, with signals of at most a quarter: every output then has the same exponent, its
last bit is worth one, and every other value of the format is at least half a unit away. *Odd*: one, with even signals:
outputs of all magnitudes and both signs, none of them zero (the sign of a zero is not defined).

**The scales** are drawn from the widest range for which every nonzero operand, product, partial sum and output is a
normal number of its format, so that no kernel may flush or overflow: in bf16 the outputs' exponents go from -126 to
103 + 24.

**The check.** The outputs, divided by their scales, must be integers: multiplied by the scales again, they must give
the same numbers. Then Freivalds' check: with random odd 64-bit x, C·x = A·(B·x) is computed in integers modulo 2^64,
where nothing is ever rounded and nothing overflows. A single wrong element of a row is always found: an odd number has
an inverse. Where several elements of a row are wrong and 2^w is the largest power that divides all their errors, at
most 2^w of the 2^63 values of one x[j] hide them: a chance below 2^-38 for sums of 24 bits, 2^-9 for fp64 in the worst
case, 2^-63 in the usual one.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gpuhealth.burnin.device import Device, integer_product
from gpuhealth.burnin.gemm import GemmFormat, GemmShape, by_columns

_BLOCK = (
    1 << 15
)  # elements checked at a time: they stay in the cache, and torch does not split them over threads, which would
# wait for each other hundreds of times
_CUDA_BLOCK = 1 << 25  # enough to keep a GPU busy; takes half a GiB


@dataclass(frozen=True)
class ScaledMatrix:
    """A matrix of integers, each multiplied by the factors of its row and its column: ± powers of two in fp64."""

    values: Tensor  # in the operand's or output's number format
    rows: Tensor
    columns: Tensor

    def to(self, device: Device) -> ScaledMatrix:
        """A copy of the matrix on a device."""
        values, rows, columns = (part.to(device.torch, copy=True) for part in (self.values, self.rows, self.columns))
        return ScaledMatrix(values, rows, columns)

    def integers(self, rows: slice | Tensor) -> Tensor:
        """The int64 integers of some rows, without their factors; meaningless where a value is not such an integer."""
        plain = self.values[rows].to(torch.float64) * (1 / self.rows[rows].unsqueeze(1))
        return (plain * (1 / self.columns)).to(torch.int64)

    def encode(self, integers: Tensor, rows: slice | Tensor) -> Tensor:
        """The inverse of `integers`: these rows with their factors, in the matrix's number format."""
        if not self.values.is_floating_point():
            return integers.to(self.values.dtype)
        wide = torch.float64 if self.values.dtype is torch.float64 else torch.float32
        scaled = integers * self.rows[rows].unsqueeze(1).to(wide)
        scaled *= self.columns.to(wide)
        return scaled.to(self.values.dtype)

    def times(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """The integers times an int64 vector, modulo 2^64; and for each row whether all its values are such integers.

        Computed in fp32 except for fp64 values: powers of two do not round, and a corrupted value that overflows does
        not convert back to itself, and so is noticed.
        """
        double = self.values.dtype is torch.float64
        wide, integer = (torch.float64, torch.int64) if double else (torch.float32, torch.int32)
        rows, columns = self.rows.to(wide).unsqueeze(1), self.columns.to(wide)
        inverse_rows, inverse_columns = 1 / rows, 1 / columns
        products, whole = [], torch.ones(self.values.shape, dtype=torch.bool, device=self.values.device)
        for block in self._blocks():
            values = self.values[block]
            if values.is_floating_point():
                values = values.to(wide)
                plain = values * inverse_rows[block]
                plain *= inverse_columns
                integers = plain.to(integer)
                torch.mul(integers, rows[block], out=plain)
                plain *= columns
                torch.eq(plain, values, out=whole[block])
            else:
                integers = values
            products.append(integer_product(integers, vector))
        return torch.cat(products), whole.all(1)

    def _blocks(self) -> Iterator[slice]:
        step = max(1, (_CUDA_BLOCK if self.values.is_cuda else _BLOCK) // self.values.shape[1])
        return (slice(start, start + step) for start in range(0, self.values.shape[0], step))


@dataclass(frozen=True)
class OperandPair:
    """Operands of one product with its proof: C·x must equal `expected`, in integers modulo 2^64."""

    fmt: GemmFormat
    shape: GemmShape
    seed: int
    left: ScaledMatrix
    right: ScaledMatrix
    vector: Tensor  # x, n of int64
    expected: Tensor  # A·(B·x), m of int64

    def __str__(self) -> str:
        return f"{self.fmt.name} {self.shape} seed {self.seed}"

    def to(self, device: Device) -> OperandPair:
        """A copy of the pair on a device."""
        left, right = self.left.to(device), self.right.to(device)
        vector, expected = self.vector.to(device.torch), self.expected.to(device.torch)
        return replace(self, left=left, right=right, vector=vector, expected=expected)

    def product(self, values: Tensor) -> ScaledMatrix:
        """A result as a matrix with the factors that belong to it."""
        return ScaledMatrix(values, self.left.rows, self.right.columns)

    def wrong_rows(self, values: Tensor) -> Tensor:
        """The rows of a result that are proven wrong; empty if the result is right."""
        products, whole = self.product(values).times(self.vector)
        return torch.nonzero(~whole | (products != self.expected)).flatten()

    def truth(self, rows: Tensor) -> Tensor:
        """The right values of some rows of the result, in the output's number format; only for a pair on the host.

        Computed in fp64 on the processor, where all these sums are exact as well.
        """
        left = self.left.integers(rows).to(torch.float64)
        right = self.right.integers(slice(None)).to(torch.float64)
        output = torch.empty(0, dtype=self.fmt.output)
        return self.product(output).encode((left @ right).to(torch.int64), rows)


@dataclass(frozen=True)
class _Plan:
    """The use of every index t, and the widths of its column of a and its row of b."""

    left: list[int]  # u: magnitudes up to 2**u; -1: only zeros
    right: list[int]  # v
    signals: int  # number of signals, which come first; then pairs of neighbouring indices that cancel
    bias: tuple[int, int]  # a and b of the last index; zeros where no bias is needed
    even: bool  # whether the signals are even

    @property
    def bound(self) -> int:
        """The largest magnitude that any partial sum of any element can have."""
        return abs(self.bias[0] * self.bias[1]) + sum(
            1 << (u + v) for u, v in zip(self.left, self.right, strict=True) if u >= 0 and v >= 0
        )


def _distribute_widths(budget: int, count: int, widest: int, least: int, rng: random.Random) -> list[tuple[int, int]]:
    """Widths (u, v) for `count` indices with Σ 2^(u+v) ≤ budget: half of it evenly, half for a few of maximal width."""
    sums = [-1] * count
    served = min(count, (budget // 2) >> least)
    if served:
        even = min(2 * widest, (budget // 2 // served).bit_length() - 1)
        sums[:served] = [even] * served
        spare = budget - (served << even)
        for index in range(served):
            wide = min(2 * widest, (spare + (1 << even)).bit_length() - 1)
            if wide <= even:
                break
            sums[index] = wide
            spare -= (1 << wide) - (1 << even)
    rng.shuffle(sums)
    widths = []
    for total in sums:
        if total < 0:  # zeros on one side; the other side still has numbers
            widths.append(rng.choice([(-1, widest), (widest, -1)]))
        else:
            u = rng.randint(max(least, total - widest), min(widest, total))
            widths.append((u, total - u))
    return widths


def _plan(fmt: GemmFormat, k: int, rng: random.Random) -> _Plan:
    limit, most = 1 << fmt.sum_bits, fmt.significand
    if fmt.output is torch.int32:
        widths = _distribute_widths(limit - 1, k, most, 0, rng)
        return _Plan([u for u, _ in widths], [v for _, v in widths], k, (0, 0), even=False)
    bits_out = min(fmt.output_bits, fmt.sum_bits)
    odd = rng.random() < 0.5
    half = (bits_out - 2) // 2
    bias = (1, 1) if odd else (1 << half, 3 << (bits_out - 2 - half))
    carriers = limit - (1 << bits_out)
    signals = max(1, k // 4) if carriers else k - 1
    pairs = max(0, k - 1 - signals) // 2
    signals = k - 1 - 2 * pairs
    budget = (1 << bits_out) - 2 if odd else (1 << (bits_out - 2)) - 1
    widths = _distribute_widths(budget, signals, most, int(odd), rng)
    for carrier in _distribute_widths(carriers // 2, pairs, most, 0, rng):
        widths += [carrier, carrier]
    plan = _Plan([u for u, _ in widths], [v for _, v in widths], signals, bias, even=odd)
    assert plan.bound <= limit
    return plan


def _range(dtype: torch.dtype, largest: int) -> tuple[int, int]:
    """The lowest and highest exponent by which integers up to `largest` can be scaled and stay normal numbers."""
    info = torch.finfo(dtype)
    return math.frexp(info.tiny)[1] - 1, math.frexp(info.max / largest)[1] - 1


def _factors(low: int, high: int, count: int, generator: torch.Generator) -> Tensor:
    """Random ± powers of two in fp64, from 2^low to 2^high."""
    exponents = torch.randint(low, high + 1, (count,), generator=generator)
    signs = torch.randint(0, 2, (count,), generator=generator).to(torch.float64) * 2 - 1
    return ((exponents + 1023) << 52).view(torch.float64) * signs  # set in the bits of the format: exact on any machine


def _scales(
    fmt: GemmFormat, shape: GemmShape, plan: _Plan, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw the scales s, e and z of the rows of A, of the inner index and of the columns of B."""
    if fmt.output is torch.int32:
        return tuple(torch.ones(size, dtype=torch.float64) for size in (shape.m, shape.k, shape.n))  # type: ignore[return-value]
    left = _range(fmt.left, max(plan.bias[0], 1 << max(plan.left, default=0)))
    right = _range(fmt.right, max(plan.bias[1], 1 << max(plan.right, default=0)))
    output = _range(fmt.output, 1 << min(fmt.output_bits, fmt.sum_bits))
    sums = _range(torch.float64 if fmt.output is torch.float64 else torch.float32, 1 << fmt.sum_bits)
    low = -(-max(side[0] for side in (left, right, output, sums)) // 2)
    high = min(side[1] for side in (left, right, output, sums)) // 2
    inner = max(0, min(left[1] - high, right[1] - high, low - left[0], low - right[0]))
    return (
        _factors(low, high, shape.m, generator),
        _factors(-inner, inner, shape.k, generator),
        _factors(low, high, shape.n, generator),
    )


def _random(rows: int, columns: int, wide: bool, generator: torch.Generator) -> Tensor:
    return torch.empty(rows, columns, dtype=torch.int64 if wide else torch.int32).random_(generator=generator)


def _mask_to_width(numbers: Tensor, widths: Tensor) -> Tensor:
    """Turn random bits, in place, into integers from -2^width to 2^width - 1; zero for a width of -1."""
    masks = (torch.tensor(2, dtype=numbers.dtype) << widths.clamp(min=0)) - 1
    masks[widths < 0] = 0
    numbers &= masks
    numbers -= (masks + 1) >> 1
    return numbers


def draw(fmt: GemmFormat, shape: GemmShape, seed: int) -> OperandPair:
    """A pair of operands with its proof, on the host; the same seed draws the same pair."""
    rng = random.Random(seed)  # noqa: S311 - numbers to compute with
    generator = torch.Generator().manual_seed(seed)
    plan = _plan(fmt, shape.k, rng)
    wide = fmt.significand > 24
    dtype = torch.int64 if wide else torch.int32
    position = torch.randperm(shape.k, generator=generator)  # position of each index of the plan
    left, right, even = (torch.zeros(shape.k, dtype=dtype) for _ in range(3))
    left[position[: len(plan.left)]] = torch.tensor(plan.left, dtype=dtype)
    right[position[: len(plan.right)]] = torch.tensor(plan.right, dtype=dtype)
    if plan.even:
        even[position[: plan.signals]] = (left[position[: plan.signals]] > 0).to(dtype)
    a = _mask_to_width(_random(shape.m, shape.k, wide, generator), left - even)
    a <<= even
    b = _mask_to_width(_random(shape.k, shape.n, wide, generator), right.unsqueeze(1))
    if plan.bias[0]:
        a[:, position[-1]], b[position[-1]] = plan.bias
        ones, others = position[plan.signals : -1 : 2], position[plan.signals + 1 : -1 : 2]
        a[:, others] = a[:, ones]
        b[others] = -b[ones]
    s, e, z = _scales(fmt, shape, plan, generator)
    lefts = ScaledMatrix(torch.empty(0, dtype=fmt.left), s, e)
    rights = ScaledMatrix(torch.empty(0, dtype=fmt.right), 1 / e, z)
    lefts = replace(lefts, values=lefts.encode(a, slice(None)))
    rights = replace(rights, values=by_columns(fmt, rights.encode(b, slice(None))))
    vector = torch.empty(shape.n, dtype=torch.int64).random_(generator=generator) | 1
    return OperandPair(fmt, shape, seed, lefts, rights, vector, integer_product(a, integer_product(b, vector)))
