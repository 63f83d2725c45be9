"""Copies between every pair of GPUs, in both directions in turn: measures the speed and compares every word received.

Each copy is reported before it starts: where one hangs, the last progress message names the two GPUs.
"""

from __future__ import annotations

import contextlib
import itertools
import statistics
from collections.abc import Sequence

import torch

from gpuhealth.burnin import word_patterns as words
from gpuhealth.burnin.device import Device
from gpuhealth.burnin.faults import InjectedFaults
from gpuhealth.burnin.figures import P2P, pair_figure
from gpuhealth.burnin.protocol import DeviceResult, Job, OnProgress, StopRequested
from gpuhealth.burnin.test_timer import TestTimer
from gpuhealth.model.burnin_run import Miscompare, summarize

_REPEATS = 4
_MIN_ROUNDS = 3
_MAX_LISTED = 4  # miscompares of a GPU that are classified and listed
_DIRECT_ACCESS = "peers_with_direct_access"


def run(
    job: Job, devices: Sequence[Device], on_progress: OnProgress, faults: InjectedFaults
) -> tuple[DeviceResult, ...]:
    """Measure all ordered pairs, at least three times. A miscompare counts against both GPUs: either may be bad."""
    if len(devices) < 2:
        return tuple(DeviceResult(gpu=device.gpu, skipped="a single GPU has no peer to copy to") for device in devices)
    test = _PeerTest(job, devices, on_progress, faults)
    with contextlib.suppress(StopRequested):
        test.measure()
    return tuple(map(test.result, devices))


class _PeerTest:
    def __init__(self, job: Job, devices: Sequence[Device], on_progress: OnProgress, faults: InjectedFaults) -> None:
        self._job = job
        self._devices = devices
        self._faults = faults
        self._timers = {device.gpu: TestTimer(job.seconds, device.gpu, on_progress) for device in devices}
        self._samples: dict[tuple[str, str], list[float]] = {}  # (from, to) -> GB/s
        self._rates: dict[str, dict[str, float]] = {device.gpu: {} for device in devices}  # latest, to each peer
        self._miscompares: dict[str, list[Miscompare]] = {device.gpu: [] for device in devices}

    def measure(self) -> None:
        """Copy in rounds of all pairs until the time is up."""
        count = min(map(words.buffer_words, self._devices))
        # Each GPU has words of its own, so that data from another source is noticed.
        sources = [
            words.distinct_words(count, self._job.seed + rank, device.torch)
            for rank, device in enumerate(self._devices)
        ]
        targets = [torch.empty_like(source) for source in sources]
        ranks = range(len(self._devices))
        rounds = 0
        while rounds < _MIN_ROUNDS or not all(timer.expired for timer in self._timers.values()):
            rounds += 1
            for source, target in itertools.permutations(ranks, 2):
                self._copy(source, target, sources[source], targets[target])

    def _copy(self, source: int, target: int, sent: torch.Tensor, received: torch.Tensor) -> None:
        sender, receiver = self._devices[source], self._devices[target]
        name = f"copies from {sender.gpu} to {receiver.gpu}"

        def work() -> None:
            for _ in range(_REPEATS):
                received.copy_(sent, non_blocking=True)

        def compare() -> Miscompare | None:
            expected = words.distinct_words(received.numel(), self._job.seed + source, receiver.torch)
            return words.compare_words(name, received, expected)

        def time_copy() -> float:
            received.zero_()
            receiver.synchronize()
            self._faults.before_transfer(sender)
            seconds = sender.seconds(self._faults.slowed(sender, work))
            receiver.synchronize()
            self._faults.after_write(receiver, received)
            return seconds

        def repeat() -> Miscompare | None:
            time_copy()
            return compare()

        rates = self._rates[sender.gpu]
        self._timers[sender.gpu].step(name, rates)
        rate = _REPEATS * words.BYTES * received.numel() / time_copy() / 1e9
        self._samples.setdefault((sender.gpu, receiver.gpu), []).append(rate)
        rates[pair_figure(receiver.gpu)] = rate
        miss = compare()
        if miss is not None and len(self._miscompares[sender.gpu]) < _MAX_LISTED:
            miss = words.classify(miss, repeat)
            self._miscompares[sender.gpu].append(miss)
            self._miscompares[receiver.gpu].append(miss)

    def result(self, device: Device) -> DeviceResult:
        """The result of one GPU: its speed to each peer, and the upper median of these."""
        speeds = {
            receiver: statistics.median(samples)
            for (sender, receiver), samples in self._samples.items()
            if sender == device.gpu
        }
        figures = {pair_figure(receiver): speed for receiver, speed in speeds.items()}
        if speeds:
            figures[P2P] = statistics.median_high(speeds.values())
        if device.is_cuda:
            peers = (other.torch for other in self._devices if other is not device)
            figures[_DIRECT_ACCESS] = sum(torch.cuda.can_device_access_peer(device.torch, peer) for peer in peers)
        miscompares = self._miscompares[device.gpu]
        return DeviceResult(
            gpu=device.gpu,
            failure=summarize(miscompares),
            figures=figures,
            miscompares=tuple(miscompares),
        )
