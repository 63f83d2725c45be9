"""Fixtures: a simulated node with a real agent, and an agent in the test's own process that never runs.

What such an agent sees is given to it round by round; what metrics are made of may also be a status of the test's own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gpuhealth.agent.agent import Agent
from gpuhealth.agent.status import AgentStatus
from gpuhealth.model.kernel_event import KernelLogStatus
from gpuhealth.monitors.judge import KERNEL_LOG
from gpuhealth.monitors.settings import Settings
from testing import readings as given
from testing.simnode import SimulatedNode

# Patient with the driver: on a busy machine it may be slow without a fault.
SETTINGS: dict[str, Any] = {
    "interval": "200ms",
    "unknown_after": "60s",
    "nvml": {"warn_after": "60s", "critical_after": "120s"},
    "findings": {"*": {"clear_after": "0s"}},
}

WELL = given.node(*given.gpus(2), kernel_log=KernelLogStatus("kmsg"))
"""A round of a healthy node with two GPUs."""


@pytest.fixture(scope="module")
def module_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatedNode]:
    """Eight H100 and an agent."""
    with SimulatedNode(tmp_path_factory.mktemp("node"), settings=SETTINGS) as node:
        yield node


@pytest.fixture
def node(module_node: SimulatedNode) -> Iterator[SimulatedNode]:
    """The node of the module; its faults are cleared after the test, and the agent's memory stays."""
    yield module_node
    module_node.driver.clear()
    module_node.driver.release()


@pytest.fixture
def impatient(tmp_path: Path) -> Iterator[SimulatedNode]:
    """A node whose driver may hang: that is noticed within a second."""
    with SimulatedNode(tmp_path, settings=SETTINGS | {"nvml": {"warn_after": "500ms", "critical_after": "1s"}}) as node:
        yield node


@pytest.fixture
def make_agent(tmp_path: Path) -> Iterator[Callable[[], Agent]]:
    """Agents that have not been started."""
    made: list[Agent] = []

    def make() -> Agent:
        settings = Settings.model_validate(
            {"journal": {"path": tmp_path / "journal.sqlite"}, "kubernetes": {"enabled": False}}
        )
        made.append(Agent(settings))
        return made[-1]

    yield make
    for agent in made:
        agent.journal.close()


def give_round(agent: Agent, round_: given.Round | None = None) -> None:
    """Gives the agent one round of every monitor, of the kernel log first; by default of a healthy node."""
    readings = (round_ or WELL).readings()
    for monitor in sorted(agent.node_health.judge.monitors, key=lambda monitor: monitor.name != KERNEL_LOG):
        agent.node_health.apply_round(monitor, readings.of(monitor))


class ShownStatus:
    """What metrics are made from, in place of an agent: a status that the test changes."""

    def __init__(self, status: AgentStatus) -> None:
        self.version = 0
        self.changed = asyncio.Event()
        self._status = status

    def status(self) -> AgentStatus:
        """The status as it was last set."""
        return self._status

    def change(self, **fields: Any) -> None:
        """Changes fields of the status."""
        self._status = msgspec.structs.replace(self._status, **fields)
        self.version += 1
