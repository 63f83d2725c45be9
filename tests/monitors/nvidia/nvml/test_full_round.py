"""Waiting for a whole round of NVML readings, with a deadline."""

from __future__ import annotations

import asyncio

import pytest

from gpuhealth.model.missing import Missing, MissingReason
from gpuhealth.monitors.nvidia.nvml.full_round import read_full_round
from gpuhealth.monitors.nvidia.readings import NvmlReadings

DEADLINE = 20.0
ANSWERED = NvmlReadings(answered=True, waiting_seconds=30.0)
FAILED = NvmlReadings(problem=Missing(MissingReason.NOT_LOADED))


def late(seconds: float) -> NvmlReadings:
    """Readings of a round that NVML has owed for so many seconds."""
    return NvmlReadings(waiting_seconds=seconds)


@pytest.mark.parametrize(
    ("rounds", "reads"),
    [
        ([ANSWERED], 1),
        ([FAILED], 1),
        ([late(10.0), late(15.0), ANSWERED], 3),
        ([late(10.0), FAILED], 2),
        ([late(10.0), late(DEADLINE), ANSWERED], 2),
    ],
    ids=["answered", "failed", "late", "late and failed", "overdue"],
)
def test_it_reads_until_there_is_an_answer_or_the_deadline(rounds: list[NvmlReadings], reads: int) -> None:
    """A read that returns early is repeated; an answer, a failure or the deadline ends it, with the last readings."""
    waits = []

    async def read(wait_seconds: float) -> NvmlReadings:
        waits.append(wait_seconds)
        return rounds[len(waits) - 1]

    last = asyncio.run(read_full_round(read, DEADLINE))
    assert last is rounds[reads - 1]
    assert waits == [DEADLINE] * reads


def test_only_an_outstanding_answer_is_overdue() -> None:
    """Neither a failure nor a round that took long and was answered is overdue."""
    assert FAILED.overdue_seconds == 0
    assert ANSWERED.overdue_seconds == 0
    assert late(3.0).overdue_seconds == 3
