"""All-reduce, all-gather and reduce-scatter over all GPUs of the node, one process a GPU: NCCL on CUDA, else gloo.

Every rank gives its own power of two times a number of the element's own, so that a sum tells whose part is missing or
came twice. Sums of integers are exact in whatever order the ring adds them.
"""

from __future__ import annotations

import contextlib
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from gpuhealth.burnin import word_patterns as words
from gpuhealth.burnin.device import Device
from gpuhealth.burnin.faults import Faults
from gpuhealth.burnin.figures import ALL_GATHER, ALL_REDUCE, RANKS, REDUCE_SCATTER
from gpuhealth.burnin.protocol import GpuOutcome, Job, Say, Stopped
from gpuhealth.burnin.test_timer import Pace
from gpuhealth.model.burnin_run import Miscompare

_BYTES = 1 << 30
_PROCESSOR_BYTES = 16 << 20
_SMALL_BYTES = 1 << 18
_SHARE_OF_FREE = 8
_LEAST_ROUNDS = 3
_LISTED = 4
_ELEMENT_BITS = 12  # of the numbers that tell elements apart: with them, sums of up to 48 ranks fit an int64
_MOST_RANKS = 48
_ODD = 2_654_435_761  # 2^32 / golden ratio: neighbours get numbers far apart
_SETUP = timedelta(seconds=120)  # every rank loads its libraries first


class Collective(NamedTuple):
    """One operation, and what it must give."""

    figure: str
    name: str
    before: Callable[[], object]  # puts the inputs in their places
    work: Callable[[], object]
    result: Tensor
    wanted: Callable[[], Tensor]
    summed: bool  # over the ranks; else parts of the ranks stand one after the other
    bus_bytes: float  # moved over the bus by each rank, as NCCL's tests count them


def run(job: Job, devices: Sequence[Device], say: Say, faults: Faults) -> tuple[GpuOutcome, ...]:
    """This rank's part: `devices` is its one GPU. Ends in the same round on all ranks."""
    (device,) = devices
    if job.ranks < 2:
        return (GpuOutcome(device.gpu, skipped="one GPU alone has no other to exchange data with"),)
    if job.ranks > _MOST_RANKS:
        return (GpuOutcome(device.gpu, skipped=f"sums of more than {_MOST_RANKS} ranks would not be exact"),)
    if device.is_cuda:
        torch.cuda.set_device(device.torch)
    else:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # gloo would go by the host's name, which may lead elsewhere
    dist.init_process_group(
        "nccl" if device.is_cuda else "gloo",
        init_method=f"file://{job.rendezvous}",
        rank=job.rank,
        world_size=job.ranks,
        timeout=_SETUP,
    )
    try:
        return (_Rank(job, device, say, faults).outcome(),)
    finally:
        dist.destroy_process_group()


