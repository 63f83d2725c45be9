"""Exact arithmetic: matrix products whose exact result is known, in every number format that the device supports.

The first product of an operand pair is proven right on the device and on the host (see `operands`: integers, and
Freivalds' check). All later products must equal it bit for bit; the last one is compared on the host once more. Before
the first product and after the last, the operands on the device are compared with those on the host. So no result is
trusted on the word of the device alone, and all products of a pair share the cost of its proofs.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count, cycle
from typing import NamedTuple

import msgspec
from torch import Tensor

from gpuhealth.burnin.bit_compare import compare_bits, same_bits
from gpuhealth.burnin.device import Device, enable_deterministic_mode
from gpuhealth.burnin.faults import InjectedFaults
from gpuhealth.burnin.gemm import FORMATS, GemmFormat, GemmShape, multiply, unavailable_reason
from gpuhealth.burnin.operands import OperandPair, draw
from gpuhealth.burnin.protocol import DeviceResult, Job, OnProgress, StopRequested
from gpuhealth.burnin.recurrence import recurrence
from gpuhealth.burnin.test_timer import SharedTestTimer
from gpuhealth.model.burnin_run import Miscompare

PRODUCTS_PER_PAIR = 64  # at least, if time allows; more until the next pair is drawn, so that a GPU never waits for it
_MAX_SIZE = 8192  # m, k, n: enough to fill the largest GPU
_SMALL_SIZE = 192
_MAX_LOCATED_ROWS = 256  # rows whose right values are computed on the host
_MAX_MISCOMPARES = 5  # after which a device needs no further test


class DeviceUnderTest:
    """One device with its products and miscompares so far."""

    def __init__(self, device: Device, faults: InjectedFaults) -> None:
        self.device = device
        self.unavailable = {fmt.name: unavailable_reason(fmt, device) for fmt in FORMATS}
        self.products: dict[str, int] = {}
        self.miscompares: list[Miscompare] = []
        self._faults = faults
        self._flops: dict[str, float] = {}
        self._seconds: dict[str, float] = {}

    @property
    def has_failed(self) -> bool:
        """Whether there are so many miscompares that further tests add nothing."""
        return len(self.miscompares) >= _MAX_MISCOMPARES

    def needs(self, fmt: GemmFormat) -> bool:
        """Whether the device supports this format and should be tested further."""
        return not self.unavailable[fmt.name] and not self.has_failed

    def load(self, pair: OperandPair) -> OperandPair:
        """Copy a pair to the device."""
        loaded = pair.to(self.device)
        self._faults.after_load(self.device, loaded.left.values, loaded.right.values)
        return loaded

    def multiply(self, pair: OperandPair) -> Tensor:
        """One product of a loaded pair, timed and counted."""
        result: list[Tensor] = []
        left, right = pair.left.values, pair.right.values
        seconds = self.device.seconds(lambda: result.append(multiply(pair.fmt, left, right)))
        name, shape = pair.fmt.name, pair.shape
        self.products[name] = self.products.get(name, 0) + 1
        self._flops[name] = self._flops.get(name, 0.0) + 2.0 * shape.m * shape.k * shape.n
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds
        self._faults.after_product(self.device, result[0])
        return result[0]

    def figures(self) -> dict[str, float]:
        """Number of products, in total and by format, and TFLOPS by format (integer operations for int8)."""
        figures = {"products": float(sum(self.products.values()))}
        for name, flops in self._flops.items():
            figures[f"{name}_products"] = float(self.products[name])
            figures[f"{name}_tflops"] = flops / self._seconds[name] / 1e12
        return figures

    def result(self) -> DeviceResult:
        """The device's result so far."""
        failure = ""
        if self.unavailable["fp32"]:  # every device supports it: this one does not work
            failure = f"a small product in fp32 failed: {self.unavailable['fp32']}"
        elif self.miscompares:
            products = sum(self.products.values())
            failure = f"{len(self.miscompares)} of {products} products are wrong; {self.miscompares[0].describe()}"
        return DeviceResult(
            gpu=self.device.gpu, failure=failure, figures=self.figures(), miscompares=tuple(self.miscompares)
        )


