"""All-reduce, all-gather and reduce-scatter over all GPUs of the node, one process per GPU: NCCL on CUDA, else gloo.

Rank r contributes 2^r times a number that differs per element, so that a wrong sum shows which rank's part is missing
or was added twice. Sums of integers are exact, in any order of addition.
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
from gpuhealth.burnin.faults import InjectedFaults
from gpuhealth.burnin.figures import ALL_GATHER, ALL_REDUCE, RANKS, REDUCE_SCATTER
from gpuhealth.burnin.protocol import DeviceResult, Job, OnProgress, StopRequested
from gpuhealth.burnin.test_timer import TestTimer
from gpuhealth.model.burnin_run import Miscompare, summarize

_BYTES = 1 << 30
_PROCESSOR_BYTES = 16 << 20
_SMALL_BYTES = 1 << 18
_SHARE_OF_FREE = 8
_MIN_ROUNDS = 3
_MAX_LISTED = 4
_ELEMENT_BITS = 12  # of the numbers that distinguish elements: with them, sums of up to 48 ranks fit an int64
_MAX_RANKS = 48
_ODD = 2_654_435_761  # 2^32 / golden ratio: neighbours get distant numbers
_SETUP = timedelta(seconds=120)  # every rank loads its libraries first


class Collective(NamedTuple):
    """One operation, and its expected result."""

    figure: str
    name: str
    prepare: Callable[[], object]  # fills the input buffers
    work: Callable[[], object]
    result: Tensor
    expected: Callable[[], Tensor]
    summed: bool  # over the ranks; else the parts of the ranks follow one another
    bus_bytes: float  # moved over the bus by each rank, as NCCL's tests count them


def run(
    job: Job, devices: Sequence[Device], on_progress: OnProgress, faults: InjectedFaults
) -> tuple[DeviceResult, ...]:
    """Run this rank's part; `devices` is its one GPU. All ranks end in the same round."""
    (device,) = devices
    if job.ranks < 2:
        return (DeviceResult(gpu=device.gpu, skipped="a single GPU has no other to exchange data with"),)
    if job.ranks > _MAX_RANKS:
        return (DeviceResult(gpu=device.gpu, skipped=f"sums of more than {_MAX_RANKS} ranks would not be exact"),)
    if device.is_cuda:
        torch.cuda.set_device(device.torch)
    else:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # else gloo resolves the host's name, which may fail
    dist.init_process_group(
        "nccl" if device.is_cuda else "gloo",
        init_method=f"file://{job.rendezvous}",
        rank=job.rank,
        world_size=job.ranks,
        timeout=_SETUP,
    )
    try:
        return (_Rank(job, device, on_progress, faults).device_result(),)
    finally:
        dist.destroy_process_group()


