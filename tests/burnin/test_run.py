"""A run on a simulated node: processors stand in for its GPUs, the driver and the kernel log are read as always."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from testing.simnode import SimulatedNode

from gpuhealth.burnin.protocol import Fault
from gpuhealth.burnin.run import Curves, Plan, Run
from gpuhealth.burnin.sampling import Sampler
from gpuhealth.burnin.targets import BurninError, targets
from gpuhealth.model.burnin_run import BurninRun, TestStatus
from gpuhealth.monitors.settings import load


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatedNode]:
    """A healthy node with eight H100; this process sees its driver."""
    node = SimulatedNode(tmp_path)
    for name, value in node.driver.env.items():
        monkeypatch.setenv(name, value)
    yield node
    node.driver.release()


def _run(
    node: SimulatedNode,
    devices: str,
    seconds: float = 0.1,
    faults: Callable[[list[str]], tuple[Fault, ...]] = lambda _: (),
    then: Callable[[Run], None] = lambda _: None,
) -> tuple[BurninRun, Curves]:
    """Run the memory test; `faults` returns the faults to inject, `then` prepares the run before it starts."""

    async def run() -> tuple[BurninRun, Curves]:
        settings = load(node.config)
        sampler = Sampler(settings, interval=0.05)
        async with sampler.sampling():
            chosen = targets(devices, (), sampler.gpus)
            names = [target.gpu for target in chosen]
            running = Run(
                Plan(level="quick", tests={"memory": seconds}, targets=chosen, faults=faults(names)), settings, sampler
            )
            then(running)
            return await running.run(), running.curves()

    return asyncio.run(run())


def test_each_gpu_has_its_own_result_whatever_becomes_of_the_others(node: SimulatedNode) -> None:
    """Of five GPUs one crashes its test, one has a bad cell, one an XID, one was throttled for a moment that no sample
    shows; the fifth passes, with its telemetry."""
    node.driver.set({"gpu1.temperature": 71, "gpu4.temperature": 44})

    def faults(gpus: list[str]) -> tuple[Fault, ...]:
        return Fault(kind="segfault", gpu=gpus[0], after=2), Fault(kind="memory_bits", gpu=gpus[1])

    def trouble(_: str) -> None:
        node.xid(48, gpu=2)
        node.driver.inject("hw_thermal", gpu=3)
        node.driver.clear("hw_thermal", gpu=3)
        node.driver.inject("aer", gpu=3, severity="nonfatal", count=2)

    def trouble_during_the_test(run: Run) -> None:
        run.on_test_started = trouble

    run, curves = _run(node, "cpu:0,1,2,3,4", faults=faults, then=trouble_during_the_test)
    crashed, wrong, with_xid, throttled, sound = run.results
    assert [result.status for result in run.results] == [*[TestStatus.FAILED] * 4, TestStatus.PASSED]
    assert "was ended by SIGSEGV" in crashed.message
    assert "Segmentation fault" in crashed.evidence
    assert wrong.miscompares[0].xor
    assert wrong.miscompares[0].temperature_celsius == 71
    assert "XID 48" in with_xid.message
    assert "HW thermal throttling" in throttled.message
    assert "2 uncorrectable PCIe errors (aer_dev_nonfatal)" in throttled.message
    assert (sound.telemetry["temperature_celsius"].max, sound.figures["wrong_words"]) == (44, 0)
    assert run.status is TestStatus.FAILED
    assert {"torch", "driver"} <= run.software.keys()
    assert set(run.models.values()) == {"NVIDIA H100 80GB HBM3"}
    assert run.notes == ("faults were injected on purpose: segfault, memory_bits",)
    assert [value for _, value in curves[sound.gpu]["temperature_celsius"]][-1] == 44


def test_a_driver_that_hangs_passes_nothing(node: SimulatedNode) -> None:
    """A test without telemetry fails, and the run continues to its end."""
    node.configure({"nvml": {"warn_after": "5s"}})

    def hang(run: Run) -> None:
        run.on_test_started = lambda _: node.driver.inject("hang")

    (result,) = _run(node, "cpu:0", then=hang)[0].results
    assert result.status is TestStatus.FAILED
    assert "no telemetry of this GPU" in result.message


def test_a_run_that_is_stopped_keeps_what_it_has(node: SimulatedNode) -> None:
    """A stop ends ten minutes of work at the first progress; figures so far are kept, and nothing has passed."""

    tasks = []

    async def stop(run: Run) -> None:
        while not run.progress:
            await asyncio.sleep(0.05)
        run.stop()

    def stop_soon(run: Run) -> None:
        tasks.append(asyncio.get_running_loop().create_task(stop(run)))

    run, _ = _run(node, "cpu:6", seconds=600, then=stop_soon)
    assert run.status is TestStatus.STOPPED
    (result,) = run.results
    assert result.status is TestStatus.STOPPED
    assert result.figures["tested_gigabytes"] > 0
    assert (run.ended - run.started).total_seconds() < 300


def test_a_torch_that_does_not_load_is_an_error_and_no_result(
    node: SimulatedNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A torch that cannot be loaded raises an error, and no GPU gets a result."""
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.12 is not there')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(BurninError, match=r"libcudart\.so\.12 is not there"):
        _run(node, "cpu:0,1")
