"""The contract of duties: what the controller composes from DUTIES, and when it runs each."""

from __future__ import annotations

import asyncio
import pkgutil

import pytest

from gpuhealth.controller import duties
from gpuhealth.controller.controller import Controller
from gpuhealth.controller.duties import DUTIES
from gpuhealth.controller.http_app import ControllerCollector
from gpuhealth.fleet.store import ObjectStore
from gpuhealth.kube.client import Client
from gpuhealth.monitors.settings import Settings

IN_OBSERVE = {"drain_controller", "budget_status", "reserved_slots", "orphaned_slots", "burnin_scheduler"}
WRITES_NODES = {"agent_liveness", "outlier_publisher"}


def controller(**settings: object) -> Controller:
    """A controller without election, and so the leader, of which nothing runs."""
    alone = {"controller": {"election": {"enabled": False}}}
    return Controller(Settings.model_validate(alone | settings), connect=Client)


def test_every_module_of_the_folder_is_a_duty() -> None:
    """DUTIES names one class of each module in duties/, and the duty has the name of its module."""
    modules = {module.name for module in pkgutil.iter_modules(duties.__path__)}
    assert {duty.__module__.rpartition(".")[2] for duty in DUTIES} == modules
    assert [duty.name for duty in DUTIES] == [duty.__module__.rpartition(".")[2] for duty in DUTIES]


@pytest.mark.parametrize(("mode", "expected"), [("observe", IN_OBSERVE), ("taint", IN_OBSERVE | WRITES_NODES)])
def test_duties_by_mode(mode: str, expected: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """In mode observe no duty runs that writes to Nodes; in the others all run, each on a task of its name."""
    found = controller(mode=mode)
    running: set[str] = set()

    def record(name: str) -> object:
        async def run() -> None:
            task = asyncio.current_task()
            assert task is not None
            assert task.get_name() == name
            running.add(name)
            await asyncio.Event().wait()

        return run

    async def lead() -> None:
        task = asyncio.create_task(found._lead())
        async with asyncio.timeout(60):
            while running != expected:
                assert not task.done()
                assert running <= expected
                await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    for duty in found.duties:
        monkeypatch.setattr(duty, "run", record(duty.name))
    asyncio.run(lead())
    assert not found.failures


def test_metrics_of_duties() -> None:
    """Each duty is a collector of its own; its gauges of the fleet are shown only once the fleet is listed."""
    found = controller()
    collector = ControllerCollector(found)
    assert {duty.name for duty in found.duties} <= collector.collectors().keys()
    before = {family.name for family in collector.collect()}
    assert "gpuhealth_drain_evictions" in before
    assert "gpuhealth_drain_nodes" not in before
    for table in vars(found.fleet).values():
        if isinstance(table, ObjectStore):
            table.listed = True
    after = {family.name for family in collector.collect()}
    assert before < after
    assert {"gpuhealth_drain_nodes", "gpuhealth_agents_silent", "gpuhealth_burnin_running"} <= after
