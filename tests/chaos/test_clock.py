"""The wall clock is set under a running agent, and while none runs: nothing is found, cleared or lost by that alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from kube import ControlPlane
from testing.marked_node import XID_95, Marked
from testing.waiting import until

from gpuhealth.agent.agent import Agent
from gpuhealth.kube.objects import parse_time
from gpuhealth.monitors.settings import load
from gpuhealth.runtime.journal import Entry, Journal

STEPS = [timedelta(days=1), -timedelta(days=1), timedelta(days=365), -timedelta(days=365)]
PATIENT = {
    "persistence.off": {"raise_after": "1h"},
    "gpu_memory.remap_failed": {"raise_after": 0, "clear_after": "1h"},
    "xid.*": {"clear_after": "1h"},
}
A_MINUTE = timedelta(minutes=1)


class Wall:
    """A wall clock that can be set."""

    def __init__(self) -> None:
        self.offset = timedelta()

    def __call__(self) -> datetime:
        """The true time and what it was set by."""
        return datetime.now(UTC) + self.offset


class Timed(Marked):
    """A node with agents in this process, by a clock of the test's."""

    wall: Wall

    @asynccontextmanager
    async def agent(self) -> AsyncIterator[Agent]:
        """Runs an agent until the block ends."""
        agent = Agent(load(self.sim.config), self.sim.config, wall=self.wall)
        task = asyncio.create_task(agent.run())
        try:
            await until(lambda: agent.has_judged)
            yield agent
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def entries(self) -> list[Entry]:
        """All of the journal, in the order in which it was written."""
        journal = Journal(self.sim.folder / "journal.sqlite", 1e9, 1000, read_only=True)
        try:
            return list(journal.entries())
        finally:
            journal.close()

    def raised(self) -> set[str]:
        """The codes of the findings that the journal has."""
        return {entry.code for entry in self.entries() if entry.kind == "raised"}

    def changed_at(self) -> datetime:
        """When our condition changed its status, as it says."""
        conditions = self.node()["status"].get("conditions", [])
        return next(parse_time(c["lastTransitionTime"]) for c in conditions if c["type"] == "GPUHealthy")


@pytest.fixture
def timed(plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Timed]:
    """A node of its own, with room in a budget."""
    made = Timed(plane, tmp_path)
    made.wall = Wall()
    made.budget(1)
    made.sim.configure({"findings": PATIENT})
    for name, value in made.sim.driver.env.items():
        monkeypatch.setenv(name, value)
    yield made
    made.remove()


async def rounds(agent: Agent, more: int = 4) -> None:
    """So many rounds more of every monitor."""
    done = {name: agent.counts.rounds[name] + more for name in agent.runners}
    await until(lambda: all(agent.counts.rounds[name] >= rounds for name, rounds in done.items()))


def codes(agent: Agent) -> list[str]:
    """Of the active findings."""
    return sorted(finding.code for finding in agent.node_health.tracker.active())


async def eventually(what: Callable[[], bool]) -> None:
    """Waits for what has to be asked of a server or a disk."""
    async with asyncio.timeout(180):
        while not await asyncio.to_thread(what):
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_the_clock_is_set(timed: Timed, step: timedelta) -> None:
    """Findings, debounce, clearing, coalescing, journal, kernel log and marks are after the step as before it."""
    sim, wall = timed.sim, timed.wall

    async def before(agent: Agent) -> None:
        sim.driver.inject("persistence_off", gpu=0)  # seen, and not yet for long enough
        sim.driver.inject("remap_failed", gpu=1)
        sim.xid(13, gpu=2)
        await until(lambda: codes(agent) == ["gpu_memory.remap_failed", "xid.13"])
        await eventually(lambda: timed.taint() == "gpu_memory.remap_failed")
        sim.driver.clear("remap_failed")  # read clean, and not yet for long enough
        await rounds(agent)
        await eventually(lambda: timed.condition() == ("False", "GpuMemoryRemapFailed"))

    async def unmoved(agent: Agent, records: int) -> None:
        await rounds(agent)
        assert codes(agent) == ["gpu_memory.remap_failed", "xid.13"]
        verdict = agent.status().verdict
        assert verdict is not None
        assert verdict.is_known
        assert agent.is_current()
        assert agent.kernel_log.records == records
        assert abs(agent.clock() - wall()) < A_MINUTE
        assert all(
            abs(finding.first_seen - wall()) < timedelta(minutes=10) for finding in agent.node_health.tracker.active()
        )

    async def run() -> None:
        async with timed.agent() as agent:
            await before(agent)
            await eventually(lambda: {"gpu_memory.remap_failed", "xid.13"} <= timed.raised())
            transition, known = timed.changed_at(), timed.entries()
            wall.offset += step
            await eventually(lambda: "clock" in {entry.code for entry in timed.entries()})
            await unmoved(agent, records=1)
            sim.xid(13, gpu=2)  # the same fault, as far as `coalesce` reaches
            await until(lambda: agent.kernel_log.records == 2)
            assert timed.changed_at() == transition
            assert timed.taint() == "gpu_memory.remap_failed"
        wall.offset += step
        async with timed.agent() as agent:
            await unmoved(agent, records=0)
            after = timed.entries()
            assert after[: len(known)] == known, "nothing is pruned or put in another order"
            assert {entry.kind for entry in after[len(known) :]} <= {"agent", "kernel", "act"}
            sim.xid(95, gpu=3, text=XID_95)
            await until(lambda: "xid.95" in codes(agent))
            found = next(finding for finding in agent.node_health.tracker.active() if finding.code == "xid.95")
            assert abs(found.first_seen - wall()) < A_MINUTE
            assert found.evidence.time is not None
            assert abs(found.evidence.time - wall()) < A_MINUTE

    asyncio.run(run())


def test_a_condition_that_changes_after_a_step(timed: Timed) -> None:
    """The transition time of a condition follows the stepped clock, not the clock at agent start."""

    async def run() -> None:
        async with timed.agent() as agent:
            await eventually(lambda: timed.condition() == ("True", "Healthy"))
            timed.wall.offset = timedelta(days=1)
            await eventually(lambda: "clock" in {entry.code for entry in timed.entries()})
            await rounds(agent, 1)
            timed.sim.driver.inject("remap_failed", gpu=1)
            await eventually(lambda: timed.condition()[0] == "False")
            assert abs(timed.changed_at() - timed.wall()) < A_MINUTE

    asyncio.run(run())
