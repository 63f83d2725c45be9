"""Repeat: the same product of full-range random operands, again and again, has the same bits.

What exact arithmetic cannot exercise, the low halves of products and the rounding of sums, is exercised here: the
truth is not known, but a library under `compute_the_same_every_time` must repeat itself. The SHA-256 of a result
must be that of every other GPU of the same model under the same libraries.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress

import msgspec
import torch
from torch import Tensor

from gpuhealth.burnin.device import Device, compute_the_same_every_time
from gpuhealth.burnin.exact import differences, same
from gpuhealth.burnin.faults import Faults, bits
from gpuhealth.burnin.gemm import FORMATS, Format, Shape, available, by_columns, multiply
from gpuhealth.burnin.protocol import GpuOutcome, Job, Say, Stopped
from gpuhealth.burnin.recurrence import recurrence
from gpuhealth.burnin.test_timer import CommonPace
from gpuhealth.model.burnin_run import Miscompare

_PRODUCTS = 32  # of one pair of operands, if time allows
_SIZE, _SMALL = 4096, 96
_ENOUGH = 5  # miscompares, after which a device needs no further test


def full_range(rows: int, columns: int, dtype: torch.dtype, sums: int, generator: torch.Generator) -> Tensor:
    """Random numbers of every exponent and every significand for which a sum of `sums` products stays finite.

    Each row has exponents of its own, over a span of its own: in some rows terms are alike, in others one rules.
    """
    if not dtype.is_floating_point:
        return torch.empty(rows, columns, dtype=torch.int32).random_(generator=generator).to(dtype)
    info = torch.finfo(dtype)
    lowest = torch.tensor(info.smallest_normal, dtype=torch.float64).log2()
    highest = (torch.tensor(info.max, dtype=torch.float64).log2() - sums.bit_length()) / 2 - 1
    top = (
        torch.rand(rows, 1, dtype=torch.float64, generator=generator) * (highest - lowest) / 2 + (highest + lowest) / 2
    )
    span = torch.rand(rows, 1, dtype=torch.float64, generator=generator) * (top - lowest)
    exponents = (top - span * torch.rand(rows, columns, dtype=torch.float64, generator=generator)).floor()
    significands = 1 + torch.rand(rows, columns, dtype=torch.float64, generator=generator)
    signs = torch.randint(0, 2, (rows, columns), generator=generator).to(torch.float64) * 2 - 1
    powers = ((exponents.to(torch.int64) + 1023) << 52).view(torch.float64)  # exact, and the same on every machine
    return (signs * significands * powers).to(dtype)


def operands(form: Format, shape: Shape, seed: int) -> tuple[Tensor, Tensor]:
    """A and B on the host, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    left = full_range(shape.m, shape.k, form.left, shape.k, generator)
    right = full_range(shape.k, shape.n, form.right, shape.k, generator)
    return left, by_columns(form, right)


class _Repeated:
    """One device, and what was found."""

    def __init__(self, device: Device, faults: Faults) -> None:
        self.device = device
        self.formats = [form for form in FORMATS if not available(form, device)]
        self.products = 0
        self.digests: dict[str, str] = {}
        self.miscompares: list[Miscompare] = []
        self._faults = faults

    def load(self, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        left, right = (operand.to(self.device.torch, copy=True) for operand in pair)
        self._faults.inputs(self.device, left, right)
        return left, right

    def product(self, form: Format, pair: tuple[Tensor, Tensor]) -> Tensor:
        self.products += 1
        result = multiply(form, *pair)
        self._faults.result(self.device, result)
        return result

    def figures(self) -> dict[str, float]:
        return {"products": float(self.products)}

    def outcome(self) -> GpuOutcome:
        failure = ""
        if not self.formats:
            failure = "a small product failed in every format"
        elif self.miscompares:
            first = self.miscompares[0]
            failure = f"the same product gave other bits: {first.what}, {first.wrong} elements from {first.index} on"
            failure += f", bits {first.xor}" + (f", {first.kind.replace('_', ' ')}" if first.kind else "")
        return GpuOutcome(
            self.device.gpu, failure, figures=self.figures(), miscompares=tuple(self.miscompares), digests=self.digests
        )


def run(job: Job, devices: Sequence[Device], say: Say, faults: Faults) -> tuple[GpuOutcome, ...]:
    """Works for about `job.seconds`; when told to stop, the outcomes are of what was done by then.

    Formats and shapes come in a fixed order with seeds counted from `job.seed`, so that devices and nodes with the
    same seed have digests in common.
    """
    compute_the_same_every_time()
    repeated = [_Repeated(device, faults) for device in devices]
    with suppress(Stopped):
        _Repeat(job, repeated, say).work()
    return tuple(one.outcome() for one in repeated)


class _Repeat:
    def __init__(self, job: Job, repeated: Sequence[_Repeated], say: Say) -> None:
        self._job, self._repeated = job, repeated
        self._pace = CommonPace(job.seconds, {one.device.gpu: one.figures for one in repeated}, say)

    def work(self) -> None:
        """All formats in turn, each once at least, until the time is over."""
        seed = self._job.seed
        while True:
            for form in FORMATS:
                if seed >= self._job.seed + len(FORMATS) and self._pace.elapsed >= self._job.seconds:
                    return
                for one in self._repeated:
                    if form in one.formats and len(one.miscompares) < _ENOUGH:
                        share = self._job.seconds / len(FORMATS) / len(self._repeated)
                        self._use(one, form, self._shape(form, one.device), seed, self._pace.elapsed + share)
                seed += 1
            if all(len(one.miscompares) >= _ENOUGH or not one.formats for one in self._repeated):
                return

    def _shape(self, form: Format, device: Device) -> Shape:
        size = _SIZE if device.is_cuda else form.processor_size
        if device.small:
            size = min(size, _SMALL)
        return Shape(size, size, size)

    def _use(self, one: _Repeated, form: Format, shape: Shape, seed: int, until: float) -> None:
        what = f"{form.name}/{shape}/seed{seed}"
        drawn = operands(form, shape, seed)
        mine = one.load(drawn)
        first = one.product(form, mine)
        done = 1
        while done < 2 or (done < _PRODUCTS and self._pace.elapsed < until):
            self._pace.step()
            result = one.product(form, mine)
            done += 1
            if not same(result, first):
                first = self._differs(one, form, shape, what, mine, first, result)
                break
        one.digests[what] = hashlib.sha256(bits(first.cpu()).numpy().tobytes()).hexdigest()

    def _differs(
        self,
        one: _Repeated,
        form: Format,
        shape: Shape,
        what: str,
        mine: tuple[Tensor, Tensor],
        first: Tensor,
        result: Tensor,
    ) -> Tensor:
        """Notes which of two results is the odd one, by a third, and how it comes back; returns the other one."""
        if same(one.product(form, mine), result):
            first, result = result, first
        found = differences(what, result.cpu(), first.cpu())
        assert found is not None
        one.miscompares.append(found)

        def other() -> bool:
            fresh = one.load(operands(form, shape, self._job.seed + (1 << 32) + len(one.digests)))
            return not same(one.product(form, fresh), one.product(form, fresh))

        kind, repeats = recurrence(one.device, lambda: not same(one.product(form, mine), first), other, self._pace.step)
        one.miscompares[-1] = msgspec.structs.replace(found, kind=kind, repeats=repeats)
        return first
