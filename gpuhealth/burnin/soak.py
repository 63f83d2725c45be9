"""Full load until the temperature is steady: the same product again and again, its speed second by second.

Operands are random over their whole range, which draws more power than numbers that repeat. Every second a product is
compared with the first one, bit by bit: what goes wrong only when it is hot shows here. What is wrong from the first
product on is for the exact products of another test to find.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from gpuhealth.burnin import words
from gpuhealth.burnin.device import Device
from gpuhealth.burnin.faults import Faults
from gpuhealth.burnin.figures import TFLOPS
from gpuhealth.burnin.jobs import GpuOutcome, Job, Say, Stopped
from gpuhealth.burnin.pace import Pace
from gpuhealth.readings import Miscompare

_SIZE = 8192
_SMALL_SIZE = 256
_BATCH_SECONDS = 0.2  # of work given to the device at once: it hardly waits for us, and we answer in time
_SMALL_BATCH_SECONDS = 0.02
_WARM_UP_SHARE = 0.2  # of the time, until clocks and temperature have settled; not in the figures
_LISTED = 4


def run(job: Job, devices: Sequence[Device], say: Say, faults: Faults) -> tuple[GpuOutcome, ...]:
    """Loads one device after another; that all GPUs are loaded at once, a process for each of them does."""
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
        self._dtype = _dtype(device)
        self._figure = f"{_NAMES[self._dtype]}{TFLOPS}"

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
        return f"{self._wrong} of {self._compared} products differ from the first: {words.in_words(self._misses[0])}"

    def _load(self) -> None:
        generator = torch.Generator(self._device.torch).manual_seed(self._seed)
        left, right = (
            torch.randn(self._size, self._size, generator=generator, device=self._device.torch, dtype=torch.float32).to(
                self._dtype
            )
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
            self._compare(left, right, result, first)

    def _product(self, left: Tensor, right: Tensor, result: Tensor) -> None:
        torch.mm(left, right, out=result)
        self._faults.result(self._device, result)

    def _compare(self, left: Tensor, right: Tensor, result: Tensor, first: Tensor) -> None:
        what = f"{_NAMES[self._dtype]} {'x'.join([str(self._size)] * 3)} seed {self._seed}"

        def again() -> Miscompare | None:
            self._product(left, right, result)
            return words.miscompare(what, _as_words(result), _as_words(first))

        miss = again()
        self._compared += 1
        if miss is not None:
            self._wrong += 1
            if len(self._misses) < _LISTED:
                self._misses.append(words.classified(miss, again))


_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


def _dtype(device: Device) -> torch.dtype:
    """What the tensor cores do best: bf16 from Ampere on, fp16 before. On a processor what its library does well."""
    if not device.is_cuda:
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device.torch) >= (8, 0) else torch.float16


def _as_words(result: Tensor) -> Tensor:
    return result.view(-1).view(torch.int64)
