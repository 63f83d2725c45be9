"""Repeats the product of the same full-range random operands, which must have the same bits every time.

Exact arithmetic cannot exercise the low halves of products and the rounding of sums; this test does. The right result
is not known, but in deterministic mode a library must reproduce its own. The SHA-256 of a result must equal that of
every other GPU of the same model with the same versions of the libraries.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

import msgspec
import torch
from torch import Tensor

from gpuhealth.burnin.bit_compare import compare_bits, same_bits
from gpuhealth.burnin.device import Device, enable_deterministic_mode
from gpuhealth.burnin.faults import InjectedFaults, bits
from gpuhealth.burnin.gemm import FORMATS, GemmFormat, GemmShape, by_columns, multiply, unavailable_reason
from gpuhealth.burnin.protocol import DeviceResult, Job, OnProgress, StopRequested
from gpuhealth.burnin.recurrence import recurrence
from gpuhealth.burnin.test_timer import SharedTestTimer
from gpuhealth.model.burnin_run import Miscompare

_MAX_PRODUCTS = 32  # of one pair of operands, if time allows
_SIZE, _SMALL_SIZE = 4096, 96
_MAX_MISCOMPARES = 5  # after which a device needs no further test


def full_range(rows: int, columns: int, dtype: torch.dtype, terms: int, generator: torch.Generator) -> Tensor:
    """Random numbers over the whole range of exponents and significands for which sums of `terms` products are finite.

    Each row has its own span of exponents: in some rows the terms are of similar size, in others one dominates.
    """
    if not dtype.is_floating_point:
        return torch.empty(rows, columns, dtype=torch.int32).random_(generator=generator).to(dtype)
    info = torch.finfo(dtype)
    lowest = torch.tensor(info.smallest_normal, dtype=torch.float64).log2()
    highest = (torch.tensor(info.max, dtype=torch.float64).log2() - terms.bit_length()) / 2 - 1
    top = (
        torch.rand(rows, 1, dtype=torch.float64, generator=generator) * (highest - lowest) / 2 + (highest + lowest) / 2
    )
    span = torch.rand(rows, 1, dtype=torch.float64, generator=generator) * (top - lowest)
    exponents = (top - span * torch.rand(rows, columns, dtype=torch.float64, generator=generator)).floor()
    significands = 1 + torch.rand(rows, columns, dtype=torch.float64, generator=generator)
    signs = torch.randint(0, 2, (rows, columns), generator=generator).to(torch.float64) * 2 - 1
    powers = ((exponents.to(torch.int64) + 1023) << 52).view(torch.float64)  # exact, and the same on every machine
    return (signs * significands * powers).to(dtype)


class Operands(NamedTuple):
    """The two matrices of one product."""

    left: Tensor
    right: Tensor


def draw_operands(fmt: GemmFormat, shape: GemmShape, seed: int) -> Operands:
    """A and B on the host; the same seed draws the same numbers."""
    generator = torch.Generator().manual_seed(seed)
    left = full_range(shape.m, shape.k, fmt.left, shape.k, generator)
    right = full_range(shape.k, shape.n, fmt.right, shape.k, generator)
    return Operands(left, by_columns(fmt, right))


class _DeviceUnderTest:
    """One device with its digests and miscompares so far."""

    def __init__(self, device: Device, faults: InjectedFaults) -> None:
        self.device = device
        self.formats = [fmt for fmt in FORMATS if not unavailable_reason(fmt, device)]
        self.products = 0
        self.digests: dict[str, str] = {}
        self.miscompares: list[Miscompare] = []
        self._faults = faults

    @property
    def has_failed(self) -> bool:
        """Whether there are so many miscompares that further tests add nothing."""
        return len(self.miscompares) >= _MAX_MISCOMPARES

    def load(self, operands: Operands) -> Operands:
        left, right = (operand.to(self.device.torch, copy=True) for operand in operands)
        self._faults.after_load(self.device, left, right)
        return Operands(left, right)

    def multiply(self, fmt: GemmFormat, operands: Operands) -> Tensor:
        self.products += 1
        result = multiply(fmt, operands.left, operands.right)
        self._faults.after_product(self.device, result)
        return result

    def figures(self) -> dict[str, float]:
        return {"products": float(self.products)}

    def result(self) -> DeviceResult:
        failure = ""
        if not self.formats:
            failure = "a small product failed in every format"
        elif self.miscompares:
            failure = f"the same product gave different results; {self.miscompares[0].describe()}"
        return DeviceResult(
            gpu=self.device.gpu,
            failure=failure,
            figures=self.figures(),
            miscompares=tuple(self.miscompares),
            digests=self.digests,
        )


def run(
    job: Job, devices: Sequence[Device], on_progress: OnProgress, faults: InjectedFaults
) -> tuple[DeviceResult, ...]:
    """Work for about `job.seconds` on all devices together; after a stop, the results are those so far.

    Formats and shapes have a fixed order, with seeds counted from `job.seed`, so that devices and nodes with the same
    seed have digests in common.
    """
    enable_deterministic_mode()
    duts = [_DeviceUnderTest(device, faults) for device in devices]
    with suppress(StopRequested):
        _RepeatTest(job, duts, on_progress).work()
    return tuple(dut.result() for dut in duts)


class _Product(NamedTuple):
    """The operation that is computed repeatedly."""

    fmt: GemmFormat
    shape: GemmShape
    seed: int

    def __str__(self) -> str:
        return f"{self.fmt.name}/{self.shape}/seed{self.seed}"


class _RepeatTest:
    def __init__(self, job: Job, duts: Sequence[_DeviceUnderTest], on_progress: OnProgress) -> None:
        self._job, self._duts = job, duts
        self._timer = SharedTestTimer(job.seconds, {dut.device.gpu: dut.figures for dut in duts}, on_progress)

    def work(self) -> None:
        """Test all formats in rotation, each at least once, until the time is over."""
        seed = self._job.seed
        while True:
            for fmt in FORMATS:
                if seed >= self._job.seed + len(FORMATS) and self._timer.elapsed >= self._job.seconds:
                    return
                for dut in self._duts:
                    if fmt in dut.formats and not dut.has_failed:
                        share = self._job.seconds / len(FORMATS) / len(self._duts)
                        product = _Product(fmt, self._shape(fmt, dut.device), seed)
                        self._test_product(dut, product, self._timer.elapsed + share)
                seed += 1
            if all(dut.has_failed or not dut.formats for dut in self._duts):
                return

    def _shape(self, fmt: GemmFormat, device: Device) -> GemmShape:
        size = _SIZE if device.is_cuda else fmt.processor_size
        if device.small:
            size = min(size, _SMALL_SIZE)
        return GemmShape(size, size, size)

    def _test_product(self, dut: _DeviceUnderTest, product: _Product, until: float) -> None:
        """Compute one product repeatedly, until `until` seconds on the timer, and store its digest."""
        on_device = dut.load(draw_operands(product.fmt, product.shape, product.seed))
        first = dut.multiply(product.fmt, on_device)
        done = 1
        while done < 2 or (done < _MAX_PRODUCTS and self._timer.elapsed < until):
            self._timer.step()
            result = dut.multiply(product.fmt, on_device)
            done += 1
            if not same_bits(result, first):
                first = self._report(dut, product, on_device, first, result)
                break
        dut.digests[str(product)] = hashlib.sha256(bits(first.cpu()).numpy().tobytes()).hexdigest()

    def _report(
        self, dut: _DeviceUnderTest, product: _Product, on_device: Operands, first: Tensor, result: Tensor
    ) -> Tensor:
        """Find out by a third product which of two different results is wrong, classify it, and return the other."""
        if same_bits(dut.multiply(product.fmt, on_device), result):
            first, result = result, first
        found = compare_bits(str(product), result.cpu(), first.cpu())
        assert found is not None
        dut.miscompares.append(found)

        def repeat() -> bool:
            return not same_bits(dut.multiply(product.fmt, on_device), first)

        def with_other_operands() -> bool:
            seed = self._job.seed + (1 << 32) + len(dut.digests)
            fresh = dut.load(draw_operands(product.fmt, product.shape, seed))
            return not same_bits(dut.multiply(product.fmt, fresh), dut.multiply(product.fmt, fresh))

        kind, repeats = recurrence(dut.device, repeat, with_other_operands, self._timer.step)
        dut.miscompares[-1] = msgspec.structs.replace(found, kind=kind, repeats=repeats)
        return first
