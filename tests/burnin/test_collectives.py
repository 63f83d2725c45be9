"""The test of collectives, with gloo between processes of this machine."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch
from testing.burnin_jobs import Stopper, done

from gpuhealth.burnin import collectives, figures
from gpuhealth.burnin.collectives import sum_error
from gpuhealth.burnin.device import Device
from gpuhealth.burnin.faults import InjectedFaults
from gpuhealth.burnin.protocol import DeviceResult, Fault, Job

RANKS = 3
Pool = ProcessPoolExecutor


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    """One process a rank, used again by each test: they take long to load."""
    with ProcessPoolExecutor(RANKS, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,)) as executor:
        yield executor


def one_rank(job: Job, words_before_stop: int) -> DeviceResult:
    """The part of one process."""
    device = Device("cpu", job.gpus[0], small=True)
    (outcome,) = collectives.run(job, [device], Stopper(words_before_stop), InjectedFaults(job))
    return outcome


def all_ranks(
    pool: Pool, folder: Path, *faults: Fault, seconds: float = 0.0, stop: dict[int, int] | None = None
) -> list[DeviceResult]:
    """What each rank says; `stop`: rank -> words after which it is told to stop."""
    rendezvous = str(folder / "rendezvous")
    futures = [
        pool.submit(
            one_rank,
            Job(
                test="collectives",
                devices=("cpu",),
                gpus=(f"GPU-{rank}",),
                seconds=seconds,
                seed=7,
                small=True,
                rank=rank,
                ranks=RANKS,
                rendezvous=rendezvous,
                faults=faults,
            ),
            (stop or {}).get(rank, 1_000_000),
        )
        for rank in range(RANKS)
    ]
    return [future.result(timeout=150) for future in futures]


def test_sound_ranks_agree(pool: Pool, tmp_path: Path) -> None:
    """All three operations give exact results on every rank, with their bus bandwidths."""
    for outcome in all_ranks(pool, tmp_path):
        assert (outcome.failure, outcome.miscompares) == ("", ())
        assert outcome.figures[figures.RANKS] == RANKS
        for figure in (figures.ALL_REDUCE, figures.ALL_GATHER, figures.REDUCE_SCATTER):
            assert outcome.figures[figure] > 0


@pytest.mark.parametrize(
    ("after", "name"), [(0, "all-reduce of 3"), (1, "all-gather of 3"), (2, "reduce-scatter of 3")]
)
def test_a_wrong_result_names_its_rank(pool: Pool, tmp_path: Path, after: int, name: str) -> None:
    """A flipped bit in what one rank receives fails that rank, and no other."""
    fault = Fault(kind="wrong_reduction", gpu="GPU-1", after=after, times=1)
    first, second, third = all_ranks(pool, tmp_path, fault)
    assert (first.failure, third.failure) == ("", "")
    (miss,) = second.miscompares
    assert (miss.what, miss.wrong, int(miss.xor, 16).bit_count()) == (name, 1, 1)
    assert name in second.failure


def test_all_stop_when_one_is_told_to(pool: Pool, tmp_path: Path) -> None:
    """No rank waits for one that has gone: they end together, with what they have measured."""
    for outcome in all_ranks(pool, tmp_path, seconds=3600, stop={2: 5}):
        assert outcome.failure == ""
        assert outcome.figures[figures.ALL_REDUCE] > 0


def test_one_gpu_alone_is_skipped() -> None:
    """There is nothing to reduce with."""
    assert "no other" in done(collectives.run)["A"].skipped


def test_the_sum_tells_whose_part_is_wrong() -> None:
    """A part that is missing or was added twice is read from the sum, for every number of ranks and every rank."""
    for ranks in (2, 8, 48):
        for number in (1, 3, 4096):
            parts = [number << rank for rank in range(ranks)]
            assert sum(parts) < 1 << 63
            assert sum_error(sum(parts), sum(parts), ranks) == ""
            for rank, part in enumerate(parts):
                assert sum_error(sum(parts) - part, sum(parts), ranks) == f"the part of rank {rank} is missing"
                assert sum_error(sum(parts) + part, sum(parts), ranks) == f"the part of rank {rank} was added twice"
    assert sum_error(4096 * 7 + 1, 4096 * 7, 3) == ""
