"""Every code from the driver up: a fault of the simulated node is read by the real probes through the real pynvml, is
judged by all checks, becomes a finding, and ends when the fault does.

Only the clock is the test's own: a round is read when it says so, at the time that it says.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from nvmlsim.simulator import COMMAND, Simulator
from testing.fault_cases import CASES, GPUS, RESTARTING, ROUND, Case, _start_fabric_manager
from testing.findings import tracker

from gpuhealth.model.codes import CODES
from gpuhealth.model.component import NODE, Component, Kind
from gpuhealth.model.finding import Clean, Finding, NotChecked, Outcome
from gpuhealth.model.kernel_event import KernelLogStatus
from gpuhealth.monitors.fleet_findings.monitor import MONITOR as FLEET_FINDINGS
from gpuhealth.monitors.judge import Judge
from gpuhealth.monitors.kernel_log.monitor import MONITOR as KERNEL_LOG
from gpuhealth.monitors.monitor import ProbeContext
from gpuhealth.monitors.nvidia import devices
from gpuhealth.monitors.nvidia.checks import xid
from gpuhealth.monitors.nvidia.monitor import MONITOR as NVIDIA
from gpuhealth.monitors.nvidia.nvml import process as nvml
from gpuhealth.monitors.nvidia.nvml import stale_library
from gpuhealth.monitors.nvidia.probe import NvidiaProbe
from gpuhealth.monitors.nvidia.readings import NvidiaReadings
from gpuhealth.monitors.nvidia.settings import Nvml
from gpuhealth.monitors.own_process.monitor import MONITOR as OWN_PROCESS
from gpuhealth.monitors.registry import AnyMonitor, code_of
from gpuhealth.monitors.runner import MonitorRunner
from gpuhealth.monitors.settings import Settings
from gpuhealth.runtime.settings import Burnin, Roots

PATIENT = 30.0  # seconds for a round; none takes that long

EVENTS = {code.name for codes in (xid.CHECK.codes, KERNEL_LOG.codes) for code in codes}
"""Codes of the kernel log, which fire in test_codes.py, and clear in the tests of their checks."""
OWN = {code.name for code in OWN_PROCESS.codes}
"""Codes about the agent and not the node."""
FOLLOWS = {"burnin.required", "quarantine.memory_lost", "gpu.replaced", *(code.name for code in FLEET_FINDINGS.codes)}
"""Raised by another finding's clearing, from the record on the Node, over a reboot, or by the controller."""


class Bench:
    """A simulated node, the probes of all monitors, and what the checks make of it over time."""

    def __init__(self, node: Simulator, settings: Settings) -> None:
        self.node = node
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.judge = Judge(settings, boot_id="boot-1", time=self.now)
        self.tracker = tracker(settings)
        self.outcomes: list[Outcome] = []
        self._settings = settings
        self._runners = {monitor.name: self._runner(monitor) for monitor in self.judge.monitors}

    def _runner(self, monitor: AnyMonitor) -> MonitorRunner:
        context: ProbeContext[Any, Any] = ProbeContext(
            core=self._settings,
            settings=self._settings,
            baseline=self.judge.memory.baseline(monitor),
            boot_id="boot-1",
            now=lambda: self.now,
            interval=PATIENT,
            kernel_log=lambda: KernelLogStatus("kmsg"),
        )
        return MonitorRunner(monitor, monitor.probe(context), self._settings)

    @property
    def nvidia(self) -> NvidiaProbe:
        """The probe of the GPUs."""
        probe = self._runners[NVIDIA.name].probe
        assert isinstance(probe, NvidiaProbe)
        return probe

    async def round(self, seconds: float = ROUND) -> None:
        """One round of every monitor, so much later."""
        self.now += timedelta(seconds=seconds)
        self.outcomes = []
        readings = {monitor.name: await self._runners[monitor.name].read() for monitor in self.judge.monitors}
        for monitor in self.judge.monitors:
            self.judge.set_readings(monitor, readings[monitor.name], self.now)
        for monitor in self.judge.monitors:
            said = self.judge.round(monitor, readings[monitor.name], self.now, failure=self._failure(monitor))
            self.tracker.apply_round(monitor.name, said, self.judge.facts())
            self.outcomes += said

    def _failure(self, monitor: AnyMonitor) -> str:
        return self._runners[monitor.name].failure

    @property
    def first_gpu(self) -> Component:
        """The first GPU that NVML lists."""
        readings = self.judge.readings.of(NVIDIA)
        assert isinstance(readings, NvidiaReadings)
        return readings.nvml.gpus[0].component

    def raised(self, code: str) -> list[Finding]:
        """The active findings of a code."""
        return [finding for finding in self.tracker.active() if finding.code == code]

    def close(self) -> None:
        """Ends the probes of all monitors."""
        for runner in self._runners.values():
            runner.close()


