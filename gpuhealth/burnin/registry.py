"""The list of tests: here one is added."""

from __future__ import annotations

import enum
from typing import NamedTuple


class Workers(enum.Enum):
    """Which processes do a test."""

    GPU = "one for each GPU, all at once"
    NODE = "one for all GPUs"
    RANK = "one for each GPU, all together"


class Entry(NamedTuple):
    """Where a test is found, and how it is run."""

    module: str  # has run(job, devices, say, faults) -> outcomes; only workers import it
    workers: Workers
    meaning: str
    seed: int | None = None  # the same in each run, where results are compared across runs and nodes


TESTS = {
    "exact": Entry("gpuhealth.burnin.exact", Workers.GPU, "products whose every bit is known"),
    "repeat": Entry("gpuhealth.burnin.repeat", Workers.GPU, "the same product again and again, bit for bit", 1),
    "memory": Entry("gpuhealth.burnin.memory", Workers.GPU, "every byte of the memory"),
    # One GPU after another: GPUs that share a PCIe switch or a socket would take each other's share.
    "bandwidth": Entry("gpuhealth.burnin.bandwidth", Workers.NODE, "device memory, and copies from and to the host"),
    "p2p": Entry("gpuhealth.burnin.p2p", Workers.NODE, "copies between every two GPUs"),
    "collectives": Entry("gpuhealth.burnin.collectives", Workers.RANK, "all-reduce over all GPUs"),
    "soak": Entry("gpuhealth.burnin.soak", Workers.GPU, "full load until the temperature is steady"),
}
"""In the order in which a run does them: what is quick and damning first, what heats last."""
