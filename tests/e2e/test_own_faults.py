"""Faults of the agent itself, in a real agent: the node is unknown for as long, and nothing asks for its quarantine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from testing.simnode import QUICK, ROUNDS, SimulatedNode, entries, healthy
from testing.waiting import wait_for

from gpuhealth.agent.agent import Agent
from gpuhealth.monitors.monitor import RestartRequiredError
from gpuhealth.monitors.nvidia.nvml import stale_library
from gpuhealth.monitors.settings import load

QUARANTINING = 'gpuhealth_verdict{verdict="unhealthy"}'


@pytest.fixture
def node(tmp_path: Path) -> Iterator[SimulatedNode]:
    """A node of eight H100 whose agent the test starts."""
    made = SimulatedNode(tmp_path, settings=QUICK)
    yield made
    made.driver.release()
    made.stop()


def child_of(node: SimulatedNode) -> int | None:
    """The NVML process of the node's agent."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError):
            pid, _, rest = stat.read_text().partition(" ")
            state, parent = rest.rpartition(")")[2].split()[:2]
            if int(parent) == node.pid and state != "Z":
                return int(pid)
    return None


def test_a_child_that_is_killed_again_and_again_is_no_fault_of_the_node(node: SimulatedNode) -> None:
    """Five kills of the NVML process, as by the OOM killer: agent.monitor_failed, and healthy once it lives again."""
    with node:
        wait_for("healthy", lambda: healthy(node))
        for number in range(5):
            pid = wait_for("the NVML process", lambda: child_of(node))
            os.kill(pid, signal.SIGKILL)
            wait_for("the finding", lambda: "agent.monitor_failed" in node.findings())
            assert node.findings() == {"agent.monitor_failed"}, number
            assert node.metric(QUARANTINING) == 0
        wait_for("healthy again", lambda: healthy(node) and not node.findings())
    assert {code for kind, code in entries(node) if kind == "raised"} == {"agent.monitor_failed"}


@pytest.mark.parametrize(
    ("call", "code"),
    [("nvmlDeviceGetApplicationsClock", 26), ("nvmlDeviceGetPowerUsage", 999), ("nvmlDeviceGetSerial", 2)],
)
def test_one_odd_return_code_is_a_warning_of_ours(node: SimulatedNode, call: str, code: int) -> None:
    """A single call that fails in every round on every GPU is agent.unexpected_reading: the node stays in service."""
    node.driver.inject("error", call=call, code=code)
    with node:
        wait_for("the finding", lambda: node.findings() == {"agent.unexpected_reading"})
        rounds = node.metric(ROUNDS) or 0
        wait_for("ten rounds more", lambda: (node.metric(ROUNDS) or 0) >= rounds + 10)
        assert node.findings() == {"agent.unexpected_reading"}
        assert node.metric(QUARANTINING) == 0


def test_a_gpu_with_an_odd_value_and_a_fault_is_found(node: SimulatedNode) -> None:
    """The fault of a GPU is found although another reading of it cannot be used, and all eight GPUs are there."""
    node.driver.lie("nvmlDeviceGetFieldValues", gpu=3, field=82, value=0.5)
    node.driver.inject("ecc_uncorrectable", gpu=3)
    node.driver.inject("prints")
    with node:
        wait_for("both findings", lambda: node.findings() == {"ecc.uncorrectable", "agent.unexpected_reading"})
        assert node.metric(QUARANTINING) == 1
        assert len(set(re.findall(r'^gpuhealth_gpu_verdict{gpu="([^"]+)"', node.get("/metrics")[1], re.MULTILINE))) == 8


def test_a_frozen_agent_is_no_driver_that_hangs(node: SimulatedNode) -> None:
    """Agent and NVML process stopped for longer than a critical hang, in the middle of a round: no finding."""
    node.configure({"nvml": {"warn_after": "5s", "critical_after": "6s"}})
    with node:
        wait_for("healthy", lambda: healthy(node))
        pid = wait_for("the NVML process", lambda: child_of(node))
        node.driver.inject("slow", call="nvmlDeviceGetPowerUsage", ms=250)  # eight GPUs: two seconds a round
        rounds = node.metric(ROUNDS) or 0
        wait_for("a slow round", lambda: (node.metric(ROUNDS) or 0) > rounds)
        for process in (node.pid, pid):
            os.kill(process, signal.SIGSTOP)
        frozen = _jiffies_of_boot()
        wait_for("the frozen time to pass", lambda: _jiffies_of_boot() - frozen > 9.0)
        for process in (node.pid, pid):
            os.kill(process, signal.SIGCONT)
        rounds = node.metric(ROUNDS) or 0
        wait_for("two rounds more", lambda: (node.metric(ROUNDS) or 0) >= rounds + 2)
    assert "driver.unresponsive" not in {code for _, code in entries(node)}


def _jiffies_of_boot() -> float:
    """Seconds since the machine started."""
    return float(Path("/proc/uptime").read_text().split()[0])


def test_an_agent_older_than_the_driver_ends_itself(node: SimulatedNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an upgrade of the driver its library does not work: it says so and ends, and never blames the node."""
    monkeypatch.setattr(stale_library, "_PATIENCE_SECONDS", 0.5)
    for name, value in node.driver.env.items():
        monkeypatch.setenv(name, value)
    agent = Agent(load(node.config))

    async def upgraded() -> None:
        running = asyncio.create_task(agent.run())
        try:
            async with asyncio.timeout(120.0):
                while not agent.has_judged:
                    await asyncio.sleep(0.01)
                node.driver.set({"node.driver_version": "570.86.15"})
                node.driver.inject("driver_mismatch")
                node.driver.inject("error", call="nvmlDeviceGetCount", code=1)
                await running
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    with pytest.raises(
        RestartRequiredError, match=r"570\.86\.15 is loaded, this process started with kernel module 550"
    ):
        asyncio.run(upgraded())
    assert {code for kind, code in entries(node) if kind == "raised"} <= {
        "agent.nvml_library",
        "agent.unexpected_reading",
    }
    assert ("agent", "agent.nvml_library") in entries(node)
