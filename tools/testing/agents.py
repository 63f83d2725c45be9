"""Fixtures: a simulated node with a real agent, and an agent in the test's own process that never runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gpuhealth.agent.agent import Agent
from gpuhealth.runtime.settings import Settings
from testing.simnode import SimulatedNode

# Patient with the driver: on a busy machine it may be slow without a fault.
SETTINGS: dict[str, Any] = {
    "interval": "200ms",
    "unknown_after": "60s",
    "nvml": {"warn_after": "60s", "critical_after": "120s"},
    "findings": {"*": {"clear_after": "0s"}},
}


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
