"""Measures how fast a device reads and writes its own memory, and copies from and to the host; compares all data.

Bytes counted: those written by a fill, read by a sum, read and written by a copy within the device, and moved (once)
by a copy from or to the host. Host memory is pinned on CUDA. Figures are medians of the samples.
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
from gpuhealth.burnin.faults import InjectedFaults
from gpuhealth.burnin.figures import DEVICE_TO_HOST, HOST_TO_DEVICE, MEMORY_COPY, MEMORY_READ, MEMORY_WRITE
from gpuhealth.burnin.protocol import DeviceResult, Job, OnProgress, StopRequested
from gpuhealth.burnin.test_timer import TestTimer
from gpuhealth.model.burnin_run import Miscompare, summarize

_REPEATS = 4  # of an operation per sample: a single one is as short as its launch
_MIN_SAMPLES = 3
_MAX_LISTED = 4  # miscompares that are classified and listed
_FILL = 0x5555_5555_5555_5555


class Transfer(NamedTuple):
    """One operation to time, and its expected result."""

    figure: str
    what: str
    target: Tensor  # int64, destination of the result
    work: Callable[[], object]
    expected: Callable[[], Tensor | int]  # what `target` must then hold
    counted_bytes: int


def run(
    job: Job, devices: Sequence[Device], on_progress: OnProgress, faults: InjectedFaults
) -> tuple[DeviceResult, ...]:
    """Take samples of all five figures for the job's time, at least three each; one device after another."""
    seconds = job.seconds / len(devices)
    return tuple(_BandwidthTest(job, device, on_progress, faults, seconds).result() for device in devices)


class _BandwidthTest:
    def __init__(
        self, job: Job, device: Device, on_progress: OnProgress, faults: InjectedFaults, seconds: float
    ) -> None:
        self._device = device
        self._faults = faults
        self._seed = job.seed
        self._timer = TestTimer(seconds, device.gpu, on_progress)
        self._samples: dict[str, list[float]] = {}  # figure -> GB/s
        self._rates: dict[str, float] = {}  # figure -> latest sample
        self._miscompares: list[Miscompare] = []
        self._count = words.buffer_words(device)

    def result(self) -> DeviceResult:
        with contextlib.suppress(StopRequested):
            self._measure()
        return DeviceResult(
            gpu=self._device.gpu,
            failure=summarize(self._miscompares),
            figures={figure: statistics.median(samples) for figure, samples in self._samples.items()},
            miscompares=tuple(self._miscompares),
        )

    def _measure(self) -> None:
        transfers = list(self._transfers())
        rounds = 0
        while rounds < _MIN_SAMPLES or not self._timer.expired:
            rounds += 1
            for transfer in transfers:
                self._sample(transfer)

    def _transfers(self) -> Iterator[Transfer]:
        device, count, seed = self._device.torch, self._count, self._seed
        host, back = (torch.empty(count, dtype=torch.int64, pin_memory=self._device.is_cuda) for _ in range(2))
        host.copy_(words.distinct_words(count, seed, host.device))
        source = words.distinct_words(count, seed, device)
        target, total = torch.empty_like(source), torch.empty(1, dtype=torch.int64, device=device)
        right_total = int(host.sum())
        size = words.BYTES * count

        def expected() -> Tensor:
            return words.distinct_words(count, seed, device)

        def from_host() -> object:
            return target.copy_(host, non_blocking=True)

        def to_host() -> object:
            return back.copy_(source, non_blocking=True)

        yield Transfer(HOST_TO_DEVICE, "copies from the host", target, from_host, expected, size)
        yield Transfer(DEVICE_TO_HOST, "copies to the host", back, to_host, lambda: host, size)
        yield Transfer(MEMORY_COPY, "copies in memory", target, lambda: target.copy_(source), expected, 2 * size)
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

        self._timer.step(transfer.what, self._rates)
        seconds = self._time(transfer, work)
        rate = _REPEATS * transfer.counted_bytes / seconds / 1e9
        self._samples.setdefault(transfer.figure, []).append(rate)
        self._rates[transfer.figure] = rate
        miss = self._compare(transfer)
        if miss is not None and len(self._miscompares) < _MAX_LISTED:
            self._miscompares.append(words.classify(miss, lambda: self._repeat(transfer)))

    def _time(self, transfer: Transfer, work: Callable[[], object]) -> float:
        transfer.target.zero_()  # data of an earlier transfer must not pass for this one's
        self._device.synchronize()
        self._faults.before_transfer(self._device)
        seconds = self._device.seconds(self._faults.slowed(self._device, work))
        self._faults.after_write(self._device, transfer.target)
        return seconds

    def _compare(self, transfer: Transfer) -> Miscompare | None:
        return words.compare_words(transfer.what, transfer.target, transfer.expected())

    def _repeat(self, transfer: Transfer) -> Miscompare | None:
        self._time(transfer, transfer.work)
        return self._compare(transfer)
