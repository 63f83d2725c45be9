"""Exact arithmetic in figures: the cost of proofs, the flips that it and other methods catch, and false positives."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from gpuhealth.burnin.bit_compare import same_bits
from gpuhealth.burnin.device import Device
from gpuhealth.burnin.exact import PRODUCTS_PER_PAIR
from gpuhealth.burnin.faults import flip
from gpuhealth.burnin.gemm import GemmFormat, GemmShape, by_columns, multiply
from gpuhealth.burnin.operands import OperandPair, ScaledMatrix, draw

PROCESSOR = Device("cpu", "cpu")
_TIMED = 4  # products


def _allclose(relative: float, absolute: float) -> Callable[[Tensor, Tensor], bool]:
    return lambda result, right: not torch.allclose(result, right, rtol=relative, atol=absolute)


def _gpu_burn(result: Tensor, right: Tensor) -> bool:
    """|C_i - C_0| > 1e-3, in which a NaN never counts: gpu-burn's compare.cu for fp32, here for every format."""
    return bool(((result - right).abs() > 1e-3).any())


# Each is given a wrong result and the right one it is compared with, in fp64 (exact for every format here).
METHODS: dict[str, Callable[[Tensor, Tensor], bool]] = {
    "allclose_1e-5": _allclose(1e-5, 1e-8),  # torch's and numpy's own tolerances
    "allclose_1e-3": _allclose(1e-3, 1e-3),
    "gpu_burn": _gpu_burn,
    "gpu_burn_first_wrong": lambda result, _: _gpu_burn(result, result),  # the fault is in C_0 as well
    "nan_scan": lambda result, _: not bool(result.isfinite().all()),
}


