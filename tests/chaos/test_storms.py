"""Storms: the same fault everywhere is a suspect driver, and programs that crash take no node out of service."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
import structlog
from kube import ControlPlane
from structlog.testing import capture_logs
from testing import readings
from testing.agents import give_round
from testing.cluster_objects import Pool
from testing.half_agents import CODE, Half, History, SharedClient, most, running
from testing.readings import START
from testing.waiting import until

from gpuhealth.agent.agent import Agent
from gpuhealth.agent.metrics import Exposition
from gpuhealth.controller.controller import Controller
from gpuhealth.controller.duties.budget_status import BudgetStatusWriter
from gpuhealth.controller.http_app import ControllerCollector
from gpuhealth.fleet.fleet import BlockedQuarantine
from gpuhealth.kube.client import Client
from gpuhealth.model.kernel_event import KernelLogStatus, KernelRecord
from gpuhealth.model.verdict import State
from gpuhealth.monitors.registry import kernel_log_parser
from gpuhealth.monitors.settings import Settings
from gpuhealth.runtime.journal import Journal

NODES = 60
PER_FAULT = 4


def held_nodes(controller: Controller) -> dict[tuple[str, ...], float]:
    """The samples of the controller's metric for nodes that are held."""
    families = {family.name: family for family in ControllerCollector(controller).collect()}
    samples = families["gpuhealth_quarantine_blocked_nodes"].samples
    return {tuple(each.labels[key] for key in ("budget", "limit", "code")): each.value for each in samples}


def condition(pool: Pool) -> tuple[str, str]:
    """Status and reason of the budget's condition."""
    found = pool.plane.request("GET", f"/apis/gpuhealth.io/v1alpha1/quarantinebudgets/{pool.name}")
    return next(((c["status"], c["reason"]) for c in found.get("status", {}).get("conditions", [])), ("", ""))


def test_a_driver_that_fails_everywhere(plane: ControlPlane, pool: Pool) -> None:
    """Sixty nodes fail alike at once: maxPerFault of them go out, one metric and one condition say so, until they are
    well; the slots for other faults stay free."""
    pool.budget("50%", maxPerFault=PER_FAULT)
    nodes = pool.nodes(NODES)
    history = History()
    settings = Settings.model_validate({"controller": {"election": {"enabled": False}}})
    hold = BlockedQuarantine(pool.name, "maxPerFault", CODE)

    async def sick(halves: list[Half]) -> None:
        for half in halves:
            half.want(sick=True)

    async def run() -> None:
        controller = Controller(settings, connect=partial(Client.from_kubeconfig, plane.kubeconfig))
        async with (
            SharedClient(plane.kubeconfig) as client,
            Client.from_kubeconfig(plane.kubeconfig) as observer,
            history.following(observer, f"pool={pool.name}", pool.name),
            running(client, nodes) as halves,
        ):
            working = asyncio.create_task(controller.work())
            try:
                budgets = controller.duty(BudgetStatusWriter).status
                await until(lambda: controller.fleet.ready and budgets.get(pool.name))
                assert hold not in controller.fleet.blocked
                await sick(halves)
                await until(lambda: controller.fleet.blocked[hold] == NODES - PER_FAULT, seconds=300)
                assert held_nodes(controller)[hold] == NODES - PER_FAULT
                await until(lambda: condition(pool) == ("True", "Xid79"), seconds=300)
                await until(lambda: history.out[-1].count == PER_FAULT, seconds=300)
                assert most(history.out) == PER_FAULT
                slots = [name for name in pool.slots() if ".fault." not in name]
                assert len(slots) == PER_FAULT, "the held have no slots"
                for half in halves:
                    half.want(sick=False)
                await until(lambda: hold not in held_nodes(controller), seconds=300)
                await until(lambda: condition(pool) == ("False", "BelowLimit"), seconds=300)
            finally:
                working.cancel()
                await asyncio.gather(working, return_exceptions=True)

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        asyncio.run(run())
    finally:
        structlog.reset_defaults()
    assert most(history.out) == PER_FAULT


GPUS = 8
WELL = readings.node(*readings.gpus(GPUS), kernel_log=KernelLogStatus("kmsg"))
LINES = 168_924
"""XID 45 lines that one cluster's log held of two days: channels of programs that had ended."""
STORM = timedelta(days=2)
AT_ONCE = 12  # lines that the reader finds at once
JOB = 77
"""Nodes of the job that crashes."""
CRASH = (13, 31, 43, 45)


