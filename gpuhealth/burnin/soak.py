"""Full load until the temperature is steady: the same matrix product repeated, with its throughput second by second.

Operands are random, which draws more power than repetitive data. Every second two products are checked: the load's own
must have the bits of the first one, and a product of `operands` the bits that are known.
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
from gpuhealth.burnin.bit_compare import compare_bits, same_bits
from gpuhealth.burnin.device import Device, enable_deterministic_mode
from gpuhealth.burnin.faults import InjectedFaults
from gpuhealth.burnin.figures import TFLOPS
from gpuhealth.burnin.gemm import FORMATS, GemmFormat, GemmShape, multiply
from gpuhealth.burnin.operands import draw
from gpuhealth.burnin.protocol import DeviceResult, Job, OnProgress, StopRequested
from gpuhealth.burnin.test_timer import TestTimer
from gpuhealth.model.burnin_run import Miscompare

_SIZE = 8192
_SMALL_SIZE = 256
_EXACT_SIZE = 2048  # its operands are drawn on the processor
_BATCH_SECONDS = 0.2  # of work queued at once: the device hardly waits for us, and a stop is noticed in time
_SMALL_BATCH_SECONDS = 0.02
_WARM_UP_SHARE = 0.2  # of the time, until clocks and temperature have settled; not counted in the figures
_MAX_LISTED = 4


def run(
    job: Job, devices: Sequence[Device], on_progress: OnProgress, faults: InjectedFaults
) -> tuple[DeviceResult, ...]:
    """Load one device after another. All GPUs are loaded at once because each has a worker process of its own."""
    enable_deterministic_mode()
    seconds = job.seconds / len(devices)
    return tuple(_SoakTest(job, device, on_progress, faults, seconds).result() for device in devices)


class _SoakTest:
    def __init__(
        self, job: Job, device: Device, on_progress: OnProgress, faults: InjectedFaults, seconds: float
    ) -> None:
        self._device = device
        self._faults = faults
        self._seed = job.seed
        self._timer = TestTimer(seconds, device.gpu, on_progress)
        self._throughput: list[tuple[float, float]] = []  # (share of the time that had passed, TFLOPS), one per second
        self._miscompares: list[Miscompare] = []
        self._wrong = self._compared = 0
        self._size = _SMALL_SIZE if device.small else _SIZE
        self._format = _format(device)
        self._figure = f"{self._format.name}{TFLOPS}"
        size = min(self._size, _EXACT_SIZE)
        self._known = draw(self._format, GemmShape(size, size, size), job.seed)
        self._known_on_device = self._known.to(device)

    def result(self) -> DeviceResult:
        with contextlib.suppress(StopRequested):
            self._load()
        rates = [rate for share, rate in self._throughput if share >= _WARM_UP_SHARE]
        rates = rates or [rate for _, rate in self._throughput]
        figures = {"products_compared": float(self._compared)}
        if rates:
            figures[self._figure] = statistics.fmean(rates)
            figures[f"{self._figure}_worst_second"] = min(rates)
        return DeviceResult(
            gpu=self._device.gpu,
            failure=self._failure(),
            figures=figures,
            miscompares=tuple(self._miscompares),
        )

    def _failure(self) -> str:
        if not self._miscompares:
            return ""
        return f"{self._wrong} of {self._compared} products are wrong; {self._miscompares[0].describe()}"

    def _load(self) -> None:
        generator = torch.Generator(self._device.torch).manual_seed(self._seed)
        left, right = (
            torch.randn(self._size, self._size, generator=generator, device=self._device.torch).to(self._format.left)
            for _ in range(2)
        )
        result = torch.empty_like(left)
        self._multiply(left, right, result)
        first = result.clone()
        once = self._device.seconds(lambda: torch.mm(left, right, out=result))
        seconds = _SMALL_BATCH_SECONDS if self._device.small else _BATCH_SECONDS
        batch = max(1, int(seconds / max(once, 1e-6)))

        def work() -> None:
            for _ in range(batch):
                torch.mm(left, right, out=result)

        while not self._throughput or not self._timer.expired:
            self._timer.step()
            rate, busy, batches, start = 0.0, 0.0, 0, time.monotonic()
            while not batches or (time.monotonic() - start < 1.0 and not self._timer.expired):
                busy += self._device.seconds(self._faults.slowed(self._device, work))
                batches += 1
                rate = batches * batch * 2 * self._size**3 / busy / 1e12
                self._timer.step(rates={self._figure: rate})
            self._throughput.append((self._timer.fraction, rate))
            self._check(lambda: self._repeated_product(left, right, result, first))
            self._check(self._exact_product)

    def _multiply(self, left: Tensor, right: Tensor, result: Tensor) -> None:
        torch.mm(left, right, out=result)
        self._faults.after_product(self._device, result)

    def _check(self, compare_product: Callable[[], Miscompare | None]) -> None:
        miss = compare_product()
        self._compared += 1
        if miss is not None:
            self._wrong += 1
            if len(self._miscompares) < _MAX_LISTED:
                self._miscompares.append(words.classify(miss, compare_product))
        self._timer.step()

    def _repeated_product(self, left: Tensor, right: Tensor, result: Tensor, first: Tensor) -> Miscompare | None:
        self._multiply(left, right, result)
        if same_bits(result, first):
            return None
        what = f"the load {self._format.name} {'x'.join([str(self._size)] * 3)} seed {self._seed}"
        return compare_bits(what, result, first)

    def _exact_product(self) -> Miscompare | None:
        values = multiply(self._format, self._known_on_device.left.values, self._known_on_device.right.values)
        self._faults.after_product(self._device, values)
        rows = self._known_on_device.wrong_rows(values)
        if not len(rows):
            return None
        found = compare_bits(str(self._known), values[rows].cpu(), self._known.truth(rows.cpu()))
        if found is None:
            index = int(rows[0]) * values.shape[1]
            repeats = "the device's check was wrong, not the product"
            return Miscompare(what=str(self._known), index=index, wrong=len(rows), repeats=repeats)
        row, column = divmod(found.index, values.shape[1])
        return msgspec.structs.replace(found, index=int(rows[row]) * values.shape[1] + column)


def _format(device: Device) -> GemmFormat:
    """The format with the highest load: bf16 on tensor cores from Ampere on, fp16 before; fp32 on a processor."""
    name = "fp32"
    if device.is_cuda:
        name = "bf16" if torch.cuda.get_device_capability(device.torch) >= (8, 0) else "fp16"
    return next(fmt for fmt in FORMATS if fmt.name == name)
