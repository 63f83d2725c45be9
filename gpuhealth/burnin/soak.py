"""Full load until the temperature is steady: the same product again and again, its speed second by second.

Operands are random, which draws more power than repetition would. Every second two products are looked at: the load's
own must have the bits of the first one, and one of exact arithmetic those that are known.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Sequence

import msgspec
import torch
from torch import Tensor

from gpuhealth.burnin import word_patterns as words
from gpuhealth.burnin.device import Device, compute_the_same_every_time
from gpuhealth.burnin.exact import differences, same
from gpuhealth.burnin.faults import Faults
from gpuhealth.burnin.figures import TFLOPS
from gpuhealth.burnin.gemm import FORMATS, Format, Shape, multiply
from gpuhealth.burnin.operands import draw
from gpuhealth.burnin.protocol import GpuOutcome, Job, Say, Stopped
from gpuhealth.burnin.test_timer import Pace
from gpuhealth.model.burnin_run import Miscompare

_SIZE = 8192
_SMALL_SIZE = 256
_EXACT_SIZE = 2048  # the processor draws its operands
_BATCH_SECONDS = 0.2  # of work given to the device at once: it hardly waits for us, and we answer in time
_SMALL_BATCH_SECONDS = 0.02
_WARM_UP_SHARE = 0.2  # of the time, until clocks and temperature have settled; not in the figures
_LISTED = 4


def run(job: Job, devices: Sequence[Device], say: Say, faults: Faults) -> tuple[GpuOutcome, ...]:
    """Loads one device after another; that all GPUs are loaded at once, a process for each of them does."""
    compute_the_same_every_time()
    return tuple(_Soak(job, device, say, faults, job.seconds / len(devices)).outcome() for device in devices)


class _Soak:
    def __init__(self, job: Job, device: Device, say: Say, faults: Faults, seconds: float) -> None:
        self._device = device
        self._faults = faults
        self._seed = job.seed
        self._pace = Pace(seconds, device.gpu, say)
        self._seconds: list[tuple[float, float]] = []  # (share of the time that had passed, TFLOPS), one a second
        self._misses: list[Miscompare] = []
        self._wrong = self._compared = 0
        self._size = _SMALL_SIZE if device.small else _SIZE
        self._format = _format(device)
        self._figure = f"{self._format.name}{TFLOPS}"
        size = min(self._size, _EXACT_SIZE)
        self._known = draw(self._format, Shape(size, size, size), job.seed)
        self._known_here = self._known.to(device)

    def outcome(self) -> GpuOutcome:
        with contextlib.suppress(Stopped):
            self._load()
        kept = [rate for share, rate in self._seconds if share >= _WARM_UP_SHARE] or [rate for _, rate in self._seconds]
        figures = {"products_compared": float(self._compared)}
        if kept:
            figures[self._figure] = statistics.fmean(kept)
            figures[f"{self._figure}_worst_second"] = min(kept)
        return GpuOutcome(
            self._device.gpu,
            failure=self._failure(),
            figures=figures,
            miscompares=tuple(self._misses),
        )

    def _failure(self) -> str:
        if not self._misses:
            return ""
        first = self._misses[0]
        return (
            f"{self._wrong} of {self._compared} products are wrong: {first.wrong} elements of {first.what},"
            f" the first at {first.index} (bits {first.xor}, {first.kind.replace('_', ' ')})"
        )

    def _load(self) -> None:
        generator = torch.Generator(self._device.torch).manual_seed(self._seed)
        left, right = (
            torch.randn(self._size, self._size, generator=generator, device=self._device.torch).to(self._format.left)
            for _ in range(2)
        )
        result = torch.empty_like(left)
        self._product(left, right, result)
        first = result.clone()
        once = self._device.seconds(lambda: torch.mm(left, right, out=result))
        seconds = _SMALL_BATCH_SECONDS if self._device.small else _BATCH_SECONDS
        batch = max(1, int(seconds / max(once, 1e-6)))

        def work() -> None:
            for _ in range(batch):
                torch.mm(left, right, out=result)

        while not self._seconds or not self._pace.over:
            self._pace.step()
            rate, busy, batches, began = 0.0, 0.0, 0, time.monotonic()
            while not batches or (time.monotonic() - began < 1.0 and not self._pace.over):
                busy += self._device.seconds(self._faults.slowed(self._device, work))
                batches += 1
                rate = batches * batch * 2 * self._size**3 / busy / 1e12
                self._pace.step(rates={self._figure: rate})
            self._seconds.append((self._pace.done, rate))
            self._look_at(lambda: self._repeated(left, right, result, first))
            self._look_at(self._exact)

    def _product(self, left: Tensor, right: Tensor, result: Tensor) -> None:
        torch.mm(left, right, out=result)
        self._faults.result(self._device, result)

    def _look_at(self, product: Callable[[], Miscompare | None]) -> None:
        miss = product()
        self._compared += 1
        if miss is not None:
            self._wrong += 1
            if len(self._misses) < _LISTED:
                self._misses.append(words.classified(miss, product))
        self._pace.step()

    def _repeated(self, left: Tensor, right: Tensor, result: Tensor, first: Tensor) -> Miscompare | None:
        self._product(left, right, result)
        if same(result, first):
            return None
        what = f"the load {self._format.name} {'x'.join([str(self._size)] * 3)} seed {self._seed}"
        return differences(what, result, first)

    def _exact(self) -> Miscompare | None:
        values = multiply(self._format, self._known_here.left.values, self._known_here.right.values)
        self._faults.result(self._device, values)
        rows = self._known_here.wrong_rows(values)
        if not len(rows):
            return None
        found = differences(str(self._known), values[rows].cpu(), self._known.truth(rows.cpu()))
        if found is None:
            return Miscompare(str(self._known), int(rows[0]) * values.shape[1], len(rows), repeats="the check itself")
        row, column = divmod(found.index, values.shape[1])
        return msgspec.structs.replace(found, index=int(rows[row]) * values.shape[1] + column)


def _format(device: Device) -> Format:
    """What the tensor cores do best: bf16 from Ampere on, fp16 before. On a processor what its library does well."""
    name = "fp32"
    if device.is_cuda:
        name = "bf16" if torch.cuda.get_device_capability(device.torch) >= (8, 0) else "fp16"
    return next(each for each in FORMATS if each.name == name)