class _Rank:
    def __init__(self, job: Job, device: Device, on_progress: OnProgress, faults: InjectedFaults) -> None:
        self._job = job
        self._device = device
        self._faults = faults
        self._timer = TestTimer(job.seconds, device.gpu, on_progress)
        self._samples: dict[str, list[float]] = {}
        self._rates: dict[str, float] = {}  # figure -> latest sample
        self._miscompares: list[Miscompare] = []
        self._causes: dict[str, None] = {}  # sentences, each once

    def device_result(self) -> DeviceResult:
        collectives = list(self._collectives())
        rounds = 0
        while self._all_continue(rounds):
            rounds += 1
            for collective in collectives:
                self._sample(collective)
        figures = {figure: statistics.median(samples) for figure, samples in self._samples.items()}
        return DeviceResult(
            gpu=self._device.gpu,
            failure="; ".join(filter(None, [summarize(self._miscompares), *self._causes])),
            figures={**figures, RANKS: float(self._job.ranks)} if figures else {},
            miscompares=tuple(self._miscompares),
        )

    def _all_continue(self, rounds: int) -> bool:
        """Whether all ranks do another round: if one left alone, the others would wait in the next operation."""
        proceed = rounds < _MIN_ROUNDS or not self._timer.expired
        try:
            self._timer.step()
        except StopRequested:
            proceed = False
        flag = torch.tensor([int(proceed)], device=self._device.torch)
        dist.all_reduce(flag, op=dist.ReduceOp.MIN)
        return bool(flag.item())

    def _buffer_bytes(self) -> int:
        if self._device.is_cuda:
            return _BYTES
        return _SMALL_BYTES if self._device.small else _PROCESSOR_BYTES

    def _collectives(self) -> Iterator[Collective]:
        ranks, rank, device = self._job.ranks, self._job.rank, self._device.torch
        part = min(self._buffer_bytes(), self._device.free_bytes() // _SHARE_OF_FREE) // words.BYTES // ranks
        whole = part * ranks
        numbers = torch.arange(whole, device=device).mul_(_ODD).bitwise_and_((1 << _ELEMENT_BITS) - 1).add_(1)
        all_ranks = (1 << ranks) - 1
        own_part = slice(rank * part, (rank + 1) * part)
        given, reduced = (torch.empty(whole, dtype=torch.int64, device=device) for _ in range(2))
        piece = torch.empty(part, dtype=torch.int64, device=device)
        size = words.BYTES * whole

        def own_numbers() -> Tensor:
            return torch.mul(numbers, 1 << rank, out=given)

        def gathered() -> Tensor:
            shifts = torch.arange(ranks, device=device).repeat_interleave(part)
            return numbers << shifts

        share = (ranks - 1) / ranks
        yield Collective(
            figure=ALL_REDUCE,
            name="all-reduce",
            prepare=lambda: torch.mul(numbers, 1 << rank, out=reduced),
            work=lambda: dist.all_reduce(reduced),
            result=reduced,
            expected=lambda: numbers * all_ranks,
            summed=True,
            bus_bytes=2 * share * size,
        )
        yield Collective(
            figure=ALL_GATHER,
            name="all-gather",
            prepare=lambda: (own_numbers(), reduced.zero_()),
            work=lambda: dist.all_gather_into_tensor(reduced, given[own_part]),
            result=reduced,
            expected=gathered,
            summed=False,
            bus_bytes=share * size,
        )
        yield Collective(
            figure=REDUCE_SCATTER,
            name="reduce-scatter",
            prepare=lambda: (own_numbers(), piece.zero_()),
            work=lambda: dist.reduce_scatter_tensor(piece, given),
            result=piece,
            expected=lambda: numbers[own_part] * all_ranks,
            summed=True,
            bus_bytes=share * size,
        )

    def _sample(self, collective: Collective) -> None:
        with contextlib.suppress(StopRequested):  # all ranks agree on the end after the round
            self._timer.step(collective.name, self._rates)
        collective.prepare()
        self._device.synchronize()
        self._faults.before_transfer(self._device)
        seconds = self._device.seconds(self._faults.slowed(self._device, collective.work))
        self._faults.after_collective(self._device, collective.result)
        rate = collective.bus_bytes / seconds / 1e9
        self._samples.setdefault(collective.figure, []).append(rate)
        self._rates[collective.figure] = rate
        expected = collective.expected()
        miss = words.compare_words(f"{collective.name} of {self._job.ranks}", collective.result, expected)
        if miss is not None and len(self._miscompares) < _MAX_LISTED:
            self._miscompares.append(miss)
            self._add_cause(collective, expected, miss.index // words.BYTES)

    def _add_cause(self, collective: Collective, expected: Tensor, index: int) -> None:
        if not collective.summed:
            rank = index // (expected.numel() // self._job.ranks)
            self._causes[f"it is in the part of rank {rank}"] = None
        elif cause := sum_error(int(collective.result[index]), int(expected[index]), self._job.ranks):
            self._causes[cause] = None


def sum_error(got: int, expected: int, ranks: int) -> str:
    """Which rank's part a wrong sum lacks or contains twice, in words; empty where the error is of another kind.

    `expected` is number * (2^ranks - 1), because rank r contributes number * 2^r.
    """
    number = expected // ((1 << ranks) - 1)
    parts, rest = divmod(got - expected, number)
    if rest or abs(parts).bit_count() != 1 or abs(parts) >= 1 << ranks:
        return ""
    return f"the part of rank {abs(parts).bit_length() - 1} {'is missing' if parts < 0 else 'was added twice'}"
