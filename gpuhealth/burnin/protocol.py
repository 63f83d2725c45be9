"""Messages between the parent and a worker process, as JSON, one object per line.

The parent writes one `Job` to the worker's standard input and closes it. The worker answers with `Ready`, any number
of `Progress`, and finally one `JobResult` (or `DeviceList`, or `Unsupported`). It writes to a copy of its standard
output, because native libraries may print to standard output itself. A worker that exits without a final message has
crashed; one that has sent none by its deadline hangs. Both count as a failed test.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import msgspec

from gpuhealth.model.burnin_run import Miscompare


class Fault(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A fault to inject on purpose, to prove that the tests detect it (setting `burnin.faults`)."""

    kind: str
    """result_bits, input_bits, memory_bits, slow, stuck_transfer, wrong_reduction, segfault, bus_error, hang,
    out_of_memory"""
    gpu: str = ""  # only on this GPU; empty: on all
    test: str = ""  # only in this test; empty: in all
    bits: int = 1  # flipped per element
    elements: int = 1
    after: int = 0  # products, passes or transfers that succeed first
    times: int = 0  # how often it happens; 0: every time from then on
    factor: float = 2.0  # slow: how many times longer the work takes


class Job(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One test for one worker to run."""

    test: str  # a name in burnin.registry.TESTS, or LIST_DEVICES
    devices: tuple[str, ...]  # as torch names them: cuda:0, cpu
    gpus: tuple[str, ...]  # the name of each of them in results
    seconds: float  # how long to work; the test ends by itself soon after
    seed: int
    small: bool = False  # small problem sizes, for processors and demonstrations
    rank: int = 0  # collectives: one worker per rank
    ranks: int = 1
    rendezvous: str = ""  # collectives: a file that all ranks can reach
    memory_bytes: int | None = None  # upper bound of the device memory to use; None: all that is free
    faults: tuple[Fault, ...] = ()


LIST_DEVICES = "devices"
"""A job that runs no test and returns the CUDA devices that torch sees."""


class CudaDevice(msgspec.Struct, frozen=True):
    """A CUDA device as torch names it; its uuid identifies it in NVML."""

    name: str  # cuda:0
    uuid: str  # without a prefix; that of the MIG device where it is one
    model: str


class Ready(msgspec.Struct, frozen=True, omit_defaults=True, tag="ready"):
    """The worker has loaded its libraries and starts the job."""

    software: dict[str, str]  # torch, cuda, cudnn: results are comparable only within one set of versions


class DeviceList(msgspec.Struct, frozen=True, omit_defaults=True, tag="devices"):
    """Final message of the job LIST_DEVICES."""

    devices: tuple[CudaDevice, ...]


class Unsupported(msgspec.Struct, frozen=True, omit_defaults=True, tag="unsupported"):
    """No job can run here: torch is absent or broken, or sees no GPU. This has no bearing on any GPU's health."""

    reason: str  # one sentence


class Progress(msgspec.Struct, frozen=True, omit_defaults=True, tag="progress"):
    """How far a worker has come on one GPU."""

    gpu: str
    fraction: float  # of the time, 0 to 1
    rates: dict[str, float] = {}  # latest measurements by figure
    activity: str = ""  # the step that starts now, where the GPU alone does not identify it: "copies from A to B"


class DeviceResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Measurements of a test on one device, before the parent applies limits that need the model or other GPUs."""

    gpu: str
    failure: str = ""  # one sentence; empty if the test itself found no fault
    skipped: str = ""  # one sentence: why there was nothing to test
    figures: dict[str, float] = {}
    miscompares: tuple[Miscompare, ...] = ()
    digests: dict[str, str] = {}
    evidence: str = ""  # of a crash or hang: traceback, signal, stack, the end of standard error


class JobResult(msgspec.Struct, frozen=True, omit_defaults=True, tag="result"):
    """Final message of a worker that ran its test to the end."""

    gpus: tuple[DeviceResult, ...]


WorkerMessage: TypeAlias = Ready | Progress | JobResult | DeviceList | Unsupported

OnProgress: TypeAlias = Callable[[Progress], None]
"""Sends a test's progress to the parent; raises `StopRequested` when the parent requests a stop."""


class StopRequested(Exception):  # noqa: N818 - not an error
    """The parent asked the worker to stop. A test catches it and returns its results so far."""
