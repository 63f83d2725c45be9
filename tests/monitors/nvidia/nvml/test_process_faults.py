"""The process between the agent and NVML: what it may answer, how it may fail, and what freezing it does."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest
from nvmlsim.simulator import Simulator
from testing.readings import gpu, gpus, node, outcomes, remembering

from gpuhealth.model.component import Kind
from gpuhealth.model.coverage import CoverageTracker
from gpuhealth.model.finding import NotChecked
from gpuhealth.model.missing import Missing, MissingReason
from gpuhealth.monitors.judge import Judge, Memory
from gpuhealth.monitors.nvidia.nvml import child as nvml_child
from gpuhealth.monitors.nvidia.nvml import process as nvml
from gpuhealth.monitors.nvidia.nvml.process import NvmlProbe
from gpuhealth.monitors.nvidia.readings import GpuReadings, NvmlReadings
from gpuhealth.monitors.nvidia.settings import Nvml
from gpuhealth.monitors.registry import code_of
from gpuhealth.monitors.settings import Settings
from gpuhealth.runtime import stopwatch
from gpuhealth.runtime.stopwatch import Stopwatch

PATIENT = 60.0
CALM = Nvml(warn_after=PATIENT, critical_after=2 * PATIENT, reinit_interval=0.0)
ENCODER = msgspec.json.Encoder()


def run(test: Callable[[NvmlProbe], Coroutine[Any, Any, None]], settings: Nvml = CALM) -> None:
    """Runs a test with a probe."""

    async def whole() -> None:
        probe = NvmlProbe(settings)
        try:
            await test(probe)
        finally:
            probe.close()

    asyncio.run(whole())


@pytest.fixture
def answering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Has every child be a process that answers each question with these bytes, in pieces of 1,000."""
    program, answer = tmp_path / "child.py", tmp_path / "answer"
    program.write_text(
        "import os, sys\n"
        "for line in sys.stdin.buffer:\n"
        f"    data = open({str(answer)!r}, 'rb').read()\n"
        "    for at in range(0, len(data), 1000):\n"
        f"        os.write({nvml_child.ANSWER_FD}, data[at:at + 1000])\n"
    )
    real = os.posix_spawn

    def spawn(path: str, arguments: list[str], environment: dict[str, str], **options: Any) -> int:
        return real(path, [arguments[0], "-S", str(program)], environment, **options)

    monkeypatch.setattr(os, "posix_spawn", spawn)

    def answer_with(data: bytes) -> None:
        answer.write_bytes(data)

    return answer_with


def lines(*messages: nvml_child.Message | bytes) -> bytes:
    """Messages, or what stands in the place of one, a line each."""
    encoded = (each if isinstance(each, bytes) else ENCODER.encode(each) for each in messages)
    return b"".join(line + b"\n" for line in encoded)


def began(count: int) -> nvml_child.Began:
    """The first line of a round of so many GPUs."""
    return nvml_child.Began(None, "550.90.07", "12.550.90.07", "12.4", count)


def sound(index: int) -> nvml_child.Gpu:
    """The line of a healthy GPU."""
    return nvml_child.Gpu(gpu(index))


