"""Jobs done in the test's own process, on processors that stand in for GPUs."""

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
    """GPU -> what a test says of it; one GPU a letter."""
    job = Job(
        test="test", devices=("cpu",) * len(gpus), gpus=tuple(gpus), seconds=seconds, seed=7, small=True, faults=faults
    )
    devices = [Device("cpu", gpu, small=True, memory_bytes=memory_bytes) for gpu in gpus]
    return {outcome.gpu: outcome for outcome in run(job, devices, on_progress, InjectedFaults(job))}


class Stopper:
    """Listens to a test and tells it to stop after so many words."""

    def __init__(self, after: int) -> None:
        self.heard: list[Progress] = []
        self._after = after

    def __call__(self, progress: Progress) -> None:
        """A word of the test."""
        self.heard.append(progress)
        if len(self.heard) > self._after:
            raise StopRequested
