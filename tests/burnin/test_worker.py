"""A worker's crash, hang or death is an answer to the parent, with its evidence; nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from testing.waiting import wait_for

from gpuhealth.burnin.protocol import LIST_DEVICES, Fault, Job, JobResult, Unsupported
from gpuhealth.burnin.worker_process import Worker, WorkerAnswer, WorkerFailure

_PATIENCE = 120.0
_HANG_SECONDS = 8.0


def _job(*kinds: str, seconds: float = 0.1, **fields: object) -> Job:
    faults = tuple(Fault(kind=kind, **fields) for kind in kinds)  # type: ignore[arg-type]
    return Job(
        test="memory",
        devices=("cpu",),
        gpus=("GPU-1",),
        seconds=seconds,
        seed=1,
        small=True,
        memory_bytes=1 << 20,
        faults=faults,
    )


def _faulty(folder: Path) -> dict[str, str]:
    """An environment in which `import torch` fails as if one of its libraries were missing."""
    package = folder / "torch"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('libcudart.so.12: cannot open shared object file')")
    return {**os.environ, "PYTHONPATH": str(folder)}


def _noisy(folder: Path) -> dict[str, str]:
    """An environment in which importing torch prints to standard output, as native libraries do."""
    (folder / "typing_extensions.py").write_text(_NOISE)
    return {**os.environ, "PYTHONPATH": str(folder)}


_NOISE = """
import os, sys
os.write(1, b'NCCL INFO {"type": ')
sys.path.remove(os.path.dirname(__file__))
del sys.modules["typing_extensions"]
import typing_extensions
"""


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, WorkerAnswer | WorkerFailure]:
    """The answers of workers in all situations below, run at the same time because each loads torch."""

    async def killed() -> WorkerAnswer | WorkerFailure:
        worker = Worker(os.environ)
        return await worker.run(_job(seconds=600), _PATIENCE, lambda _: os.kill(worker.pid, signal.SIGKILL))

    async def stopped(job: Job) -> WorkerAnswer | WorkerFailure:
        worker = Worker(os.environ)
        return await worker.run(job, 600.0, lambda _: worker.stop())

    async def stopped_while_hanging() -> WorkerAnswer | WorkerFailure:
        """Stop a worker that hangs in native code before its first progress, where no signal handler runs."""
        worker = Worker(os.environ)
        work = asyncio.create_task(worker.run(_job("hang"), 600.0, lambda _: None))
        kernel_waits_in = Path(f"/proc/{worker.pid}/wchan")
        while not worker.software or "futex" not in kernel_waits_in.read_text():
            await asyncio.sleep(0.05)
        worker.stop()
        return await work

    async def done(
        job: Job, environment: Mapping[str, str] = os.environ, seconds: float = _PATIENCE
    ) -> WorkerAnswer | WorkerFailure:
        return await Worker(environment).run(job, seconds, lambda _: None)

    async def everything() -> dict[str, WorkerAnswer | WorkerFailure]:
        works = {
            "clean": done(_job(), _noisy(tmp_path_factory.mktemp("noisy"))),
            "segfault": done(_job("segfault")),
            "bus_error": done(_job("bus_error")),
            "hang": done(_job("hang"), seconds=_HANG_SECONDS),
            "out_of_memory": done(_job("out_of_memory")),
            "killed": killed(),
            "stopped": stopped(_job(seconds=600)),
            "stopped_while_hanging": stopped_while_hanging(),
            "devices": done(Job(test=LIST_DEVICES, devices=(), gpus=(), seconds=0.0, seed=1)),
            "no_torch": done(_job(), _faulty(tmp_path_factory.mktemp("faulty"))),
        }
        return dict(zip(works, await asyncio.gather(*works.values()), strict=True))

    return asyncio.run(everything())


def _failure(ends: Mapping[str, WorkerAnswer | WorkerFailure], name: str) -> WorkerFailure:
    end = ends[name]
    assert isinstance(end, WorkerFailure), end
    return end


def _outcome(ends: Mapping[str, WorkerAnswer | WorkerFailure], name: str) -> JobResult:
    end = ends[name]
    assert isinstance(end, JobResult), end
    return end


def test_a_sound_worker_answers_whatever_libraries_print(ends: Mapping[str, WorkerAnswer | WorkerFailure]) -> None:
    """Other output on standard output does not disturb the protocol."""
    (outcome,) = _outcome(ends, "clean").gpus
    assert (outcome.gpu, outcome.failure) == ("GPU-1", "")
    assert outcome.figures["rounds"] >= 1


@pytest.mark.parametrize(
    ("name", "number", "heading"),
    [("segfault", "SIGSEGV", "Segmentation fault"), ("bus_error", "SIGBUS", "Bus error")],
)
def test_a_crash_names_its_signal_and_leaves_its_stack(
    ends: Mapping[str, WorkerAnswer | WorkerFailure], name: str, number: str, heading: str
) -> None:
    """A crash in native code names its signal, with the Python stack as evidence."""
    failure = _failure(ends, name)
    assert f"was ended by {number}" in failure.message
    assert heading in failure.evidence
    assert "in _crash" in failure.evidence


def test_a_hang_in_native_code_is_ended_and_shows_where(ends: Mapping[str, WorkerAnswer | WorkerFailure]) -> None:
    """A worker that ignores SIGTERM is killed after its deadline, with the stack of the call that hangs as evidence."""
    failure = _failure(ends, "hang")
    assert failure.message == f"the test hangs: its process sent no result within {_HANG_SECONDS:.0f} s"
    assert "in _hang" in failure.evidence


def test_a_killed_worker_is_reported_as_killed(ends: Mapping[str, WorkerAnswer | WorkerFailure]) -> None:
    """A killed worker is reported with SIGKILL, which the kernel sends when memory runs out."""
    assert "was ended by SIGKILL (killed by the kernel when memory ran out" in _failure(ends, "killed").message


def test_out_of_memory_is_a_failure(
    ends: Mapping[str, WorkerAnswer | WorkerFailure],
) -> None:
    """Running out of device memory fails the test and does not crash the process."""
    (outcome,) = _outcome(ends, "out_of_memory").gpus
    assert outcome.failure.startswith("out of memory: ")
    assert "Traceback" in outcome.evidence


def test_a_stopped_worker_returns_its_results_so_far(ends: Mapping[str, WorkerAnswer | WorkerFailure]) -> None:
    """A stop ends ten minutes of work at once, with the figures so far."""
    (outcome,) = _outcome(ends, "stopped").gpus
    assert outcome.failure == ""
    assert outcome.figures["tested_gigabytes"] > 0


def test_a_stopped_worker_that_hangs_is_killed(ends: Mapping[str, WorkerAnswer | WorkerFailure]) -> None:
    """A worker that hangs when it is stopped is killed at once, and the hang is not reported as a failure."""
    assert "was ended by SIGKILL" in _failure(ends, "stopped_while_hanging").message


def test_without_cuda_there_are_no_devices(ends: Mapping[str, WorkerAnswer | WorkerFailure]) -> None:
    """Without CUDA, one sentence explains the reason and the remedy."""
    end = ends["devices"]
    assert isinstance(end, Unsupported)
    assert "built without CUDA" in end.reason


def test_a_broken_torch_says_nothing_about_the_gpu(ends: Mapping[str, WorkerAnswer | WorkerFailure]) -> None:
    """With a broken torch, nothing is tested, and one sentence explains it."""
    end = ends["no_torch"]
    assert isinstance(end, Unsupported)
    assert "libcudart.so.12: cannot open shared object file" in end.reason
    assert "pip install 'gpuhealth[burnin]'" in end.reason


_PARENT = """
import asyncio, os, sys
from gpuhealth.burnin.protocol import Fault, Job
from gpuhealth.burnin.worker_process import Worker

async def main():
    worker = Worker(os.environ)
    print(worker.pid, flush=True)
    job = Job(test="memory", devices=("cpu",), gpus=("g",), seconds=600.0, seed=1, faults=(Fault(kind="hang"),))
    await worker.run(job, 600.0, lambda _: None)

asyncio.run(main())
"""


def test_no_worker_outlives_its_parent() -> None:
    """When the parent is killed, its worker exits as well."""
    with subprocess.Popen([sys.executable, "-c", _PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        worker = int(parent.stdout.readline())
        wait_for("the worker's own session", lambda: _stat(worker)[3] == str(worker))
        parent.kill()
    wait_for("the worker's end", lambda: _stat(worker)[0] in ("", "Z"))


def _stat(pid: int) -> list[str]:
    """State, parent, group, session and so on of proc(5); empty strings where the process has exited."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return [""] * 4
