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
    """One process per rank, shared by all tests because loading torch takes long."""
    with ProcessPoolExecutor(RANKS, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,)) as executor:
        yield executor


def one_rank(job: Job, messages_before_stop: int) -> DeviceResult:
    """Run the part of one rank in its process."""
    device = Device("cpu", job.gpus[0], small=True)
    (outcome,) = collectives.run(job, [device], Stopper(messages_before_stop), InjectedFaults(job))
    return outcome


def all_ranks(
    pool: Pool, folder: Path, *faults: Fault, seconds: float = 0.0, stop: dict[int, int] | None = None
) -> list[DeviceResult]:
    """The result of each rank; `stop`: rank -> number of progress messages after which it is stopped."""
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
    """All three operations give exact results and a bus bandwidth on every rank."""
    for outcome in all_ranks(pool, tmp_path):
        assert (outcome.failure, outcome.miscompares) == ("", ())
        assert outcome.figures[figures.RANKS] == RANKS
        for figure in (figures.ALL_REDUCE, figures.ALL_GATHER, figures.REDUCE_SCATTER):
            assert outcome.figures[figure] > 0


@pytest.mark.parametrize(
    ("after", "name"), [(0, "all-reduce of 3"), (1, "all-gather of 3"), (2, "reduce-scatter of 3")]
)
def test_a_wrong_result_names_its_rank(pool: Pool, tmp_path: Path, after: int, name: str) -> None:
    """A bit flipped in what one rank receives fails that rank only."""
    fault = Fault(kind="wrong_reduction", gpu="GPU-1", after=after, times=1)
    first, second, third = all_ranks(pool, tmp_path, fault)
    assert (first.failure, third.failure) == ("", "")
    (miss,) = second.miscompares
    assert (miss.what, miss.wrong, int(miss.xor, 16).bit_count()) == (name, 1, 1)
    assert name in second.failure


def test_all_ranks_stop_when_one_is_stopped(pool: Pool, tmp_path: Path) -> None:
    """When one rank is stopped, all end in the same round and keep their measurements."""
    for outcome in all_ranks(pool, tmp_path, seconds=3600, stop={2: 5}):
        assert outcome.failure == ""
        assert outcome.figures[figures.ALL_REDUCE] > 0


def test_one_gpu_alone_is_skipped() -> None:
    """A single GPU is skipped, because it has no other to reduce with."""
    assert "no other" in done(collectives.run)["A"].skipped


def test_a_wrong_sum_shows_the_rank() -> None:
    """The wrong sum shows a part that is missing or was added twice, for every number of ranks and every rank."""
    for ranks in (2, 8, 48):
        for number in (1, 3, 4096):
            parts = [number << rank for rank in range(ranks)]
            assert sum(parts) < 1 << 63
            assert sum_error(sum(parts), sum(parts), ranks) == ""
            for rank, part in enumerate(parts):
                assert sum_error(sum(parts) - part, sum(parts), ranks) == f"the part of rank {rank} is missing"
                assert sum_error(sum(parts) + part, sum(parts), ranks) == f"the part of rank {rank} was added twice"
    assert sum_error(4096 * 7 + 1, 4096 * 7, 3) == ""