GARBAGE = [
    b"{",
    b"",
    b"NVML: a library prints a line",
    b"\xff\xfe\x00",
    b'{"type":"Gpu","readings":{"index":1,"uuid":0.5}}',
    b'{"type":"Gpu","readings":{"index":1,"temperature_celsius":null}}',
    b'{"type":"Nothing"}',
    b"[" * 100_000,
    b"x" * 3_000_000,
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
def test_a_line_that_cannot_be_read_costs_that_line(answering: Callable[[bytes], None], garbage: bytes) -> None:
    """In the place of GPU 1's line stands garbage: the other GPUs are read, the round ends, and GPU 1 is unread."""
    answering(lines(began(3), sound(0), garbage, sound(2), nvml_child.Ended()))

    async def body(probe: NvmlProbe) -> None:
        readings = await probe.read(PATIENT)
        assert readings.answered
        assert readings.problem is None
        assert [each.index for each in readings.gpus] == [0, 1, 2]
        assert [each.error is None for each in readings.gpus] == [True, False, True]
        assert readings.gpus[0] == gpu(0)
        _assert_unknown(readings)

    run(body)


def _assert_unknown(readings: NvmlReadings, memory: Memory | None = None) -> None:
    """Something essential of a GPU is not checked, so that it is never called healthy."""
    now = node().time
    said = outcomes(Judge(Settings(), memory, time=now), node(*gpus(3), nvml=readings))
    essential = [each for each in said if isinstance(each, NotChecked) and code_of(each.code).essential]
    assert any(each.component.kind is Kind.GPU for each in essential)
    coverage = CoverageTracker()
    coverage.begin_round("nvidia", said, now)
    for outcome in said:
        coverage.add(outcome, now)
    assert any(component.kind is Kind.GPU for component in coverage.unknown(now, 120.0, None))


def test_a_round_without_its_first_line(answering: Callable[[bytes], None]) -> None:
    """Where the first line is garbage nothing is known of NVML, and that is our own fault."""
    answering(lines(b"garbage", sound(0), nvml_child.Ended()))

    async def body(probe: NvmlProbe) -> None:
        problem = (await probe.read(PATIENT)).problem
        assert problem
        assert problem.reason is MissingReason.AGENT_FAULT

    run(body)


def test_a_gpu_that_did_not_come_is_not_left_out(answering: Callable[[bytes], None]) -> None:
    """A round with fewer GPUs than NVML counted has an unread one in the place of each that is missing."""
    answering(lines(began(3), sound(0), sound(2), sound(2), sound(7), nvml_child.Ended()))

    async def body(probe: NvmlProbe) -> None:
        readings = await probe.read(PATIENT)
        assert [(each.index, each.error is None) for each in readings.gpus] == [(0, True), (1, False), (2, True)]
        _assert_unknown(readings)
        _assert_unknown(readings, remembering(gpus={f"GPU-{index}": "" for index in range(3)}))

    run(body)


def test_a_process_that_cannot_be_started_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """If no process can be started, the reason is reported, retries back off and no descriptor leaks."""
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    monkeypatch.setattr(nvml, "_FIRST_BACKOFF_SECONDS", 0.0)

    async def body(probe: NvmlProbe) -> None:
        await probe.read(0.0)
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(50):
            problem = (await probe.read(PATIENT)).problem
            assert problem
            assert problem.reason is MissingReason.AGENT_FAULT
            assert "No such file" in problem.detail
        assert len(list(Path("/proc/self/fd").iterdir())) == before
        probe._back_off("again")
        probe._backoff_seconds = 60.0
        probe._back_off("again")
        assert probe._not_before > time.monotonic() + 30.0
        monkeypatch.undo()
        probe._not_before = 0.0
        problem = (await probe.read(PATIENT)).problem
        assert problem is None or problem.reason is not MissingReason.AGENT_FAULT

    run(body)


@pytest.mark.parametrize("spare", range(8))
def test_no_descriptors_left_at_any_step_of_a_start(
    simulated: Simulator, monkeypatch: pytest.MonkeyPatch, spare: int
) -> None:
    """Wherever in a start the descriptors run out, those that were opened are closed, and the next start works."""
    monkeypatch.setattr(nvml, "_FIRST_BACKOFF_SECONDS", 0.0)

    async def body(probe: NvmlProbe) -> None:
        await asyncio.sleep(0)
        before = _descriptors()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        holes = [os.open(os.devnull, os.O_RDONLY) for _ in range(32)]  # no number below the limit is free but `spare`
        for descriptor in holes[:spare]:
            os.close(descriptor)
        kept = holes[spare:]
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(kept) + 1, hard))
            opened = 0
            for _ in range(20):
                problem = (await probe.read(0.0)).problem
                opened += problem is None or problem.reason is not MissingReason.AGENT_FAULT
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for descriptor in kept:
                os.close(descriptor)
        if not opened:
            assert _descriptors() == before
        probe._not_before = 0.0
        assert len((await probe.read(PATIENT)).gpus) == 2

    run(body)