@asynccontextmanager
async def bench(node: Simulator, settings: Settings) -> AsyncIterator[Bench]:
    """A bench whose hanging calls and processes are ended with it."""
    it = Bench(node, settings)
    try:
        yield it
    finally:
        node.release()
        it.close()


@pytest.fixture
def make_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Simulator]:
    """Nodes whose NVML this process' children see, with the processes that use them."""
    monkeypatch.setattr(devices, "_RESCAN_SECONDS", 0.0)
    monkeypatch.setattr(nvml, "_FIRST_BACKOFF_SECONDS", 0.0)
    monkeypatch.setattr(stale_library, "_PATIENCE_SECONDS", 3600.0)  # the agent ends itself: a test of its own

    def make(model: str) -> Simulator:
        node = Simulator(tmp_path, model, GPUS)
        for name, value in node.env.items():
            monkeypatch.setenv(name, value)
        for process in ("self", "1"):
            (node.root / "proc" / process).mkdir(parents=True)
        (node.root / "proc/1/mounts").write_text("overlay / overlay rw 0 0\n")
        _start_fabric_manager(node)
        return node

    return make


def settings_of(node: Simulator, nvml: Nvml = RESTARTING, **more: Any) -> Settings:
    """The defaults, over the node's trees; `more` are sections."""
    roots = Roots(dev=node.root / "dev", sys=node.root / "sys", proc=node.root / "proc")
    return Settings(roots=roots, nvml=nvml, burnin=Burnin(results_dir=node.root / "burnin"), **more)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_fires_and_clears(case: Case, make_node: Callable[[str], Simulator]) -> None:
    """The code is measured and clean on a healthy node, fires with the fault, and clears without it."""
    node = make_node(case.model)
    case.before(node)
    if case.at_start:
        case.inject(node)
    asyncio.run(_fires_and_clears(case, node))


async def _fires_and_clears(case: Case, node: Simulator) -> None:
    async with bench(node, settings_of(node, case.nvml, **case.more(node))) as it:
        component = case.component or NODE
        if not case.at_start:
            await it.round()
            await it.round()
            component = case.component or it.first_gpu
            assert Clean(case.code, component) in it.outcomes
            assert it.tracker.active() == ()
            case.inject(node)
        found = await _until_raised(it, case, component)
        assert found.component == component
        assert found.evidence.source
        case.clear(node)
        await _until_cleared(it, case)


async def _until_raised(it: Bench, case: Case, component: Component) -> Finding:
    seconds = max(ROUND, code_of(case.code).raise_after / 6)
    for _ in range(12):
        case.every_round(it.node)
        await it.round(seconds)
        for finding in it.raised(case.code):
            if (finding.component, finding.severity) == (component, case.severity):
                return finding
    raise AssertionError(f"{case.code} did not fire: {it.outcomes}")


async def _until_cleared(it: Bench, case: Case) -> None:
    for _ in range(40):
        await it.round(seconds=300)
        if not it.raised(case.code):
            assert not any(each.code == case.code for each in it.outcomes if isinstance(each, Finding | NotChecked))
            return
    raise AssertionError(f"{case.code} did not clear: {it.raised(case.code)}")


def test_every_code_is_in_the_table() -> None:
    """A code without a fault that fires it and an end that clears it does not pass."""
    fired = {case.code for case in CASES}
    assert fired & (EVENTS | FOLLOWS) == set()
    assert fired | EVENTS | FOLLOWS == {code.name for code in CODES.defined()}


