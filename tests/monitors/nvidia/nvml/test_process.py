"""The NVML probe against the simulated driver: what it reads, and how it outlives a driver that hangs or dies."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from nvmlsim.simulator import Simulator
from testing.waiting import until

from gpuhealth.model.missing import Missing, MissingReason
from gpuhealth.monitors.nvidia.nvml import process as nvml
from gpuhealth.monitors.nvidia.nvml.process import NvmlProbe
from gpuhealth.monitors.nvidia.readings import NvmlReadings
from gpuhealth.monitors.nvidia.settings import Nvml

PATIENT = 60.0
CALM = Nvml(warn_after=PATIENT, critical_after=2 * PATIENT, reinit_interval=0.0)
SHORT = Nvml(warn_after=0.2, critical_after=0.4)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Simulator:
    """A node of eight H100 that this process' children see."""
    simulator = Simulator(tmp_path)
    for name, value in simulator.env.items():
        monkeypatch.setenv(name, value)
    return simulator


def run(test: Callable[[NvmlProbe], Coroutine[Any, Any, None]], settings: Nvml = CALM) -> None:
    """Runs a test with a probe, and waits for its children to have gone."""

    async def whole() -> None:
        probe = NvmlProbe(settings)
        try:
            await test(probe)
        finally:
            pids = probe.pids
            probe.close()
            for pid in pids:
                await until(lambda pid=pid: _gone(pid))  # type: ignore[misc]

    asyncio.run(whole())


def _gone(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG) != (0, 0)
    except ChildProcessError:
        return True


def _left(probe: NvmlProbe) -> int:
    """How many children there are, those that have just ended not among them."""
    probe._reap()
    return len(probe.pids)


async def answered(probe: NvmlProbe) -> NvmlReadings:
    """Reads until a round is complete."""
    while not (readings := await probe.read(PATIENT)).answered or readings.problem:
        pass
    return readings


def test_reads_every_gpu(node: Simulator) -> None:
    """A healthy node gives all readings of eight GPUs, and none fails."""

    async def body(probe: NvmlProbe) -> None:
        readings = await answered(probe)
        assert readings.count == 8
        assert [gpu.index for gpu in readings.gpus] == list(range(8))
        assert len({gpu.uuid for gpu in readings.gpus}) == 8
        for gpu in readings.gpus:
            assert (gpu.error, gpu.failed_calls) == (None, {})
            unread = [name for name in gpu.__struct_fields__ if _is_unread(getattr(gpu, name))]
            assert unread == []
        assert isinstance(readings.gpus[0].nvlinks, tuple)
        assert len(readings.gpus[0].nvlinks) == 18

    run(body)


def _is_unread(value: object) -> bool:
    return isinstance(value, Missing) and value.reason is not MissingReason.NOT_SUPPORTED


def test_one_lost_gpu_does_not_hide_the_others(node: Simulator) -> None:
    """Of eight GPUs one is lost from the start: it says so, the other seven are read."""
    node.inject("lost", gpu=3)

    async def body(probe: NvmlProbe) -> None:
        readings = await answered(probe)
        errors = {gpu.index: gpu.error.reason for gpu in readings.gpus if gpu.error}
        assert errors == {3: MissingReason.GPU_LOST}
        assert all(gpu.temperature_celsius == 30 for gpu in readings.gpus if gpu.index != 3)

    run(body)


def test_a_gpu_lost_after_the_start_keeps_its_name(node: Simulator) -> None:
    """A GPU that is lost while the agent runs keeps its uuid, also when NVML is started again, and comes back."""

    async def body(probe: NvmlProbe) -> None:
        before = (await answered(probe)).gpus[3]
        node.inject("lost", gpu=3)
        for _ in range(3):
            lost = (await answered(probe)).gpus[3]
            assert lost.error
            assert lost.error.reason is MissingReason.GPU_LOST
            assert (lost.uuid, lost.pci) == (before.uuid, before.pci)
            assert lost.temperature_celsius == lost.error
        node.clear()
        while (await answered(probe)).gpus[3].error:
            pass

    run(body)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (9, MissingReason.NOT_LOADED),
        (18, MissingReason.MISMATCH),
        (999, MissingReason.DRIVER_ERROR),
        (26, MissingReason.ERROR),
    ],
)
def test_a_driver_that_does_not_start(node: Simulator, code: int, reason: MissingReason) -> None:
    """nvmlInit's error is the problem of the whole, and NVML is tried again."""
    node.inject("init_failure", code=code)

    async def body(probe: NvmlProbe) -> None:
        problem = (await probe.read(PATIENT)).problem
        assert problem
        assert problem.reason is reason
        assert f"({code})" in problem.detail
        node.clear()
        assert len((await answered(probe)).gpus) == 8

    run(body)