def _descriptors() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir() if entry.exists()}


def test_time_in_which_we_were_frozen_is_no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that did not run for a long time, as under SIGSTOP or in a paused machine, waited for a tick only."""
    monkeypatch.setattr(stopwatch, "_LONGEST_STEP_SECONDS", 1.0)
    monkeypatch.setattr(stopwatch, "_TICK_SECONDS", 0.05)

    async def body() -> None:
        watch = Stopwatch(asyncio.get_running_loop())
        try:
            time.sleep(2.0)  # the loop does not run
            assert watch.seconds() < 1.0
            while watch.seconds() < 1.2:  # and now it does
                await asyncio.sleep(0.01)
        finally:
            watch.stop()

    asyncio.run(body())


@pytest.fixture
def simulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Simulator:
    """A node of two GPUs that this process' children see."""
    simulator = Simulator(tmp_path, gpus=2)
    for name, value in simulator.env.items():
        monkeypatch.setenv(name, value)
    return simulator


def test_a_child_that_is_stopped_is_no_driver_that_hangs(simulated: Simulator) -> None:
    """While the child is stopped by a signal no time is counted against the driver; afterwards the round goes on."""

    async def body(probe: NvmlProbe) -> None:
        while not (await probe.read(PATIENT)).answered:
            pass
        (pid,) = probe.pids
        probe.configure(Nvml(warn_after=0.5, critical_after=1.0))
        os.kill(pid, signal.SIGSTOP)
        try:
            for _ in range(10):
                readings = await probe.read(0.2)
                assert readings.problem
                assert readings.problem.reason is MissingReason.AGENT_FAULT
                assert "stopped" in readings.problem.detail
                assert readings.waiting_seconds == 0.0
        finally:
            probe.configure(CALM)
            os.kill(pid, signal.SIGCONT)
        readings = await probe.read(PATIENT)
        assert readings.answered
        assert len(readings.gpus) == 2
        assert probe.pids == [pid]

    run(body)


def test_a_new_process_looks_for_the_library_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that is installed while the agent runs is found by the next child, without a restart of the agent."""
    simulator = Simulator(tmp_path, gpus=2)
    folder = tmp_path / "library"
    folder.mkdir()
    monkeypatch.setenv("LD_LIBRARY_PATH", str(folder))
    monkeypatch.setenv("NVMLSIM_STATE", str(simulator.state))

    async def body(probe: NvmlProbe) -> None:
        problem = (await probe.read(PATIENT)).problem
        assert problem
        assert problem.reason is MissingReason.NOT_INSTALLED
        (folder / "libnvidia-ml.so.1").symlink_to(
            Path(simulator.env["LD_LIBRARY_PATH"].split(":")[0]) / "libnvidia-ml.so.1"
        )
        readings = await probe.read(PATIENT)
        assert readings.problem is None
        assert len(readings.gpus) == 2

    run(body)


def test_an_unreadable_gpu_in_the_child_costs_that_gpu(simulated: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of our own code while one GPU is read leaves the others, and says which GPU and why."""
    child = nvml_child._Child.__new__(nvml_child._Child)
    child._encoder, child._lost = msgspec.json.Encoder(), False

    class Driver:
        def read(self, index: int, count: int) -> GpuReadings:
            raise KeyError(f"a bug on {index} of {count}")

    message = msgspec.json.decode(child._gpu(Driver(), 3, 8), type=nvml_child.Message)  # type: ignore[arg-type]
    assert isinstance(message, nvml_child.Gpu)
    assert message.readings.index == 3
    error = message.readings.error
    assert isinstance(error, Missing)
    assert error.reason is MissingReason.AGENT_FAULT
    assert "a bug on 3 of 8" in error.detail