class Time:
    """The time of the test, which passes by hand: of the wall clock and, as seconds, of the steady one."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        """The wall clock."""
        return self.now

    def monotonic(self) -> float:
        """Seconds on the simulated steady clock."""
        return self.now.timestamp()


class Node:
    """An in-process agent with healthy hardware and an injected kernel log."""

    def __init__(self, folder: Path, name: str, time: Time) -> None:
        settings = {"node_name": name, "journal": {"path": folder / f"{name}.sqlite"}}
        self.agent = Agent(Settings.model_validate(settings), wall=time)
        self.state = self.agent.node_health
        self._time = time
        self._parser = kernel_log_parser()

    async def round(self) -> None:
        """A round of every monitor, and what it has to say is in the journal."""
        give_round(self.agent, WELL)
        self.agent.journal.append()
        await self.agent.journal.run_once()

    def says(self, *lines: str) -> None:
        """Feeds lines to the kernel log parser."""
        records = [KernelRecord(line, self._time()) for line in lines]
        self.state.apply_events([event for record in records if (event := self._parser.feed(record))])

    def verdict(self) -> State:
        """What the agent calls the node."""
        verdict = self.agent.status().verdict
        assert verdict is not None
        return verdict.verdict


def xid(code: int, gpu: int, pid: int) -> str:
    """A line of the driver about a program."""
    return f"NVRM: Xid (PCI:0000:{gpu + 1:02x}:00): {code}, pid={pid}, name=python3, Ch {pid % 64:08x}"


@pytest.fixture
def passing(monkeypatch: pytest.MonkeyPatch) -> Time:
    """The time by which agents in this process count."""
    time = Time()
    for module in ("gpuhealth.runtime.clock", "gpuhealth.agent.node_health"):
        monkeypatch.setattr(f"{module}.time", time)
    return time


@pytest.fixture
def make_node(tmp_path: Path, passing: Time) -> Iterator[Callable[[str], Node]]:
    """Agents in this process."""
    made: list[Node] = []

    def make(name: str) -> Node:
        made.append(Node(tmp_path, name, passing))
        return made[-1]

    yield make
    for node in made:
        node.agent.journal.close()


def test_two_days_of_a_program_s_faults(make_node: Callable[[str], Node], tmp_path: Path, passing: Time) -> None:
    """168,924 XIDs 45 in two days: every one is counted, none wants the node out, and little is kept of them."""
    storm = make_node("node")

    async def run() -> None:
        await storm.round()
        assert storm.verdict() is State.HEALTHY
        for first in range(0, LINES, AT_ONCE):
            passing.now = START + STORM * (first / LINES)
            numbers = range(first, min(LINES, first + AT_ONCE))
            storm.says(*(xid(45, number % GPUS, 4000 + number // 100) for number in numbers))
            assert not storm.state.tracker.quarantine().findings
            if first // AT_ONCE % 100 == 0:
                await storm.round()
        passing.now += timedelta(hours=1)
        await storm.round()

    with capture_logs() as logged:
        asyncio.run(run())
    agent = storm.agent
    assert agent.counts.kernel_events["xid"] == sum(agent.counts.xids.values()) == LINES
    assert storm.verdict() is State.HEALTHY, "and an hour later nothing is left of it"
    assert storm.state.tracker.active() == ()
    assert len(logged) <= 4 * GPUS, "raised and cleared"
    shown = [line for line in Exposition(agent, 10.0).text().decode().splitlines() if "xid" in line and line[0] != "#"]
    assert len(shown) <= 4 * GPUS
    journal = Journal(tmp_path / "node.sqlite", 1e9, 100_000, read_only=True)
    entries = list(journal.entries(limit=LINES))
    journal.close()
    kinds = Counter(entry.kind for entry in entries)
    assert kinds["kernel"] <= GPUS * (8 + 48), "seven that come at doubling intervals, then one an hour"
    assert sum(kinds.values()) - kinds["kernel"] <= 4 * GPUS
    suppressed = [
        int(entry.message.rpartition("(")[2].split()[0]) for entry in entries if "more since" in entry.message
    ]
    assert LINES - GPUS * 3600 <= sum(suppressed) + kinds["kernel"] <= LINES, "but for those since the last entry"


def test_a_job_that_crashes_on_many_nodes(
    plane: ControlPlane, pool: Pool, make_node: Callable[[str], Node], passing: Time
) -> None:
    """77 nodes report XIDs 13, 31, 43 and 45 within seconds: none is ever tainted, and each writes a few times."""
    pool.budget(JOB)
    nodes = [make_node(name) for name in pool.nodes(JOB)]
    history = History()

    async def run() -> None:
        async with (
            SharedClient(plane.kubeconfig) as client,
            Client.from_kubeconfig(plane.kubeconfig) as observer,
            history.following(observer, f"pool={pool.name}", pool.name),
        ):
            for node in nodes:
                await node.round()
            keeping = [
                asyncio.create_task(node.agent.reconciler.run_with(client, node.agent.settings)) for node in nodes
            ]
            try:
                await until(lambda: verdicts() == {"healthy": JOB}, seconds=300)
                before = writes(client)
                for _ in range(5):
                    passing.now += timedelta(seconds=1)
                    for number, node in enumerate(nodes):
                        pid = 4000 + number
                        node.says(*(xid(code, gpu, pid + gpu) for code in CRASH for gpu in range(GPUS)))
                        await asyncio.sleep(0)
                await until(lambda: verdicts() == {"degraded": JOB}, seconds=300)
                await until(lambda: all(node.agent.reconciler.is_settled for node in nodes), seconds=300)
                written = writes(client) - before
                assert written["POST"] == 0, "no slot and no Event: a node that is degraded is in service"
                assert written["PATCH"] <= 6 * JOB, "label, condition, report, and once more for what came meanwhile"
            finally:
                for task in keeping:
                    task.cancel()
                await asyncio.gather(*keeping, return_exceptions=True)

    def writes(client: Client) -> Counter[str]:
        return Counter({kind: sum(n for (m, _), n in client.calls.items() if m == kind) for kind in ("POST", "PATCH")})

    def verdicts() -> dict[str, int]:
        reports = plane.request("GET", "/apis/gpuhealth.io/v1alpha1/gpuhealthreports")["items"]
        ours = [each for each in reports if each["metadata"]["name"].startswith(f"{pool.name}-")]
        return dict(Counter(each.get("status", {}).get("verdict", "") for each in ours))

    with capture_logs() as logged:
        asyncio.run(run())
    assert most(history.out) == 0
    assert not pool.slots()
    findings = sum(entry["event"] == "finding raised" for entry in logged)
    assert findings <= JOB * GPUS * len(CRASH)
    assert len(logged) - findings <= 12 * JOB, "the acts"
