"""The process in which one test runs: `python -m gpuhealth.burnin.worker PARENT`, started by burnin/worker_process.py.

What goes wrong with the test's libraries or its device ends this process and nothing else.
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

from gpuhealth.burnin.protocol import (
    DEVICES,
    CudaDevice,
    Devices,
    GpuOutcome,
    Job,
    Message,
    Outcome,
    Progress,
    Ready,
    Stopped,
    Unable,
)

HARD_EXIT_SECONDS = 1.0
"""After it was told to stop. The parent kills a worker soon after."""
_PROGRESS_SECONDS = 0.2  # a test may tell after every product
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class _Voice:
    """Tells the parent, and tells the test when the parent wants it to stop."""

    def __init__(self) -> None:
        # What native libraries print to standard output must not come between our lines.
        self._output = os.dup(1)
        os.dup2(2, 1)
        self._told: dict[str, tuple[float, str]] = {}  # GPU -> when, and what it was doing
        self.stopping = False

    def stop(self, _number: int, _frame: FrameType | None) -> None:
        """On SIGTERM: the next progress raises. A test that does not come to it is ended, and leaves its stack."""
        self.stopping = True
        faulthandler.dump_traceback_later(HARD_EXIT_SECONDS, exit=True)

    def say(self, message: Message) -> None:
        line = memoryview(msgspec.json.encode(message) + b"\n")
        while line:
            line = line[os.write(self._output, line) :]

    def progress(self, progress: Progress) -> None:
        if self.stopping:
            raise Stopped
        now = time.monotonic()
        told, doing = self._told.get(progress.gpu, (-_PROGRESS_SECONDS, ""))
        if now - told >= _PROGRESS_SECONDS or doing != progress.doing:  # what hangs must have been named
            self._told[progress.gpu] = now, progress.doing
            self.say(msgspec.structs.replace(progress, rates=_finite(progress.rates)))


def _die_with(parent: int) -> None:
    """Has the kernel kill us when the parent is gone, however it went: no test goes on unseen."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it went before we asked
        os._exit(1)


def _devices(torch: ModuleType) -> Devices | Unable:
    if torch.version.cuda is None:
        return Unable(
            f"torch {torch.__version__} is built without CUDA: install a build for CUDA, or use --devices cpu"
        )
    try:
        torch.cuda.init()
        count = torch.cuda.device_count()
        found = [(f"cuda:{index}", torch.cuda.get_device_properties(index)) for index in range(count)]
    except (RuntimeError, AssertionError) as error:
        return Unable(f"CUDA does not start: {_first_line(error)}")
    if not found:
        return Unable("torch sees no GPU: look at `gpuhealth check`, and at CUDA_VISIBLE_DEVICES")
    return Devices(tuple(CudaDevice(name, str(properties.uuid), properties.name) for name, properties in found))


def _software(torch: ModuleType) -> dict[str, str]:
    """The libraries that decide which bits come out."""
    cuda = {"cuda": torch.version.cuda} if torch.version.cuda else {}
    cudnn = torch.backends.cudnn.version() if cuda else None
    return {"torch": str(torch.__version__), **cuda, **({"cudnn": str(cudnn)} if cudnn else {})}


def _finite(figures: dict[str, float]) -> dict[str, float]:
    """What was measured: JSON has no infinity, and a rate of no time says nothing."""
    return {name: value for name, value in figures.items() if math.isfinite(value)}


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _work(job: Job, voice: _Voice) -> Outcome | Unable:
    try:
        from gpuhealth.burnin.device import Device, is_out_of_memory
        from gpuhealth.burnin.faults import Faults

        test = importlib.import_module(f"gpuhealth.burnin.{job.test}")
    except ImportError as error:  # our own modules, or what they need of torch: no fault of a GPU
        return Unable(f"the test {job.test!r} cannot be loaded: {_first_line(error)}")
    try:
        devices = [
            Device(name, gpu, small=job.small, memory_bytes=job.memory_bytes)
            for name, gpu in zip(job.devices, job.gpus, strict=True)
        ]
        faults = Faults(job)
        for device in devices:
            faults.start(device)
        outcomes: tuple[GpuOutcome, ...] = test.run(job, devices, voice.progress, faults)
    except Stopped:
        return Outcome(())
    except Exception as error:  # noqa: BLE001 - whatever a library or a device raises is this test's failure
        exhausted = isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and is_out_of_memory(error))
        what = "out of memory" if exhausted else type(error).__name__
        failure = f"{what}: {_first_line(error)}"
        return Outcome(tuple(GpuOutcome(gpu, failure, evidence=traceback.format_exc()) for gpu in job.gpus))
    return Outcome(tuple(msgspec.structs.replace(each, figures=_finite(each.figures)) for each in outcomes))


def main() -> None:
    """Does the one job that stands on standard input."""
    _die_with(int(sys.argv[1]))
    faulthandler.enable()  # the stack of a crash goes to standard error
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # writing a core of a GPU's process can take minutes
    voice = _Voice()
    signal.signal(signal.SIGTERM, voice.stop)
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a shared library of it does not load
        voice.say(Unable(f"torch cannot be loaded ({_first_line(error)}): pip install 'gpuhealth[burnin]'"))
        return
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    voice.say(Ready(_software(torch)))
    voice.say(_devices(torch) if job.test == DEVICES else _work(job, voice))
    os._exit(0)  # what is left to take down may hang: contexts, communicators, threads


if __name__ == "__main__":
    main()