class _Loaded(NamedTuple):
    """A device with its copy of an operand pair, and its first product once that is proven right."""

    dut: DeviceUnderTest
    pair: OperandPair
    first: Tensor


def run(
    job: Job, devices: Sequence[Device], on_progress: OnProgress, faults: InjectedFaults
) -> tuple[DeviceResult, ...]:
    """Work for about `job.seconds` on all devices together; after a stop, the results are those so far."""
    enable_deterministic_mode()
    duts = [DeviceUnderTest(device, faults) for device in devices]
    drawing = ThreadPoolExecutor(1)
    try:
        _ExactTest(job, duts, on_progress).work(drawing)
    except StopRequested:
        pass
    finally:
        drawing.shutdown(wait=False, cancel_futures=True)  # drawing large operands takes seconds, too long for a stop
    return tuple(dut.result() for dut in duts)


def shapes(fmt: GemmFormat, largest: int, rng: random.Random) -> Iterator[GemmShape]:
    """Shapes in rotation: the largest, random odd sizes, random multiples of 16, and few rows with a long sum."""

    def size(multiple_of: int = 1) -> int:
        number = rng.randint(largest // 4, largest)
        return max(multiple_of, number // multiple_of * multiple_of)

    step = fmt.multiple_of
    while True:
        yield GemmShape(largest, largest, largest)
        yield GemmShape(size(step), size(step), size(step))
        yield GemmShape(size(16), size(16), size(16))
        yield GemmShape(max(32, largest // 4), 2 * largest, largest // 2)


class _ExactTest:
    def __init__(self, job: Job, duts: Sequence[DeviceUnderTest], on_progress: OnProgress) -> None:
        self._job, self._duts = job, duts
        self._timer = SharedTestTimer(job.seconds, {dut.device.gpu: dut.figures for dut in duts}, on_progress)
        self._rng = random.Random(job.seed)  # noqa: S311 - shapes to compute

    def work(self, drawing: ThreadPoolExecutor) -> None:
        """Test all formats in rotation, each at least once, until the time is over."""
        formats = [fmt for fmt in FORMATS if any(dut.needs(fmt) for dut in self._duts)]
        if not formats:
            return
        rotation = cycle([(fmt, shapes(fmt, self._largest(fmt), self._rng)) for fmt in formats])
        seeds = count(self._job.seed)
        pairs = (drawing.submit(draw, fmt, next(of_format), next(seeds)) for fmt, of_format in rotation)
        upcoming = next(pairs)
        for number in count():
            expired = number >= len(formats) and self._timer.elapsed >= self._job.seconds
            if expired or all(dut.has_failed for dut in self._duts):
                break
            pair = upcoming.result()
            upcoming = next(pairs)
            self._test_pair(pair, upcoming, self._timer.elapsed + self._job.seconds / len(formats))

    def _largest(self, fmt: GemmFormat) -> int:
        device = self._duts[0].device
        if device.small:
            return min(fmt.processor_size, _SMALL_SIZE)
        if not device.is_cuda:
            return fmt.processor_size
        largest = _MAX_SIZE
        while 64 * largest**2 > min(dut.device.free_bytes() for dut in self._duts):  # operands, results, fp64 copies
            largest //= 2
        return largest

    def _test_pair(self, pair: OperandPair, upcoming: Future[OperandPair], until: float) -> None:
        """Multiply one pair on all devices that need its format, until `until` seconds on the timer."""
        proven = list(self._proven(pair))
        last: dict[str, Tensor] = {}
        for number in count(1):
            if self._timer.elapsed >= until or not proven or (number >= PRODUCTS_PER_PAIR and upcoming.done()):
                break
            for loaded in proven:
                self._timer.step()
                last[loaded.dut.device.gpu] = result = loaded.dut.multiply(loaded.pair)
                if not same_bits(result, loaded.first):
                    self._report(loaded.dut, pair, loaded.pair, result)
                    proven = [other for other in proven if other.dut is not loaded.dut]
        for dut, on_device, first in proven:
            self._operands_intact(dut, pair, on_device)
            result = last.get(dut.device.gpu, first)
            if not same_bits(result.cpu(), first.cpu()):
                self._report(dut, pair, on_device, result)

    def _proven(self, pair: OperandPair) -> Iterator[_Loaded]:
        """The devices whose operands are intact and whose first product is right."""
        loaded = [(dut, dut.load(pair)) for dut in self._duts if dut.needs(pair.fmt)]
        for dut, on_device in loaded:
            self._timer.step()
            if self._operands_intact(dut, pair, on_device):
                first = dut.multiply(on_device)
                if self._is_right(dut, pair, on_device, first):
                    yield _Loaded(dut, on_device, first)

    def _operands_intact(self, dut: DeviceUnderTest, pair: OperandPair, on_device: OperandPair) -> bool:
        """Whether the operands on the device are those that were drawn; reports those that are not."""
        for name, drawn, copied in (("A", pair.left, on_device.left), ("B", pair.right, on_device.right)):
            if not same_bits(copied.values.cpu(), drawn.values):
                found = compare_bits(f"operand {name} of {pair}", copied.values.cpu(), drawn.values)
                assert found is not None
                self._classify(dut, found, lambda: _is_corrupted(dut, pair), lambda: _is_corrupted(dut, pair))
                return False
        return True

    def _is_right(self, dut: DeviceUnderTest, pair: OperandPair, on_device: OperandPair, result: Tensor) -> bool:
        """Whether a product is right, by a check on the device and by one on the host; reports one that is not."""
        wrong_on_device = on_device.wrong_rows(result).cpu()
        if len(wrong_on_device) or len(pair.wrong_rows(result.cpu())):
            self._report(dut, pair, on_device, result)
            return False
        return True

    def _report(self, dut: DeviceUnderTest, pair: OperandPair, on_device: OperandPair, result: Tensor) -> None:
        """Locate and classify the wrong elements of a result, by the right values computed on the host."""

        def repeat() -> bool:
            return len(on_device.wrong_rows(dut.multiply(on_device))) > 0

        def with_other_operands() -> bool:
            fresh = draw(pair.fmt, pair.shape, self._rng.getrandbits(32)).to(dut.device)
            return len(fresh.wrong_rows(dut.multiply(fresh))) > 0

        on_host = result.cpu()
        rows = pair.wrong_rows(on_host)
        if not len(rows):  # the device's check found an error where the host finds none: the check itself was wrong
            self._classify(dut, Miscompare(what=f"check of {pair}", index=0, wrong=1), repeat, repeat)
            return
        located = rows[:_MAX_LOCATED_ROWS]
        truth = on_host.clone()
        truth[located] = pair.truth(located)
        found = compare_bits(str(pair), on_host, truth)
        assert found is not None
        found = msgspec.structs.replace(found, wrong=found.wrong + len(rows) - len(located))
        self._classify(dut, found, repeat, with_other_operands)

    def _classify(
        self,
        dut: DeviceUnderTest,
        found: Miscompare,
        repeat: Callable[[], bool],
        with_other_operands: Callable[[], bool],
    ) -> None:
        dut.miscompares.append(found)  # first without its kind: a stop may come while it is being repeated
        kind, repeats = recurrence(dut.device, repeat, with_other_operands, self._timer.step)
        dut.miscompares[-1] = msgspec.structs.replace(found, kind=kind, repeats=repeats)


def _is_corrupted(dut: DeviceUnderTest, pair: OperandPair) -> bool:
    """Whether operands differ from those drawn once they are copied to the device."""
    copied = dut.load(pair)
    return not (
        same_bits(copied.left.values.cpu(), pair.left.values)
        and same_bits(copied.right.values.cpu(), pair.right.values)
    )
