"""The registry of burn-in tests: to add one, write `burnin/NAME.py` and its entry in TESTS.

The entry is here, and not in the test's module, because the module imports torch: only worker processes may load it.
The finding code `burnin.NAME` is in monitors/burnin_results/checks.py; without it, tests/burnin/test_registry.py fails.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

import msgspec

from gpuhealth.burnin.figures import (
    ALL_REDUCE,
    DEVICE_TO_HOST,
    HOST_TO_DEVICE,
    MEMORY_COPY,
    MEMORY_READ,
    MEMORY_WRITE,
    P2P,
    TFLOPS,
)

LEVELS = ("quick", "standard", "long")
"""From the shortest to the longest."""


class Workers(enum.Enum):
    """Which worker processes run a test."""

    GPU = "one process per GPU, independent of each other"
    NODE = "one process for all GPUs"
    RANK = "one process per GPU, which communicate as ranks of one group"


class BurninTest(msgspec.Struct, frozen=True, kw_only=True):
    """How a test is run and judged. The module `burnin/NAME.py` has `run(job, devices, on_progress, faults)`."""

    workers: Workers
    meaning: str
    seconds: Mapping[str, float]  # level -> seconds of work, without process start-up; other levels leave the test out
    seed: int | None = None  # fixed, where results are compared across runs and nodes; None: a new one for each run
    limited: tuple[str, ...] = ()  # endings of the names of the figures that limits apply to


TESTS = {
    "exact": BurninTest(
        workers=Workers.GPU,
        meaning="matrix products whose exact result is known",
        seconds={"quick": 12, "standard": 60, "long": 480},
    ),
    "repeat": BurninTest(
        workers=Workers.GPU,
        meaning="one matrix product repeated, compared bit for bit",
        seconds={"quick": 4, "standard": 20, "long": 120},
        seed=1,
    ),
    "memory": BurninTest(
        workers=Workers.GPU,
        meaning="patterns written to all free GPU memory and read back",
        seconds={"quick": 10, "standard": 45, "long": 420},
    ),
    # One GPU after another: GPUs that share a PCIe switch or a socket would share its bandwidth.
    "bandwidth": BurninTest(
        workers=Workers.NODE,
        meaning="GPU memory bandwidth, and copies from and to the host",
        seconds={"quick": 4, "standard": 15, "long": 60},
        limited=(MEMORY_COPY, MEMORY_READ, MEMORY_WRITE, HOST_TO_DEVICE, DEVICE_TO_HOST),
    ),
    "p2p": BurninTest(
        workers=Workers.NODE,
        meaning="copies between every pair of GPUs",
        seconds={"quick": 4, "standard": 15, "long": 60},
        limited=(P2P,),
    ),
    "collectives": BurninTest(
        workers=Workers.RANK,
        meaning="all-reduce, all-gather and reduce-scatter over all GPUs",
        seconds={"standard": 20, "long": 120},
        limited=(ALL_REDUCE,),
    ),
    "soak": BurninTest(
        workers=Workers.GPU,
        meaning="full load until the temperature is steady",
        seconds={"standard": 75, "long": 900},
        limited=(TFLOPS,),
    ),
}
"""Test by name, in the order of a run: quick tests that find most faults first, the one that heats the GPUs last."""
