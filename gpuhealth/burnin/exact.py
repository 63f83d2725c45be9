"""Exact arithmetic: products whose every bit is known, in every number format the device has.

The first product of a pair of operands is proven on the device and on the host (`operands`: integers, and Freivalds'
check); all later ones must equal it in every bit; the last is compared on the host once more, and before the first and
after the last the operands on the device are compared with those on the host. So nothing is believed because the
device says so, and the proofs' cost is shared by all products of the pair.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count, cycle

import msgspec
import torch
from torch import Tensor

from gpuhealth.burnin.device import Device, compute_the_same_every_time
from gpuhealth.burnin.faults import Faults, bits
from gpuhealth.burnin.gemm import FORMATS, Format, Shape, available, multiply
from gpuhealth.burnin.operands import Pair, draw
from gpuhealth.burnin.protocol import GpuOutcome, Job, Say, Stopped
from gpuhealth.burnin.recurrence import recurrence
from gpuhealth.burnin.test_timer import CommonPace
from gpuhealth.model.burnin_run import Miscompare

PRODUCTS_PER_PAIR = 64  # at least, if time allows; more until the next pair is drawn, so that a GPU never waits for it
_LARGEST = 8192  # m, k, n: fills the largest GPU
_SMALL = 192
_LOCATED_ROWS = 256  # of which the truth is computed on the host
_ENOUGH = 5  # miscompares, after which a device needs no further test


class Tested:
    """One device under test, and what was found."""

    def __init__(self, device: Device, faults: Faults) -> None:
        self.device = device
        self.formats = {form.name: available(form, device) for form in FORMATS}
        self.products: dict[str, int] = {}
        self.miscompares: list[Miscompare] = []
        self._faults = faults
        self._flops: dict[str, float] = {}
        self._seconds: dict[str, float] = {}

    def has(self, form: Format) -> bool:
        """Whether the device multiplies in this format, and is worth another product."""
        return not self.formats[form.name] and len(self.miscompares) < _ENOUGH

    def load(self, pair: Pair) -> Pair:
        """Brings a pair to the device."""
        loaded = pair.to(self.device)
        self._faults.inputs(self.device, loaded.left.values, loaded.right.values)
        return loaded

    def product(self, pair: Pair) -> Tensor:
        """One product of a loaded pair."""
        result: list[Tensor] = []
        left, right = pair.left.values, pair.right.values
        seconds = self.device.seconds(lambda: result.append(multiply(pair.form, left, right)))
        name, shape = pair.form.name, pair.shape
        self.products[name] = self.products.get(name, 0) + 1
        self._flops[name] = self._flops.get(name, 0.0) + 2.0 * shape.m * shape.k * shape.n
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds
        self._faults.result(self.device, result[0])
        return result[0]

    def figures(self) -> dict[str, float]:
        """Products, in all and of each format, and their rate; int8's are integer operations."""
        figures = {"products": float(sum(self.products.values()))}
        for name, flops in self._flops.items():
            figures[f"{name}_products"] = float(self.products[name])
            figures[f"{name}_tflops"] = flops / self._seconds[name] / 1e12
        return figures

    def outcome(self) -> GpuOutcome:
        """What the test says of the device."""
        failure = ""
        if self.formats["fp32"]:  # every device has it: this one does not work
            failure = f"a small product in fp32 failed: {self.formats['fp32']}"
        elif self.miscompares:
            worst = self.miscompares[0]
            kind = f", {worst.kind.replace('_', ' ')}" if worst.kind else ""
            failure = (
                f"{len(self.miscompares)} wrong among {sum(self.products.values())} products, first {worst.what}: "
                f"{worst.wrong} wrong elements from {worst.index} on, bits {worst.xor or 'unknown'}{kind}"
            )
        return GpuOutcome(self.device.gpu, failure, figures=self.figures(), miscompares=tuple(self.miscompares))


