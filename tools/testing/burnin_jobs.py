"""Burn-in jobs that run in the test's own process, on processors in place of GPUs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gpuhealth.burnin.device import Device
from gpuhealth.burnin.faults import Faults
from gpuhealth.burnin.protocol import Fault, GpuOutcome, Job, Progress, Say, Stopped

Run = Callable[[Job, Sequence[Device], Say, Faults], tuple[GpuOutcome, ...]]


def done(
    run: Run,
    *faults: Fault,
    gpus: str = "A",
    seconds: float = 0.0,
    memory_bytes: int = 1 << 20,
    say: Say = lambda _: None,
) -> dict[str, GpuOutcome]:
    """Runs a job on GPUs named by single letters; returns the outcome of each GPU."""
    job = Job("test", ("cpu",) * len(gpus), tuple(gpus), seconds, seed=7, small=True, faults=faults)
    devices = [Device("cpu", gpu, small=True, memory_bytes=memory_bytes) for gpu in gpus]
    return {outcome.gpu: outcome for outcome in run(job, devices, say, Faults(job))}


class Stopper:
    """Receives the progress of a test, and stops it after so many messages."""

    def __init__(self, after: int) -> None:
        self.heard: list[Progress] = []
        self._after = after

    def __call__(self, progress: Progress) -> None:
        """Receives one message; raises Stopped after the last one that is allowed."""
        self.heard.append(progress)
        if len(self.heard) > self._after:
            raise Stopped