@pytest.mark.parametrize("monitor", ["nvidia", "burnin_results"])
def test_a_monitor_that_fails(
    monitor: str, make_node: Callable[[str], Simulator], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A probe that raises is a finding about its own monitor, and clears once it works; the others go on."""
    node = make_node("h100-sxm")

    async def broken() -> None:
        raise OSError("input/output error")

    async def look() -> None:
        async with bench(node, settings_of(node)) as it:
            await it.round()
            with monkeypatch.context() as patch:
                patch.setattr(it._runners[monitor].probe, "read", broken)
                await it.round()
            (failed,) = it.raised("agent.monitor_failed")
            assert failed.component == Component(Kind.MONITOR, monitor)
            assert "OSError: input/output error" in failed.message
            assert it.tracker.active() == (failed,)
            assert it.tracker.quarantine().findings == ()
            assert any(isinstance(each, Clean) for each in it.outcomes)
            for _ in range(3):
                await it.round(seconds=60)
            assert it.tracker.active() == ()

    asyncio.run(look())


MODELS = COMMAND.parents[1] / "models"


def _look(node: Simulator, rounds: int = 2) -> Bench:
    async def look() -> Bench:
        async with bench(node, settings_of(node)) as it:
            for _ in range(rounds):
                await it.round()
            return it

    return asyncio.run(look())


@pytest.mark.parametrize("model", sorted(path.stem for path in MODELS.glob("*.model")))
@pytest.mark.parametrize("load", [None, "busy"])
def test_healthy_models(model: str, load: str | None, make_node: Callable[[str], Simulator]) -> None:
    """A healthy node of any model, idle or busy, has no finding, and nothing unchecked but what needs load."""
    node = make_node(model)
    if load:
        node.inject(load)
    it = _look(node)
    assert it.tracker.active() == ()
    unchecked = {each.code for each in it.outcomes if isinstance(each, NotChecked)}
    assert unchecked <= (set() if load else {"gpu.straggler", "pcie.generation"})


def test_idle_link_is_no_fault(make_node: Callable[[str], Simulator]) -> None:
    """A PCI Express link that shifts down while the GPU is idle is no finding."""
    node = make_node("h100-sxm")
    node.inject("pcie_idle")
    it = _look(node)
    assert it.tracker.active() == ()


def test_no_libnvidia_ml(make_node: Callable[[str], Simulator], monkeypatch: pytest.MonkeyPatch) -> None:
    """A node whose kernel module is loaded and whose library we do not find is not at fault: ours is the finding."""
    node = make_node("h100-sxm")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/nonexistent")
    it = _look(node)
    assert [finding.code for finding in it.tracker.active()] == ["agent.nvml_library"]
    clean = {each.code for each in it.outcomes if isinstance(each, Clean)}
    assert clean <= EVENTS | OWN | {"fabric.manager_down", "driver.not_loaded", "gpu.unmanaged"}


def test_no_library_and_no_gpu(make_node: Callable[[str], Simulator], monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without any GPU has no finding, and is not said to be clean."""
    node = make_node("l40s")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/nonexistent")
    shutil.rmtree(node.root / "sys")
    shutil.rmtree(node.root / "dev")
    it = _look(node)
    assert it.tracker.active() == ()
    assert {each.code for each in it.outcomes if isinstance(each, Clean)} <= EVENTS | OWN


def test_mig(make_node: Callable[[str], Simulator]) -> None:
    """A GPU with MIG on has no finding for it, and a fault of it is the parent's."""
    node = make_node("h100-sxm")
    node.inject("mig", gpu=0)
    node.inject("ecc_uncorrectable", gpu=0)
    it = _look(node)
    assert [(each.code, each.component) for each in it.tracker.active()] == [("ecc.uncorrectable", it.first_gpu)]


def test_several_faults_are_all_kept(make_node: Callable[[str], Simulator]) -> None:
    """Faults of several GPUs at once are all found, one lost GPU hides none of the others."""
    node = make_node("h100-sxm")
    node.inject("lost", gpu=0)
    node.inject("remap_failed", gpu=1)
    node.inject("hw_thermal", gpu=1)
    node.inject("persistence_off", gpu=2)
    it = _look(node, rounds=1)
    assert {finding.code for finding in it.tracker.active()} == {
        "gpu.lost",
        "gpu_memory.remap_failed",
        "clocks.hw_slowdown",
        "clocks.thermal",
        "persistence.off",
    }


def test_release(make_node: Callable[[str], Simulator]) -> None:
    """While the driver is released nothing new is found and nothing old is cleared."""
    node = make_node("h100-sxm")
    node.inject("remap_failed", gpu=0)

    async def look() -> None:
        async with bench(node, settings_of(node)) as it:
            await it.round()
            assert await it.nvidia.nvml.release()
            node.clear()
            await it.round(seconds=3600)
            assert [finding.code for finding in it.tracker.active()] == ["gpu_memory.remap_failed"]
            assert all(isinstance(each, NotChecked) for each in it.outcomes if each.code not in EVENTS | OWN)
            it.nvidia.nvml.acquire()
            for _ in range(2):
                await it.round(seconds=30)
            assert it.tracker.active() == ()

    asyncio.run(look())
