"""The process that runs one test: `python -m gpuhealth.burnin.worker PARENT_PID`, started by burnin/worker_process.py.

A fault of the test's libraries or of its device ends only this process.
"""

from __future__ import annotations

import ctypes
import faulthandler
import importlib
import math
import os
import resource
import signal
import sys
import time
import traceback
from types import FrameType, ModuleType

import msgspec

from gpuhealth.burnin import not_tested
from gpuhealth.burnin.protocol import (
    LIST_DEVICES,
    CudaDevice,
    DeviceList,
    DeviceResult,
    Job,
    JobResult,
    Progress,
    Ready,
    StopRequested,
    Unsupported,
    WorkerMessage,
)

HARD_EXIT_SECONDS = 1.0
"""From SIGTERM until the worker exits by itself. The parent kills it soon after."""
_PROGRESS_SECONDS = 0.2  # a test may report after every product, which is more often than anyone reads
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class ParentChannel:
    """Sends messages to the parent, and makes the test stop when the parent sends SIGTERM."""

    def __init__(self) -> None:
        # What native libraries print to standard output must not come between our lines.
        self._output = os.dup(1)
        os.dup2(2, 1)
        self._last_sent: dict[str, tuple[float, str]] = {}  # GPU -> monotonic seconds, and activity
        self._stop_requested = False

    def request_stop(self, _number: int, _frame: FrameType | None) -> None:
        """Signal handler: the next progress raises StopRequested.

        A test that does not get that far is ended after HARD_EXIT_SECONDS, with its stack on standard error.
        """
        self._stop_requested = True
        faulthandler.dump_traceback_later(HARD_EXIT_SECONDS, exit=True)

    def send(self, message: WorkerMessage) -> None:
        """Write a message to the parent, all of it."""
        line = memoryview(msgspec.json.encode(message) + b"\n")
        while line:
            line = line[os.write(self._output, line) :]

    def report_progress(self, progress: Progress) -> None:
        """Send progress, at most every 0.2 s per GPU. Raises StopRequested after SIGTERM."""
        if self._stop_requested:
            raise StopRequested
        now = time.monotonic()
        last_sent, activity = self._last_sent.get(progress.gpu, (-_PROGRESS_SECONDS, ""))
        # A new activity is sent at once: if it hangs, the parent needs to show it.
        if now - last_sent >= _PROGRESS_SECONDS or activity != progress.activity:
            self._last_sent[progress.gpu] = now, progress.activity
            self.send(msgspec.structs.replace(progress, rates=_finite(progress.rates)))


def _exit_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the parent exits, for any reason: no test may continue unsupervised."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent exited before the call above
        os._exit(1)


def _devices(torch: ModuleType) -> DeviceList | Unsupported:
    if torch.version.cuda is None:
        return Unsupported(
            f"torch {torch.__version__} is built without CUDA: install a build with CUDA, or use --devices cpu"
        )
    try:
        torch.cuda.init()
        count = torch.cuda.device_count()
        found = [(f"cuda:{index}", torch.cuda.get_device_properties(index)) for index in range(count)]
    except (RuntimeError, AssertionError, torch.cuda.DeferredCudaCallError) as error:
        return Unsupported(
            _not_tested(error, torch, at_start=True) or f"CUDA cannot be initialized: {_first_line(error)}"
        )
    if not found:
        return Unsupported("torch sees no GPU: run `gpuhealth check`, and look at CUDA_VISIBLE_DEVICES")
    return DeviceList(tuple(CudaDevice(name, str(properties.uuid), properties.name) for name, properties in found))


def _software(torch: ModuleType) -> dict[str, str]:
    """Versions of the libraries that influence the bits of a result."""
    cuda = {"cuda": torch.version.cuda} if torch.version.cuda else {}
    cudnn = torch.backends.cudnn.version() if cuda else None
    return {"torch": str(torch.__version__), **cuda, **({"cudnn": str(cudnn)} if cudnn else {})}


def _not_tested(error: Exception, torch: ModuleType, *, at_start: bool) -> str:
    return not_tested.reason(str(error), str(torch.__version__), torch.version.cuda or "none", at_start=at_start)


def _finite(figures: dict[str, float]) -> dict[str, float]:
    """Leave out infinities and NaN: JSON has none, and a rate over no time means nothing."""
    return {name: value for name, value in figures.items() if math.isfinite(value)}


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _run_job(job: Job, parent: ParentChannel, torch: ModuleType) -> JobResult | Unsupported:
    try:
        from gpuhealth.burnin.device import Device, is_out_of_memory
        from gpuhealth.burnin.faults import InjectedFaults

        test = importlib.import_module(f"gpuhealth.burnin.{job.test}")
    except ImportError as error:  # our own modules, or what they need of torch: not a fault of a GPU
        return Unsupported(f"the test {job.test!r} cannot be loaded: {_first_line(error)}")
    try:
        devices = [
            Device(name, gpu, small=job.small, memory_bytes=job.memory_bytes)
            for name, gpu in zip(job.devices, job.gpus, strict=True)
        ]
        faults = InjectedFaults(job)
        for device in devices:
            faults.at_start(device)
        results: tuple[DeviceResult, ...] = test.run(job, devices, parent.report_progress, faults)
    except StopRequested:
        return JobResult(())
    except Exception as error:  # noqa: BLE001 - any other error of a library or a device is this test's failure
        if reason := _not_tested(error, torch, at_start=False):
            return Unsupported(reason)
        exhausted = isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and is_out_of_memory(error))
        problem = "out of memory" if exhausted else type(error).__name__
        failure, evidence = f"{problem}: {_first_line(error)}", traceback.format_exc()
        return JobResult(tuple(DeviceResult(gpu=gpu, failure=failure, evidence=evidence) for gpu in job.gpus))
    return JobResult(tuple(msgspec.structs.replace(result, figures=_finite(result.figures)) for result in results))


def main() -> None:
    """Run the one job that is on standard input, and exit."""
    _exit_with_parent(int(sys.argv[1]))
    faulthandler.enable()  # on a crash, the stack goes to standard error
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # writing a core of a GPU's process can take minutes
    parent = ParentChannel()
    signal.signal(signal.SIGTERM, parent.request_stop)
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: one of its shared libraries does not load
        parent.send(Unsupported(f"torch cannot be loaded ({_first_line(error)}): pip install 'gpuhealth[burnin]'"))
        return
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    parent.send(Ready(_software(torch)))
    parent.send(_devices(torch) if job.test == LIST_DEVICES else _run_job(job, parent, torch))
    os._exit(0)  # a regular exit may hang while contexts, communicators and threads are torn down


if __name__ == "__main__":
    main()
