"""A cancelled agent loop stops, whatever happens at the same moment."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gpuhealth.agent.agent import Agent
from gpuhealth.kube.client import Client
from gpuhealth.model.component import NODE
from gpuhealth.monitors.settings import Settings
from gpuhealth.quarantine.own_node import OwnNode
from gpuhealth.quarantine.writer import NodeWriter
from gpuhealth.runtime.journal import Entry, Journal
from gpuhealth.runtime.supervisor import supervise

Step = Callable[[], Awaitable[None]]
ENTRY = Entry(time=datetime(2026, 3, 1, tzinfo=UTC), kind="agent", code="test", component=NODE, message="text")


@pytest.fixture
def agent(tmp_path: Path) -> Agent:
    """An agent that has not been started."""
    settings = {"journal": {"path": tmp_path / "journal.sqlite"}, "kubernetes": {"enabled": False}}
    return Agent(Settings.model_validate(settings))


async def stopped(agent: Agent, step: Step, meanwhile: Callable[[], None]) -> None:
    """The loop of a step is cancelled in the same turn in which something happens, and ends."""
    task = asyncio.create_task(supervise(step, agent._count_failure))
    for _ in range(5):
        await asyncio.sleep(0)
    meanwhile()
    task.cancel()
    async with asyncio.timeout(60):
        await asyncio.gather(task, return_exceptions=True)
    assert task.done()


def test_a_step_that_loses_the_cancellation(agent: Agent) -> None:
    """Libraries have swallowed it: the loop asks whether it was cancelled, and does not begin another step."""
    steps = 0

    async def deaf() -> None:
        nonlocal steps
        steps += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return

    asyncio.run(stopped(agent, deaf, lambda: None))
    assert steps == 1
    agent.journal.close()


def test_when_a_wait_completes(agent: Agent) -> None:
    """The journal and the reconciler of the Node are woken and cancelled in the same turn of the loop: they stop, and
    what was noted is written."""

    async def run() -> None:
        async with Client() as client:
            writer = NodeWriter(client, agent.settings, OwnNode(client, "node"))
            await stopped(agent, agent._write_journal, lambda: agent.journal.append(ENTRY))
            await stopped(agent, lambda: agent.reconciler._once(writer), agent.reconciler.trigger)

    asyncio.run(run())
    agent.journal.close()
    journal = Journal(agent.settings.journal.path, 1e9, 100, read_only=True)
    assert [entry.code for entry in journal.entries()] == ["test"]
    journal.close()