class _Rank:
    def __init__(self, job: Job, device: Device, say: Say, faults: Faults) -> None:
        self._job = job
        self._device = device
        self._faults = faults
        self._pace = Pace(job.seconds, device.gpu, say)
        self._samples: dict[str, list[float]] = {}
        self._rates: dict[str, float] = {}  # the last of each
        self._misses: list[Miscompare] = []
        self._blamed: dict[str, None] = {}  # sentences, each once

    def outcome(self) -> GpuOutcome:
        """What this rank has measured and received."""
        collectives = list(self._collectives())
        rounds = 0
        while self._all_go_on(rounds):
            rounds += 1
            for collective in collectives:
                self._sample(collective)
        figures = {figure: statistics.median(samples) for figure, samples in self._samples.items()}
        return GpuOutcome(
            self._device.gpu,
            failure="; ".join(filter(None, [words.failure(self._misses), *self._blamed])),
            figures={**figures, RANKS: float(self._job.ranks)} if figures else {},
            miscompares=tuple(self._misses),
        )

    def _all_go_on(self, rounds: int) -> bool:
        """Whether no rank wants to end: one that left alone would leave the others waiting in the next operation."""
        wants = rounds < _LEAST_ROUNDS or not self._pace.over
        try:
            self._pace.step()
        except Stopped:
            wants = False
        flag = torch.tensor([int(wants)], device=self._device.torch)
        dist.all_reduce(flag, op=dist.ReduceOp.MIN)
        return bool(flag.item())

    def _collectives(self) -> Iterator[Collective]:
        ranks, rank, device = self._job.ranks, self._job.rank, self._device.torch
        size = _BYTES if self._device.is_cuda else _SMALL_BYTES if self._device.small else _PROCESSOR_BYTES
        part = min(size, self._device.free_bytes() // _SHARE_OF_FREE) // words.BYTES // ranks
        whole = part * ranks
        numbers = torch.arange(whole, device=device).mul_(_ODD).bitwise_and_((1 << _ELEMENT_BITS) - 1).add_(1)
        everyone = (1 << ranks) - 1
        mine = slice(rank * part, (rank + 1) * part)
        given, reduced = (torch.empty(whole, dtype=torch.int64, device=device) for _ in range(2))
        piece = torch.empty(part, dtype=torch.int64, device=device)
        size = words.BYTES * whole

        def own() -> Tensor:
            return torch.mul(numbers, 1 << rank, out=given)

        def gathered() -> Tensor:
            shifts = torch.arange(ranks, device=device).repeat_interleave(part)
            return numbers << shifts

        share = (ranks - 1) / ranks
        yield Collective(
            ALL_REDUCE,
            "all-reduce",
            lambda: torch.mul(numbers, 1 << rank, out=reduced),
            lambda: dist.all_reduce(reduced),
            reduced,
            lambda: numbers * everyone,
            True,
            2 * share * size,
        )
        yield Collective(
            ALL_GATHER,
            "all-gather",
            lambda: (own(), reduced.zero_()),
            lambda: dist.all_gather_into_tensor(reduced, given[mine]),
            reduced,
            gathered,
            False,
            share * size,
        )
        yield Collective(
            REDUCE_SCATTER,
            "reduce-scatter",
            lambda: (own(), piece.zero_()),
            lambda: dist.reduce_scatter_tensor(piece, given),
            piece,
            lambda: numbers[mine] * everyone,
            True,
            share * size,
        )

    def _sample(self, collective: Collective) -> None:
        with contextlib.suppress(Stopped):  # all ranks agree on the end, after the round
            self._pace.step(collective.name, self._rates)
        collective.before()
        self._device.synchronize()
        self._faults.transfer(self._device)
        seconds = self._device.seconds(self._faults.slowed(self._device, collective.work))
        self._faults.reduction(self._device, collective.result)
        rate = collective.bus_bytes / seconds / 1e9
        self._samples.setdefault(collective.figure, []).append(rate)
        self._rates[collective.figure] = rate
        wanted = collective.wanted()
        miss = words.miscompare(f"{collective.name} of {self._job.ranks}", collective.result, wanted)
        if miss is not None and len(self._misses) < _LISTED:
            self._misses.append(miss)
            self._blame(collective, wanted, miss.index // words.BYTES)

    def _blame(self, collective: Collective, wanted: Tensor, index: int) -> None:
        if not collective.summed:
            rank = index // (wanted.numel() // self._job.ranks)
            self._blamed[f"it stands in the part of rank {rank}"] = None
        elif who := culprit(int(collective.result[index]), int(wanted[index]), self._job.ranks):
            self._blamed[who] = None


def culprit(got: int, wanted: int, ranks: int) -> str:
    """Whose part a wrong sum lacks or has twice, in words; empty where it is another fault.

    `wanted` is number * (2^ranks - 1): each rank gives number * 2^rank.
    """
    number = wanted // ((1 << ranks) - 1)
    off, rest = divmod(got - wanted, number)
    if rest or abs(off).bit_count() != 1 or abs(off) >= 1 << ranks:
        return ""
    return f"the part of rank {abs(off).bit_length() - 1} {'is missing' if off < 0 else 'came twice'}"
