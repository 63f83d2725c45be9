"""Operands whose product every correct kernel must get right to the last bit, and the check that knows it.

A and B are integers, scaled by powers of two: A[i,t] = a[i,t] · s[i] · e[t] and B[t,j] = b[t,j] / e[t] · z[j], where
s, e and z are ± powers of two. The factors e cancel, so every product and every partial sum of C[i,j] is an integer
times s[i]·z[j], in whatever order a kernel adds.

**The bound.** Column t of a and row t of b are given widths u[t] and v[t]: |a[i,t]| ≤ 2^u[t], |b[t,j]| ≤ 2^v[t]. Then
for every i, j and every set T of indices |Σ_T a[i,t]·b[t,j]| ≤ Σ_t 2^(u[t]+v[t]). The widths are dealt out of a budget
of 2^sum_bits, up to which the accumulator holds every integer; so every partial sum of every element, in every order
and split, is exact. Which random numbers are drawn cannot matter: masks cut them to their width.

**The output** may be narrower than the accumulator (8 bits in bf16). There most indices come in pairs t, t' with
a[:,t'] = a[:,t] and b[t',:] = -b[t,:]: they carry the full width of operands and accumulator and add up to nothing.
Only *signals*, with a budget of their own below 2^output_bits, remain in the result. One more index adds a bias, of
which there are two kinds. *Top*: 3/4 of the largest, with signals of at most a quarter: every output then has the same
exponent, its last bit is worth one, and every other value of the format is at least half a unit away. *Odd*: one, with
even signals: outputs of all magnitudes and both signs, none of them zero (whose sign is not defined).

**The scales** are drawn as wide as keeps every nonzero operand, product, partial sum and output a normal number of
its format, so that no kernel may flush or overflow: in bf16 the outputs' exponents go from -126 to 103 + 24.

**The check.** The outputs, with their scales taken off, must be integers: the same numbers when these are scaled again.
Then Freivalds: with random odd 64-bit x, C·x = A·(B·x) is computed in the integers modulo 2^64, where nothing is
ever rounded and nothing overflows. One wrong element of a row is always found: an odd number has an inverse. Where
several of a row are wrong and 2^w is the largest power that divides all their errors, at most 2^w of the 2^63 values of
one x[j] hide them: a chance below 2^-38 for sums of 24 bits, 2^-9 for fp64 in the worst case, 2^-63 in the usual one.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gpuhealth.burnin.device import Device, integer_product
from gpuhealth.burnin.gemm import Format, Shape, by_columns

_BLOCK = 1 << 15  # elements checked at a time: they stay in the cache, and torch does not share them out to threads,
# which would wait for one another hundreds of times
_CUDA_BLOCK = 1 << 25  # what keeps a GPU busy, and takes half a GiB


@dataclass(frozen=True)
class Scaled:
    """A matrix of integers, each times the factor of its row and that of its column: ± powers of two in fp64."""

    values: Tensor  # in its format, rows by columns
    rows: Tensor
    columns: Tensor

    def to(self, device: Device) -> Scaled:
        """A copy on a device."""
        values, rows, columns = (part.to(device.torch, copy=True) for part in (self.values, self.rows, self.columns))
        return Scaled(values, rows, columns)

    def integers(self, rows: slice | Tensor) -> Tensor:
        """Of some rows without their factors, int64; meaningless where the value is no such integer."""
        plain = self.values[rows].to(torch.float64) * (1 / self.rows[rows].unsqueeze(1))
        return (plain * (1 / self.columns)).to(torch.int64)

    def encode(self, integers: Tensor, rows: slice | Tensor) -> Tensor:
        """What `integers` are in these rows with their factors, in the matrix's format."""
        if not self.values.is_floating_point():
            return integers.to(self.values.dtype)
        wide = torch.float64 if self.values.dtype is torch.float64 else torch.float32
        scaled = integers * self.rows[rows].unsqueeze(1).to(wide)
        scaled *= self.columns.to(wide)
        return scaled.to(self.values.dtype)

    def times(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """The integers times an int64 vector, modulo 2^64; and which rows hold integers only.

        In fp32 as far as it holds the values: powers of two do not round, and what is corrupted may well overflow, it
        then does not come back to what it was.
        """
        double = self.values.dtype is torch.float64
        wide, integer = (torch.float64, torch.int64) if double else (torch.float32, torch.int32)
        rows, columns = self.rows.to(wide).unsqueeze(1), self.columns.to(wide)
        no_rows, no_columns = 1 / rows, 1 / columns
        products, whole = [], torch.ones(self.values.shape, dtype=torch.bool, device=self.values.device)
        for block in self._blocks():
            values = self.values[block]
            if values.is_floating_point():
                values = values.to(wide)
                plain = values * no_rows[block]
                plain *= no_columns
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
class Pair:
    """Operands of one product, and what proves it: C·x must be `expected`, in integers modulo 2^64."""

    form: Format
    shape: Shape
    seed: int
    left: Scaled
    right: Scaled
    vector: Tensor  # x, n of int64
    expected: Tensor  # A·(B·x), m of int64

    def __str__(self) -> str:
        return f"{self.form.name} {self.shape} seed {self.seed}"

    def to(self, device: Device) -> Pair:
        """A copy on a device."""
        left, right = self.left.to(device), self.right.to(device)
        vector, expected = self.vector.to(device.torch), self.expected.to(device.torch)
        return replace(self, left=left, right=right, vector=vector, expected=expected)

    def product(self, values: Tensor) -> Scaled:
        """A result with the factors that belong to it."""
        return Scaled(values, self.left.rows, self.right.columns)

    def wrong_rows(self, values: Tensor) -> Tensor:
        """The rows of a result that are proven wrong; empty if it is right."""
        products, whole = self.product(values).times(self.vector)
        return torch.nonzero(~whole | (products != self.expected)).flatten()

    def truth(self, rows: Tensor) -> Tensor:
        """What some rows of the result must be, in the output's format; for a pair on the host.

        In fp64 on the processor, where all these sums are exact as well.
        """
        left = self.left.integers(rows).to(torch.float64)
        right = self.right.integers(slice(None)).to(torch.float64)
        output = torch.empty(0, dtype=self.form.output)
        return self.product(output).encode((left @ right).to(torch.int64), rows)


@dataclass(frozen=True)
class _Plan:
    """What every index t is for, and how wide its column of a and its row of b may be."""

    left: list[int]  # u: magnitude up to 2**u; -1 for nothing but zeros
    right: list[int]  # v
    signals: int  # so many signals come first, then pairs that cancel each other, one index beside the other
    bias: tuple[int, int]  # of the last index: its a and its b; zeros where none is needed
    even: bool  # signals are even

    @property
    def bound(self) -> int:
        """No partial sum of any element can exceed it."""
        return abs(self.bias[0] * self.bias[1]) + sum(
            1 << (u + v) for u, v in zip(self.left, self.right, strict=True) if u >= 0 and v >= 0
        )


def _deal(budget: int, count: int, widest: int, least: int, chance: random.Random) -> list[tuple[int, int]]:
    """Widths (u, v) of `count` indices with Σ 2^(u+v) ≤ budget: half of it evenly, half for a few as wide as can be."""
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
    chance.shuffle(sums)
    widths = []
    for total in sums:
        if total < 0:  # the other side's numbers are still there, times zero
            widths.append(chance.choice([(-1, widest), (widest, -1)]))
        else:
            u = chance.randint(max(least, total - widest), min(widest, total))
            widths.append((u, total - u))
    return widths


def _plan(form: Format, k: int, chance: random.Random) -> _Plan:
    limit, most = 1 << form.sum_bits, form.significand
    if form.output is torch.int32:
        widths = _deal(limit - 1, k, most, 0, chance)
        return _Plan([u for u, _ in widths], [v for _, v in widths], k, (0, 0), even=False)
    bits_out = min(form.output_bits, form.sum_bits)
    odd = chance.random() < 0.5
    half = (bits_out - 2) // 2
    bias = (1, 1) if odd else (1 << half, 3 << (bits_out - 2 - half))
    carriers = limit - (1 << bits_out)
    signals = max(1, k // 4) if carriers else k - 1
    pairs = max(0, k - 1 - signals) // 2
    signals = k - 1 - 2 * pairs
    budget = (1 << bits_out) - 2 if odd else (1 << (bits_out - 2)) - 1
    widths = _deal(budget, signals, most, int(odd), chance)
    for carrier in _deal(carriers // 2, pairs, most, 0, chance):
        widths += [carrier, carrier]
    plan = _Plan([u for u, _ in widths], [v for _, v in widths], signals, bias, even=odd)
    assert plan.bound <= limit
    return plan


def _range(dtype: torch.dtype, largest: int) -> tuple[int, int]:
    """The exponents by which integers up to `largest` may be scaled so that they stay normal numbers."""
    info = torch.finfo(dtype)
    return math.frexp(info.tiny)[1] - 1, math.frexp(info.max / largest)[1] - 1


def _factors(low: int, high: int, count: int, generator: torch.Generator) -> Tensor:
    """± powers of two, fp64, from 2^low to 2^high."""
    exponents = torch.randint(low, high + 1, (count,), generator=generator)
    signs = torch.randint(0, 2, (count,), generator=generator).to(torch.float64) * 2 - 1
    return ((exponents + 1023) << 52).view(torch.float64) * signs  # by the bits of the format: exact on any machine


def _scales(form: Format, shape: Shape, plan: _Plan, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """s, e and z."""
    if form.output is torch.int32:
        return tuple(torch.ones(size, dtype=torch.float64) for size in (shape.m, shape.k, shape.n))  # type: ignore[return-value]
    left = _range(form.left, max(plan.bias[0], 1 << max(plan.left, default=0)))
    right = _range(form.right, max(plan.bias[1], 1 << max(plan.right, default=0)))
    output = _range(form.output, 1 << min(form.output_bits, form.sum_bits))
    sums = _range(torch.float64 if form.output is torch.float64 else torch.float32, 1 << form.sum_bits)
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


def _cut(numbers: Tensor, widths: Tensor) -> Tensor:
    """Random bits to integers from -2^width up to 2^width - 1; zero for a width of -1. In place."""
    masks = (torch.tensor(2, dtype=numbers.dtype) << widths.clamp(min=0)) - 1
    masks[widths < 0] = 0
    numbers &= masks
    numbers -= (masks + 1) >> 1
    return numbers


def draw(form: Format, shape: Shape, seed: int) -> Pair:
    """A pair of operands on the host, the same for the same seed, with its proof."""
    chance = random.Random(seed)  # noqa: S311 - numbers to compute with
    generator = torch.Generator().manual_seed(seed)
    plan = _plan(form, shape.k, chance)
    wide = form.significand > 24
    dtype = torch.int64 if wide else torch.int32
    place = torch.randperm(shape.k, generator=generator)  # where each index of the plan comes to stand
    left, right, even = (torch.zeros(shape.k, dtype=dtype) for _ in range(3))
    left[place[: len(plan.left)]] = torch.tensor(plan.left, dtype=dtype)
    right[place[: len(plan.right)]] = torch.tensor(plan.right, dtype=dtype)
    if plan.even:
        even[place[: plan.signals]] = (left[place[: plan.signals]] > 0).to(dtype)
    a = _cut(_random(shape.m, shape.k, wide, generator), left - even)
    a <<= even
    b = _cut(_random(shape.k, shape.n, wide, generator), right.unsqueeze(1))
    if plan.bias[0]:
        a[:, place[-1]], b[place[-1]] = plan.bias
        ones, others = place[plan.signals : -1 : 2], place[plan.signals + 1 : -1 : 2]
        a[:, others] = a[:, ones]
        b[others] = -b[ones]
    s, e, z = _scales(form, shape, plan, generator)
    lefts = Scaled(torch.empty(0, dtype=form.left), s, e)
    rights = Scaled(torch.empty(0, dtype=form.right), 1 / e, z)
    lefts = replace(lefts, values=lefts.encode(a, slice(None)))
    rights = replace(rights, values=by_columns(form, rights.encode(b, slice(None))))
    vector = torch.empty(shape.n, dtype=torch.int64).random_(generator=generator) | 1
    return Pair(form, shape, seed, lefts, rights, vector, integer_product(a, integer_product(b, vector)))
