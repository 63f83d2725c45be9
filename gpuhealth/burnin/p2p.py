"""Copies between every two GPUs, in both directions one after the other: speed, and every word compared at the far end.

Each copy is named before it begins: where one hangs, the last word of this process tells between which two.
"""

from __future__ import annotations

import contextlib
import itertools
import statistics
from collections.abc import Sequence

import torch

from gpuhealth.burnin import word_patterns as words
from gpuhealth.burnin.bandwidth import buffer_words
from gpuhealth.burnin.device import Device
from gpuhealth.burnin.faults import Faults
from gpuhealth.burnin.figures import P2P, pair
from gpuhealth.burnin.protocol import GpuOutcome, Job, Say, Stopped
from gpuhealth.burnin.test_timer import Pace
from gpuhealth.model.burnin_run import Miscompare

_REPEATS = 4
_LEAST_ROUNDS = 3
_LISTED = 4  # misses of a GPU that are looked into
_DIRECT = "peers_with_direct_access"


def run(job: Job, devices: Sequence[Device], say: Say, faults: Faults) -> tuple[GpuOutcome, ...]:
    """All ordered pairs, at least three times. A miss counts against both ends: nothing tells which of them it was."""
    if len(devices) < 2:
        return tuple(GpuOutcome(device.gpu, skipped="one GPU alone has no peer to copy to") for device in devices)
    test = _PeerTest(job, devices, say, faults)
    with contextlib.suppress(Stopped):
        test.measure()
    return tuple(map(test.outcome, devices))


class _PeerTest:
    def __init__(self, job: Job, devices: Sequence[Device], say: Say, faults: Faults) -> None:
        self._job = job
        self._devices = devices
        self._faults = faults
        self._paces = {device.gpu: Pace(job.seconds, device.gpu, say) for device in devices}
        self._samples: dict[tuple[str, str], list[float]] = {}  # (from, to) -> GB/s
        self._rates: dict[str, dict[str, float]] = {device.gpu: {} for device in devices}  # the last to each peer
        self._misses: dict[str, list[Miscompare]] = {device.gpu: [] for device in devices}

    def measure(self) -> None:
        """Rounds of all pairs until the time is up."""
        count = min(map(buffer_words, self._devices))
        # The words of each GPU are its own, so that data of another source shows.
        sources = [words.numbers(count, self._job.seed + rank, each.torch) for rank, each in enumerate(self._devices)]
        targets = [torch.empty_like(source) for source in sources]
        ranks = range(len(self._devices))
        rounds = 0
        while rounds < _LEAST_ROUNDS or not all(pace.over for pace in self._paces.values()):
            rounds += 1
            for source, target in itertools.permutations(ranks, 2):
                self._copy(source, target, sources[source], targets[target])

    def _copy(self, source: int, target: int, sent: torch.Tensor, held: torch.Tensor) -> None:
        sender, receiver = self._devices[source], self._devices[target]
        name = f"copies from {sender.gpu} to {receiver.gpu}"

        def work() -> None:
            for _ in range(_REPEATS):
                held.copy_(sent, non_blocking=True)

        def compared() -> Miscompare | None:
            wanted = words.numbers(held.numel(), self._job.seed + source, receiver.torch)
            return words.miscompare(name, held, wanted)

        def done() -> float:
            held.zero_()
            receiver.synchronize()
            self._faults.transfer(sender)
            seconds = sender.seconds(self._faults.slowed(sender, work))
            receiver.synchronize()
            self._faults.memory(receiver, held)
            return seconds

        def again() -> Miscompare | None:
            done()
            return compared()

        rates = self._rates[sender.gpu]
        self._paces[sender.gpu].step(name, rates)
        rate = _REPEATS * words.BYTES * held.numel() / done() / 1e9
        self._samples.setdefault((sender.gpu, receiver.gpu), []).append(rate)
        rates[pair(receiver.gpu)] = rate
        miss = compared()
        if miss is not None and len(self._misses[sender.gpu]) < _LISTED:
            miss = words.classified(miss, again)
            self._misses[sender.gpu].append(miss)
            self._misses[receiver.gpu].append(miss)

    def outcome(self, device: Device) -> GpuOutcome:
        """What the pairs say of one GPU: its speed to each peer, and the upper median of them."""
        speeds = {
            receiver: statistics.median(samples)
            for (sender, receiver), samples in self._samples.items()
            if sender == device.gpu
        }
        figures = {pair(receiver): speed for receiver, speed in speeds.items()}
        if speeds:
            figures[P2P] = statistics.median_high(speeds.values())
        if device.is_cuda:
            peers = (other.torch for other in self._devices if other is not device)
            figures[_DIRECT] = sum(torch.cuda.can_device_access_peer(device.torch, peer) for peer in peers)
        misses = self._misses[device.gpu]
        return GpuOutcome(
            device.gpu,
            failure=words.failure(misses),
            figures=figures,
            miscompares=tuple(misses),
        )
