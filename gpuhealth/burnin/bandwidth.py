"""How fast a device reads and writes its own memory, and copies from and to the host; all data is compared afterwards.

What is counted: bytes written by a fill, bytes read by a sum, bytes read and written by a copy within the device, and
bytes moved, once, by a copy from or to the host. Host memory is pinned on CUDA. Figures are medians of the samples.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gpuhealth.burnin import word_patterns as words
from gpuhealth.burnin.device import Device
from gpuhealth.burnin.faults import Faults
from gpuhealth.burnin.figures import DEVICE_TO_HOST, HOST_TO_DEVICE, MEMORY_COPY, MEMORY_READ, MEMORY_WRITE
from gpuhealth.burnin.protocol import GpuOutcome, Job, Say, Stopped
from gpuhealth.burnin.test_timer import Pace
from gpuhealth.model.burnin_run import Miscompare

BUFFER_BYTES = 512 << 20  # as nvbandwidth's: far beyond any cache
SMALL_BUFFER_BYTES = 1 << 20
_SHARE_OF_FREE = 8  # source, target, and what they are compared with must fit
_REPEATS = 4  # of an operation in a sample: one alone is as short as its launch
_LEAST_SAMPLES = 3
_LISTED = 4  # misses that are looked into
_FILL = 0x5555_5555_5555_5555


class Transfer(NamedTuple):
    """One thing that is timed and compared."""

    figure: str
    what: str
    target: Tensor  # int64, where the result is to be
    work: Callable[[], object]
    wanted: Callable[[], Tensor | int]  # what `target` must then hold
    counted: int  # bytes


def run(job: Job, devices: Sequence[Device], say: Say, faults: Faults) -> tuple[GpuOutcome, ...]:
    """Samples of all five for as long as the job says, at least three; one device after another."""
    return tuple(_BandwidthTest(job, device, say, faults, job.seconds / len(devices)).outcome() for device in devices)


def buffer_words(device: Device) -> int:
    """How many words a buffer for timing copies has."""
    wanted = SMALL_BUFFER_BYTES if device.small else BUFFER_BYTES
    return min(wanted, device.free_bytes() // _SHARE_OF_FREE) // words.BYTES


class _BandwidthTest:
    def __init__(self, job: Job, device: Device, say: Say, faults: Faults, seconds: float) -> None:
        self._device = device
        self._faults = faults
        self._seed = job.seed
        self._pace = Pace(seconds, device.gpu, say)
        self._samples: dict[str, list[float]] = {}  # figure -> GB/s
        self._rates: dict[str, float] = {}  # the last of each
        self._misses: list[Miscompare] = []
        self._count = buffer_words(device)

    def outcome(self) -> GpuOutcome:
        with contextlib.suppress(Stopped):
            self._measure()
        return GpuOutcome(
            self._device.gpu,
            failure=words.failure(self._misses),
            figures={figure: statistics.median(samples) for figure, samples in self._samples.items()},
            miscompares=tuple(self._misses),
        )

    def _measure(self) -> None:
        transfers = list(self._transfers())
        rounds = 0
        while rounds < _LEAST_SAMPLES or not self._pace.over:
            rounds += 1
            for transfer in transfers:
                self._sample(transfer)

    def _transfers(self) -> Iterator[Transfer]:
        device, count, seed = self._device.torch, self._count, self._seed
        host, back = (torch.empty(count, dtype=torch.int64, pin_memory=self._device.is_cuda) for _ in range(2))
        host.copy_(words.numbers(count, seed, host.device))
        source = words.numbers(count, seed, device)
        target, total = torch.empty_like(source), torch.empty(1, dtype=torch.int64, device=device)
        right_total = int(host.sum())
        size = words.BYTES * count

        def numbers() -> Tensor:
            return words.numbers(count, seed, device)

        def up() -> object:
            return target.copy_(host, non_blocking=True)

        def down() -> object:
            return back.copy_(source, non_blocking=True)

        yield Transfer(HOST_TO_DEVICE, "copies from the host", target, up, numbers, size)
        yield Transfer(DEVICE_TO_HOST, "copies to the host", back, down, lambda: host, size)
        yield Transfer(MEMORY_COPY, "copies in memory", target, lambda: target.copy_(source), numbers, 2 * size)
        yield Transfer(MEMORY_WRITE, "fills of memory", target, lambda: target.fill_(_FILL), lambda: _FILL, size)
        yield Transfer(
            MEMORY_READ,
            "sums of memory",
            total,
            lambda: torch.sum(source, 0, True, out=total),
            lambda: right_total,
            size,
        )

    def _sample(self, transfer: Transfer) -> None:
        def work() -> None:
            for _ in range(_REPEATS):
                transfer.work()

        self._pace.step(transfer.what, self._rates)
        seconds = self._done(transfer, work)
        rate = _REPEATS * transfer.counted / seconds / 1e9
        self._samples.setdefault(transfer.figure, []).append(rate)
        self._rates[transfer.figure] = rate
        miss = self._compared(transfer)
        if miss is not None and len(self._misses) < _LISTED:
            self._misses.append(words.classified(miss, lambda: self._again(transfer)))

    def _done(self, transfer: Transfer, work: Callable[[], object]) -> float:
        transfer.target.zero_()  # what an earlier transfer left there must not stand for this one
        self._device.synchronize()
        self._faults.transfer(self._device)
        seconds = self._device.seconds(self._faults.slowed(self._device, work))
        self._faults.memory(self._device, transfer.target)
        return seconds

    def _compared(self, transfer: Transfer) -> Miscompare | None:
        return words.miscompare(transfer.what, transfer.target, transfer.wanted())

    def _again(self, transfer: Transfer) -> Miscompare | None:
        self._done(transfer, transfer.work)
        return self._compared(transfer)