def _kinds(fmt: GemmFormat) -> dict[str, Callable[[random.Random], int]]:
    """Kinds of flips of one element: a mask for each."""
    width = 8 * torch.empty(0, dtype=fmt.output).element_size()
    stored = fmt.output_bits - 1 if fmt.output.is_floating_point else 31
    kinds: dict[str, Callable[[random.Random], int]] = {
        "low_mantissa": lambda chance: 1 << chance.randrange(stored // 2),
        "high_mantissa": lambda chance: 1 << chance.randrange(stored // 2, stored),
        "sign": lambda _: 1 << (width - 1),
        "multi_bit": lambda chance: sum(1 << bit for bit in chance.sample(range(width), chance.randint(2, width // 2))),
    }
    if stored < width - 1:
        kinds["exponent"] = lambda chance: 1 << chance.randrange(stored, width - 1)
    return kinds


def _patterns(shape: GemmShape) -> dict[str, Callable[[random.Random], list[int]]]:
    """Kinds of damage that many elements take, as faults of a row, a tile, or one lane of every warp."""

    def tile(chance: random.Random) -> list[int]:
        top, side = chance.randrange(shape.m - 15), chance.randrange(shape.n - 15)
        return [(top + row) * shape.n + side + column for row in range(16) for column in range(16)]

    def row(chance: random.Random) -> list[int]:
        start = chance.randrange(shape.m) * shape.n
        return list(range(start, start + shape.n))

    def lane(chance: random.Random) -> list[int]:
        return list(range(chance.randrange(32), shape.m * shape.n, 32))

    return {"row": row, "tile": tile, "lane": lane}


def _damages(
    fmt: GemmFormat, shape: GemmShape, trials: int, chance: random.Random
) -> Iterator[tuple[str, list[int], int]]:
    """Kind, elements and mask of every flip to try."""
    kinds = _kinds(fmt)
    for _ in range(trials):
        for kind, mask in kinds.items():
            yield kind, [chance.randrange(shape.m * shape.n)], mask(chance)
        for kind, indices in _patterns(shape).items():
            yield kind, indices(chance), chance.choice(list(kinds.values()))(chance)


def _ordinary(fmt: GemmFormat, shape: GemmShape, seed: int) -> Tensor:
    """A product of the operands that others use: standard normal."""
    generator = torch.Generator().manual_seed(seed)
    scale = 32 if fmt.name == "int8" else 1
    left = (torch.randn(shape.m, shape.k, generator=generator) * scale).to(fmt.left)
    right = (torch.randn(shape.k, shape.n, generator=generator) * scale).to(fmt.right)
    return multiply(fmt, left, by_columns(fmt, right))


def caught(formats: Sequence[GemmFormat], trials: int, seed: int = 1) -> dict[str, float]:
    """Per cent of flips in results that are found: ours in the product alone, others against a right one."""
    chance = random.Random(seed)
    shape = GemmShape(48, 64, 48)
    found: dict[str, list[int]] = {}
    for fmt in formats:
        pair, right = draw(fmt, shape, seed), _ordinary(fmt, shape, seed).to(torch.float64)
        ours, theirs = (multiply(fmt, pair.left.values, pair.right.values), _ordinary(fmt, shape, seed))
        for number, (kind, indices, mask) in enumerate(_damages(fmt, shape, trials, chance)):
            if number % 50 == 49:
                pair = draw(fmt, shape, chance.getrandbits(32))
                ours = multiply(fmt, pair.left.values, pair.right.values)
            wrong, ordinary = ours.clone(), theirs.clone()
            flip(wrong, indices, mask)
            flip(ordinary, indices, mask)
            found.setdefault(f"{fmt.name}/{kind}/exact", []).append(len(pair.wrong_rows(wrong)) > 0)
            for method, finds in METHODS.items():
                found.setdefault(f"{fmt.name}/{kind}/{method}", []).append(finds(ordinary.to(torch.float64), right))
    return {name: 100 * sum(each) / len(each) for name, each in found.items()}


def caught_in_inputs(formats: Sequence[GemmFormat], trials: int, seed: int = 2) -> dict[str, float]:
    """Per cent of flips in one operand that are found in it, and of those that change the result, found in that."""
    chance = random.Random(seed)
    in_operands, in_results = [], []
    for fmt in formats:
        for _ in range(trials):
            pair = draw(fmt, GemmShape(48, 64, 48), chance.getrandbits(32))
            right = multiply(fmt, pair.left.values, pair.right.values)
            values = chance.choice([pair.left.values, pair.right.values])
            drawn = values.clone()
            flip(values, [chance.randrange(values.numel())], 1 << chance.randrange(8 * values.element_size()))
            in_operands.append(not same_bits(values, drawn))
            result = multiply(fmt, pair.left.values, pair.right.values)
            if not same_bits(result, right):
                in_results.append(len(pair.wrong_rows(result)) > 0)
    return {
        "input_flips_caught_percent": 100 * sum(in_operands) / len(in_operands),
        "input_flips_that_change_a_result": float(len(in_results)),
        "input_flips_caught_in_results_percent": 100 * sum(in_results) / len(in_results),
    }


def false_positives(formats: Sequence[GemmFormat], products: int, seed: int = 3) -> dict[str, float]:
    """Clean products of fresh operands, of all formats in turn and random shapes, that are called wrong."""
    chance = random.Random(seed)
    wrong = 0
    for number in range(products):
        fmt = formats[number % len(formats)]
        largest = 32 if fmt.processor_size < 100 else 64
        step = fmt.multiple_of
        m, k, n = (-(-chance.randint(1, largest) // step) * step for _ in range(3))
        pair = draw(fmt, GemmShape(m, 2 * k, n), chance.getrandbits(40))
        result = multiply(fmt, pair.left.values, pair.right.values)
        bad = len(pair.wrong_rows(result)) > 0
        wrong += bad or not same_bits(result, multiply(fmt, pair.left.values, pair.right.values))
    return {"false_positives": float(wrong), "clean_products": float(products)}


def overhead(fmt: GemmFormat, size: int, device: Device = PROCESSOR) -> float:
    """What a pair's proofs and comparisons take, in per cent of its products' own time, as `exact` works.

    Per pair: its operands compared twice, its first product proven on the device and on the host, the
    last compared on the host; per product: one comparison on the device. All measured in turn, on one device.
    """
    pair = draw(fmt, GemmShape(size, size, size), 4).to(device)
    left, right = pair.left.to(device), pair.right.to(device)
    results = [multiply(fmt, pair.left.values, pair.right.values)]

    def again() -> None:
        results[1:] = [multiply(fmt, pair.left.values, pair.right.values)]

    product, compare, proof = 0.0, 0.0, 0.0
    for _ in range(_TIMED):
        product += device.seconds(again)
        compare += device.seconds(lambda: same_bits(*results))
        proof += device.seconds(lambda: _prove(pair, left, right, results[0]))
    once = 2 * proof + compare
    return 100 * (compare * PRODUCTS_PER_PAIR + once) / (product * PRODUCTS_PER_PAIR)


def _prove(pair: OperandPair, left: ScaledMatrix, right: ScaledMatrix, result: Tensor) -> None:
    """Half of what is done once for a pair: the operands compared, and the first product proven."""
    assert same_bits(pair.left.values, left.values)
    assert same_bits(pair.right.values, right.values)
    assert not len(pair.wrong_rows(result))