def run(job: Job, devices: Sequence[Device], say: Say, faults: Faults) -> tuple[GpuOutcome, ...]:
    """Works for about `job.seconds`; when told to stop, the outcomes are of what was done by then."""
    compute_the_same_every_time()
    tested = [Tested(device, faults) for device in devices]
    drawing = ThreadPoolExecutor(1)
    try:
        _Exact(job, tested, say).work(drawing)
    except Stopped:
        pass
    finally:
        drawing.shutdown(wait=False, cancel_futures=True)  # large operands take seconds that a stop does not have
    return tuple(one.outcome() for one in tested)


def shapes(form: Format, largest: int, chance: random.Random) -> Iterator[Shape]:
    """Shapes in turn: the largest, multiples of 16 at random, odd ones at random, few rows and a long sum."""

    def size(of: int = 1) -> int:
        number = chance.randint(largest // 4, largest)
        return max(of, number // of * of)

    step = form.multiple_of
    while True:
        yield Shape(largest, largest, largest)
        yield Shape(size(step), size(step), size(step))
        yield Shape(size(16), size(16), size(16))
        yield Shape(max(32, largest // 4), 2 * largest, largest // 2)


class _Exact:
    def __init__(self, job: Job, tested: Sequence[Tested], say: Say) -> None:
        self._job, self._tested = job, tested
        self._pace = CommonPace(job.seconds, {one.device.gpu: one.figures for one in tested}, say)
        self._chance = random.Random(job.seed)  # noqa: S311 - shapes to compute

    def work(self, drawing: ThreadPoolExecutor) -> None:
        """All formats in turn, each once at least, until the time is over."""
        forms = [form for form in FORMATS if any(one.has(form) for one in self._tested)]
        if not forms:
            return
        in_turn = cycle([(form, shapes(form, self._largest(form), self._chance)) for form in forms])
        seeds = count(self._job.seed)
        pairs = (drawing.submit(draw, form, next(of_form), next(seeds)) for form, of_form in in_turn)
        upcoming = next(pairs)
        for number in count():
            over = number >= len(forms) and self._pace.elapsed >= self._job.seconds
            if over or all(len(one.miscompares) >= _ENOUGH for one in self._tested):
                break
            pair = upcoming.result()
            upcoming = next(pairs)
            self._use(pair, upcoming, self._pace.elapsed + self._job.seconds / len(forms))

    def _largest(self, form: Format) -> int:
        device = self._tested[0].device
        if device.small:
            return min(form.processor_size, _SMALL)
        if not device.is_cuda:
            return form.processor_size
        largest = _LARGEST
        while 64 * largest**2 > min(one.device.free_bytes() for one in self._tested):  # operands, results, fp64 copies
            largest //= 2
        return largest

    def _use(self, pair: Pair, upcoming: Future[Pair], until: float) -> None:
        """Multiplies one pair on all devices that have its format."""
        loaded = [(one, one.load(pair)) for one in self._tested if one.has(pair.form)]
        proven = []
        for one, mine in loaded:
            self._pace.step()
            if self._operands_hold(one, pair, mine):
                first = one.product(mine)
                if self._proven(one, pair, mine, first):
                    proven.append((one, mine, first))
        last: dict[str, Tensor] = {}
        for number in count(1):
            if self._pace.elapsed >= until or not proven or (number >= PRODUCTS_PER_PAIR and upcoming.done()):
                break
            for one, mine, first in proven:
                self._pace.step()
                last[one.device.gpu] = result = one.product(mine)
                if not same(result, first):
                    self._report(one, pair, mine, result)
                    proven = [other for other in proven if other[0] is not one]
        for one, mine, first in proven:
            self._operands_hold(one, pair, mine)
            result = last.get(one.device.gpu, first)
            if not same(result.cpu(), first.cpu()):
                self._report(one, pair, mine, result)

    def _operands_hold(self, one: Tested, pair: Pair, mine: Pair) -> bool:
        """Whether the device has the operands that were drawn."""
        for name, drawn, there in (("A", pair.left, mine.left), ("B", pair.right, mine.right)):
            if not same(there.values.cpu(), drawn.values):
                found = differences(f"operand {name} of {pair}", there.values.cpu(), drawn.values)
                assert found is not None
                self._classify(one, found, lambda: _corrupted(one, pair), lambda: _corrupted(one, pair))
                return False
        return True

    def _proven(self, one: Tested, pair: Pair, mine: Pair, result: Tensor) -> bool:
        """Whether the device's first product is right: by a check on the device, and by one on the host."""
        here = mine.wrong_rows(result).cpu()
        if len(here) or len(pair.wrong_rows(result.cpu())):
            self._report(one, pair, mine, result)
            return False
        return True

    def _report(self, one: Tested, pair: Pair, mine: Pair, result: Tensor) -> None:
        """Locates what is wrong in a result, against the truth computed on the host, and classifies it."""
        on_host = result.cpu()
        rows = pair.wrong_rows(on_host)
        if not len(rows):
            self._wrong_check(one, pair, mine)
            return
        located = rows[:_LOCATED_ROWS]
        truth = on_host.clone()
        truth[located] = pair.truth(located)
        found = differences(str(pair), on_host, truth)
        assert found is not None
        found = msgspec.structs.replace(found, wrong=found.wrong + len(rows) - len(located))

        def other() -> bool:
            fresh = draw(pair.form, pair.shape, self._chance.getrandbits(32)).to(one.device)
            return len(fresh.wrong_rows(one.product(fresh))) > 0

        self._classify(one, found, lambda: len(mine.wrong_rows(one.product(mine))) > 0, other)

    def _wrong_check(self, one: Tested, pair: Pair, mine: Pair) -> None:
        """The device says that something is wrong, and the host finds nothing: then the device's check was wrong."""

        def again() -> bool:
            return len(mine.wrong_rows(one.product(mine))) > 0

        self._classify(one, Miscompare(f"check of {pair}", index=0, wrong=1), again, again)

    def _classify(self, one: Tested, found: Miscompare, again: Callable[[], bool], other: Callable[[], bool]) -> None:
        one.miscompares.append(found)  # before it is known how it behaves: one may be told to stop meanwhile
        kind, repeats = recurrence(one.device, again, other, self._pace.step)
        one.miscompares[-1] = msgspec.structs.replace(found, kind=kind, repeats=repeats)


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two results have the same bits; -0.0 is not 0.0, and a NaN is equal to itself."""
    if not one.is_contiguous():  # stored by columns
        one, other = one.t(), other.t()
    seen, expected = (bits(result).flatten() for result in (one, other))
    if seen.numel() * seen.element_size() % 8 == 0:
        seen, expected = seen.view(torch.int64), expected.view(torch.int64)
    return torch.equal(seen, expected)


def _corrupted(one: Tested, pair: Pair) -> bool:
    """Whether operands do not arrive as they were drawn."""
    mine = one.load(pair)
    return not (same(mine.left.values.cpu(), pair.left.values) and same(mine.right.values.cpu(), pair.right.values))


def differences(what: str, got: Tensor, expected: Tensor) -> Miscompare | None:
    """The first element, in rows, whose bits differ, and how many there are."""
    width = 8 * got.element_size()
    ours, theirs = bits(got).flatten(), bits(expected).flatten()
    differ = torch.nonzero(ours != theirs).flatten()
    if not len(differ):
        return None
    index = int(differ[0])
    mine, right = (int(side[index]) % (1 << width) for side in (ours, theirs))
    digits = width // 4
    return Miscompare(
        what,
        index,
        len(differ),
        xor=f"0x{mine ^ right:0{digits}x}",
        got=f"0x{mine:0{digits}x}",
        expected=f"0x{right:0{digits}x}",
    )