def test_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without libnvidia-ml nothing is healthy: the library is said to be missing."""
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))

    async def body(probe: NvmlProbe) -> None:
        readings = await probe.read(PATIENT)
        assert readings.problem
        assert readings.problem.reason is MissingReason.NOT_INSTALLED
        assert readings.gpus == ()

    run(body)


def test_a_call_without_a_plain_answer_is_named(node: Simulator) -> None:
    """An unknown error of one call is kept with the call's name; the other readings come."""
    node.inject("error", gpu=1, call="nvmlDeviceGetTemperature", code=999)

    async def body(probe: NvmlProbe) -> None:
        gpu = (await answered(probe)).gpus[1]
        assert list(gpu.failed_calls) == ["nvmlDeviceGetTemperature"]
        assert isinstance(gpu.temperature_celsius, Missing)
        assert gpu.power_milliwatts == 70_000

    run(body)


def test_a_hang_is_told_and_passes(node: Simulator) -> None:
    """A hanging call is named with how long it lasts, what came before it is kept, and the late answer counts."""

    async def body(probe: NvmlProbe) -> None:
        pid = (await answered(probe), probe.pids)[1]
        node.inject("hang", gpu=2)
        late = await probe.read(PATIENT)
        assert not late.answered
        assert late.waiting_seconds >= 2.0
        assert "GPU 2" in late.waiting_for
        assert [gpu.index for gpu in late.gpus] == [0, 1]
        assert (await probe.read(0.0)).waiting_seconds >= late.waiting_seconds
        node.release()
        slow = await probe.read(PATIENT)
        assert slow.answered
        assert slow.waiting_seconds >= 2.0
        assert probe.pids == pid

    run(body, Nvml(warn_after=2.0, critical_after=PATIENT))


def test_a_ping_notices_a_hang_between_two_rounds(node: Simulator) -> None:
    """The wait for the driver counts from a ping that it did not answer; one that it answers changes nothing."""

    async def body(probe: NvmlProbe) -> None:
        await answered(probe)
        probe.ping()
        assert (await answered(probe)).count == 8
        node.inject("hang")
        probe.ping()
        await until(lambda: probe._child is not None and probe._child.waiting_seconds() >= 0.3)
        await until(lambda: node.get("node.hanging"))
        late = await probe.read(0.0)
        assert late.waiting_seconds >= 0.3
        assert "nvmlDeviceGetPowerUsage" in late.waiting_for
        node.release()
        assert (await answered(probe)).count == 8

    run(body)


def test_at_most_one_replacement(node: Simulator) -> None:
    """However long a hang lasts, one replacement child is started, and neither child is killed."""

    async def body(probe: NvmlProbe) -> None:
        await answered(probe)
        await until(lambda: _left(probe) == 1)  # a slow machine may have had one replaced while it started
        node.inject("hang")
        first, starts = probe.pids, probe.starts
        for _ in range(10):
            assert not (await probe.read(0.3)).answered
        late = await probe.read(0.0)
        assert len(probe.pids) == 2
        assert probe.pids[0] == first[0]
        assert probe.starts == starts + 1
        assert late.waiting_seconds > SHORT.critical_after
        node.release()
        assert (await answered(probe)).count == 8
        await until(lambda: _left(probe) == 1)
        while (await answered(probe)).waiting_seconds > SHORT.warn_after:
            pass

    run(body, SHORT)


