"""Burn-in jobs that run in the test's own process, on processors in place of GPUs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gpuhealth.burnin.device import Device
from gpuhealth.burnin.faults import InjectedFaults
from gpuhealth.burnin.protocol import DeviceResult, Fault, Job, OnProgress, Progress, StopRequested

Run = Callable[[Job, Sequence[Device], OnProgress, InjectedFaults], tuple[DeviceResult, ...]]


def done(
    run: Run,
    *faults: Fault,
    gpus: str = "A",
    seconds: float = 0.0,
    memory_bytes: int = 1 << 20,
    on_progress: OnProgress = lambda _: None,
) -> dict[str, DeviceResult]:
    """Runs a job on GPUs named by single letters; returns the result of each GPU."""
    job = Job(
        test="test",
        devices=("cpu",) * len(gpus),
        gpus=tuple(gpus),
        seconds=seconds,
        seed=7,
        small=True,
        faults=faults,
    )
    devices = [Device("cpu", gpu, small=True, memory_bytes=memory_bytes) for gpu in gpus]
    return {result.gpu: result for result in run(job, devices, on_progress, InjectedFaults(job))}


class Stopper:
    """Receives the progress of a test, and stops it after so many messages."""

    def __init__(self, after: int) -> None:
        self.messages: list[Progress] = []
        self._after = after

    def __call__(self, progress: Progress) -> None:
        """Receives one message; raises StopRequested after the last one that is allowed."""
        self.messages.append(progress)
        if len(self.messages) > self._after:
            raise StopRequested
