"""What the parent and a worker process say to each other, one JSON object a line.

The parent sends one `Job` on the worker's standard input and closes it. The worker answers on what was its standard
output, which it has put aside so that what native libraries print goes elsewhere, with `Ready`, any number of
`Progress`, and at last one `Outcome`. A worker that ends without an outcome has crashed; one that gives none before its
deadline hangs. Either is a failed test.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import msgspec

from gpuhealth.model.burnin_run import Miscompare


class Fault(msgspec.Struct, frozen=True, omit_defaults=True):
    """A fault put in on purpose, so that what should catch it can be shown to."""

    kind: str
    """result_bits, input_bits, memory_bits, slow, stuck_transfer, wrong_reduction, segfault, bus_error, hang,
    out_of_memory"""
    gpu: str = ""  # on this one only; on all if empty
    test: str = ""  # in this test only
    bits: int = 1  # flipped in an element
    elements: int = 1
    after: int = 0  # products, passes or transfers that still go well
    times: int = 0  # it happens; 0 for always from then on
    factor: float = 2.0  # how much slower


class Job(msgspec.Struct, frozen=True, omit_defaults=True):
    """One test for one worker to do."""

    test: str  # a name in burnin.listing.TESTS, or DEVICES
    devices: tuple[str, ...]  # as torch names them: cuda:0, cpu
    gpus: tuple[str, ...]  # what each of them is called in results
    seconds: float  # how long to work; a test ends by itself soon after
    seed: int
    small: bool = False  # sizes of a demonstration, not such that fill a device
    rank: int = 0  # collectives: one worker a rank
    ranks: int = 1
    rendezvous: str = ""  # collectives: a file that all ranks reach
    memory_bytes: int | None = None  # at most this much of the device; what is free where None
    faults: tuple[Fault, ...] = ()


DEVICES = "devices"
"""The job that tests nothing: which CUDA devices torch sees."""


class CudaDevice(msgspec.Struct, frozen=True):
    """A device as torch names it, to be matched with NVML's by its uuid."""

    name: str  # cuda:0
    uuid: str  # without a prefix; of the MIG device where it is one
    model: str


class Ready(msgspec.Struct, frozen=True, omit_defaults=True, tag="ready"):
    """The worker has loaded its libraries and begins."""

    software: dict[str, str]  # torch, cuda, cublas …: digests are comparable within the same only


class Devices(msgspec.Struct, frozen=True, omit_defaults=True, tag="devices"):
    """What the job DEVICES answers in the place of an outcome."""

    devices: tuple[CudaDevice, ...]


class Unable(msgspec.Struct, frozen=True, omit_defaults=True, tag="unable"):
    """No job can be done here: torch is absent or broken, or sees no GPU. No word about any GPU's health."""

    problem: str  # one sentence


class Progress(msgspec.Struct, frozen=True, omit_defaults=True, tag="progress"):
    """How far a worker is."""

    gpu: str
    done: float  # 0 to 1
    rates: dict[str, float] = {}  # of the last moments, units in the names
    doing: str = ""  # what may hang next, where the GPU alone does not tell it: the copy between two GPUs


class GpuOutcome(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a test says of one device; limits that need a model or other GPUs are applied by the parent."""

    gpu: str
    failure: str = ""  # one sentence; empty if nothing is wrong by itself
    skipped: str = ""  # one sentence why there was nothing to test
    figures: dict[str, float] = {}
    miscompares: tuple[Miscompare, ...] = ()
    digests: dict[str, str] = {}
    evidence: str = ""  # of a failure that is no figure: traceback, signal, stack, the end of the standard error


class Outcome(msgspec.Struct, frozen=True, omit_defaults=True, tag="outcome"):
    """A worker's last word."""

    gpus: tuple[GpuOutcome, ...]


Message: TypeAlias = Ready | Progress | Outcome | Devices | Unable

Say: TypeAlias = Callable[[Progress], None]
"""How a test tells its progress; raises `Stopped` when the worker has been told to stop."""


class Stopped(Exception):  # noqa: N818 - it is no error
    """The worker was told to stop. A test catches it and returns what it has found by then."""