def test_release_closes_every_handle(node: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """On request the driver is released (no process has it open), and reopened afterwards."""
    monkeypatch.setattr(nvml, "_RELEASE_SECONDS", PATIENT)

    async def body(probe: NvmlProbe) -> None:
        await answered(probe)
        pid = probe.pids[0]
        assert "libnvidia-ml" in Path(f"/proc/{pid}/maps").read_text()
        assert await probe.release()
        assert not Path(f"/proc/{pid}").exists()
        problem = (await probe.read(PATIENT)).problem
        assert problem
        assert problem.reason is MissingReason.RELEASED
        assert probe.pids == []
        probe.acquire()
        assert (await answered(probe)).count == 8

    run(body)


def test_release_during_a_hang_says_so(node: Simulator) -> None:
    """A child inside a call cannot release the driver at once: this is reported, and it exits when the call returns."""

    async def body(probe: NvmlProbe) -> None:
        node.inject("hang")
        await probe.read(0.3)
        await until(lambda: node.get("node.hanging"))
        assert not await probe.release()
        node.release()
        await until(lambda: _left(probe) == 0)

    run(body)


def test_release_during_a_round_is_no_death(node: Simulator) -> None:
    """A release during a round ends the child without counting a crash, and the next round does not wait."""

    async def body(probe: NvmlProbe) -> None:
        await answered(probe)
        node.inject("hang")
        reading = asyncio.create_task(probe.read(PATIENT))
        await until(lambda: probe._child is not None and probe._child.in_round)
        releasing = asyncio.create_task(probe.release())
        await asyncio.sleep(0)
        node.release()
        problem = (await reading).problem
        assert problem
        assert problem.reason is MissingReason.RELEASED
        await releasing
        assert probe._last_exit is None
        node.clear()
        probe.acquire()
        assert (await answered(probe)).count == 8

    run(body)


def test_a_round_ends_with_its_child_however_that_is_seen(node: Simulator) -> None:
    """A child that is found gone before the end of its output was read is waited for by nobody."""

    async def body(probe: NvmlProbe) -> None:
        await answered(probe)
        node.inject("hang")
        reading = asyncio.create_task(probe.read(3600.0))
        await until(lambda: probe._child is not None and probe._child.in_round)
        probe.begin_release()
        node.release()
        while _left(probe):  # without a turn of the loop, which would read the output
            time.sleep(0.01)
        async with asyncio.timeout(PATIENT):
            problem = (await reading).problem
        assert problem
        assert problem.reason is MissingReason.RELEASED

    run(body, Nvml(warn_after=3600.0, critical_after=3601.0))


def test_a_child_that_dies_is_started_again_with_growing_pauses(node: Simulator) -> None:
    """A crash of the NVML process is a problem with a reason; starts are spaced, not a loop."""

    async def body(probe: NvmlProbe) -> None:
        await answered(probe)
        probe._backoff_seconds = 60.0
        node.inject("hang")
        await probe.read(0.3)
        os.kill(probe.pids[0], signal.SIGSEGV)
        problem = (await probe.read(PATIENT)).problem
        assert problem
        assert "died" in problem.detail
        node.release()
        assert (await probe.read(PATIENT)).problem == problem  # too early for another start
        assert probe.starts == 1
        probe._not_before -= 60.0  # a minute later
        assert (await answered(probe)).count == 8

    run(body, Nvml(warn_after=0.2, critical_after=PATIENT))


def test_the_child_ends_with_its_parent(node: Simulator) -> None:
    """A parent that is killed leaves no process behind that holds the driver."""
    code = (
        "import asyncio\n"
        "from gpuhealth.monitors.nvidia.settings import Nvml\n"
        "from gpuhealth.monitors.nvidia.nvml.process import NvmlProbe\n"
        "async def main():\n"
        "    probe = NvmlProbe(Nvml())\n"
        "    await probe.read(30)\n"
        "    print(probe.pids[0], flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )

    async def body() -> None:
        parent = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
        assert parent.stdout
        pid = int(await parent.stdout.readline())
        parent.kill()
        await parent.wait()
        await until(lambda: not _runs(pid))

    asyncio.run(body())


def _runs(pid: int) -> bool:
    """Whether the process exists and is no zombie that some init has still to reap."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_no_leaks_over_200_rounds(node: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 rounds, with children that hang, are replaced, released and taken again: no descriptor, no process more."""
    monkeypatch.setattr(nvml, "_RELEASE_SECONDS", PATIENT)

    async def body(probe: NvmlProbe) -> None:
        await answered(probe)
        await until(lambda: _left(probe) == 1)  # as above
        before = len(list(Path("/proc/self/fd").iterdir()))
        for number in range(200):
            if number % 50 == 49:
                node.inject("hang")
                while len(probe.pids) < 2:
                    await probe.read(0.05)
                node.release()
                assert await probe.release()
                probe.acquire()
            await answered(probe)
        await until(lambda: _left(probe) == 1)
        assert len(list(Path("/proc/self/fd").iterdir())) == before

    run(body, Nvml(warn_after=0.2, critical_after=1.0))


def test_xids_are_told_by_nvml_where_asked_for(node: Simulator) -> None:
    """XID events reach the parent with the GPU's address, also of a GPU that is lost with them."""

    async def body(probe: NvmlProbe) -> None:
        seen: list[tuple[int, str]] = []
        probe.on_xid = lambda event: seen.append((event.xid, event.pci))
        probe.want_events()
        gpus = (await answered(probe)).gpus
        node.inject("lost", gpu=5)
        node.inject("xid", gpu=5, code=79)
        node.inject("xid", gpu=6, code=48)
        await until(lambda: len(seen) == 2)
        assert sorted(seen) == sorted([(79, gpus[5].pci), (48, gpus[6].pci)])

    run(body)


def test_old_gpus_have_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features that a T4 lacks are reported as not supported, not as failed calls."""
    simulator = Simulator(tmp_path, model="t4", gpus=2)
    for name, value in simulator.env.items():
        monkeypatch.setenv(name, value)

    async def body(probe: NvmlProbe) -> None:
        gpu = (await answered(probe)).gpus[0]
        assert (gpu.error, gpu.failed_calls) == (None, {})
        for reading in (gpu.nvlinks, gpu.fabric, gpu.remap_failed, gpu.recovery_action, gpu.sram_threshold_exceeded):
            assert isinstance(reading, Missing)
            assert reading.reason is MissingReason.NOT_SUPPORTED
        assert gpu.retired_pages == {"single_bit": 0, "double_bit": 0}

    run(body)


def test_mig_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU in MIG mode lists its instances."""
    simulator = Simulator(tmp_path, gpus=1)
    simulator.inject("mig", count=3)
    for name, value in simulator.env.items():
        monkeypatch.setenv(name, value)

    async def body(probe: NvmlProbe) -> None:
        gpu = (await answered(probe)).gpus[0]
        assert gpu.mig_enabled is True
        assert len({mig.uuid for mig in gpu.mig_devices}) == 3

    run(body)
