"""Comparison over the fleet of results and speeds that the command has really measured."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import msgspec
from kube import Document
from testing import processes
from testing.controller_steps import said
from testing.managed_cluster import Cluster, until
from testing.simnode import SimulatedNode

from gpuhealth.api.resource import body
from gpuhealth.fleet import views
from gpuhealth.fleet.comparison import MISMATCH, SLOW, Outlier, find_outliers
from gpuhealth.model.burnin_run import BurninRun, TestStatus
from gpuhealth.quarantine.report_burnins import burnin_of

NO_LIMITS = {
    "floor_percent": 0,
    "min_percent_of_best_peer": 0,
}  # a processor is no H100, and two of them share its cores


def burnin(environment: dict[str, str], *options: str) -> Document:
    """Run a burn-in that passes, and return its part of the report."""
    done = processes.run(["burnin", "--json", *options], environment)
    assert done.returncode == 0, done.stderr
    run = msgspec.json.decode(done.stdout, type=BurninRun)
    assert run.status is TestStatus.PASSED
    gpus = [result.gpu for result in run.results]
    run = msgspec.structs.replace(run, models=run.models or dict.fromkeys(gpus, "a processor"))
    status: Document = body(burnin_of([run], gpus))
    return status


def compared(burnins: dict[str, Document]) -> list[Outlier]:
    """The outliers of a fleet whose nodes have these results."""
    objects = [{"metadata": {"name": node}, "status": {"burnin": burnin}} for node, burnin in burnins.items()]
    return find_outliers(result for item in objects for result in views.report_view(item).results)


def _moved(burnin: Document, one: SimulatedNode, other: SimulatedNode) -> Document:
    """The results as if they were measured on the other node: the processors are the same."""
    text = json.dumps(burnin)
    for number in range(2):
        text = text.replace(one.driver.text(f"gpu{number}.uuid"), other.driver.text(f"gpu{number}.uuid"))
    moved: Document = json.loads(text)
    return moved


def named(found: list[Outlier]) -> set[tuple[str, str, str]]:
    """Node, GPU and code of each."""
    return {(each.node, each.gpu, each.code) for each in found}


def test_a_device_with_the_same_wrong_result_each_time() -> None:
    """Alone it passes, since it repeats itself bit for bit; compared with three correct ones it is found."""
    faults = {"sick": '[{"kind": "result_bits"}]'}
    options = ("--devices", "cpu:0", "--tests", "repeat", "--duration", "200ms")
    burnins = {
        node: burnin({**os.environ, "GPUHEALTH_BURNIN__FAULTS": faults.get(node, "[]")}, *options)
        for node in ("one", "two", "three", "sick")
    }
    assert {(each.node, each.code) for each in compared(burnins)} == {("sick", MISMATCH)}


def test_a_node_whose_devices_are_all_slow(cluster: Cluster, tmp_path: Path) -> None:
    """Compared with each other they pass; compared with ten of the same model on other nodes they are found, and
    published to their agent. If the machine was too busy for that, all are measured once more."""
    sound, slow = [cluster.node() for _ in range(5)], cluster.node()
    sims = {node: SimulatedNode(tmp_path / node, node, gpus=2) for node in (*sound, slow)}
    for sim in sims.values():
        sim.configure({"burnin": {"limits": NO_LIMITS}})
    sims[slow].configure({"burnin": {"faults": [{"kind": "slow", "factor": 30}]}})
    wanted = {(slow, sims[slow].driver.text(f"gpu{number}.uuid"), SLOW) for number in range(2)}
    options = ("--devices", "cpu:0,1", "--tests", "bandwidth", "--duration", "600ms")
    found: list[Outlier] = []
    burnins: dict[str, Document] = {}
    for _ in range(8):
        measured = burnin(sims[sound[0]].env, *options)
        burnins = {node: _moved(measured, sims[sound[0]], sims[node]) for node in sound}
        burnins[slow] = burnin(sims[slow].env, *options)
        found = compared(burnins)
        if named(found) == wanted:
            break
    assert named(found) == wanted
    assert all("of 12 NVIDIA H100" in each.message for each in found), found

    def findings() -> set[tuple[Any, ...]]:
        return {(each["code"], each["gpu"], each["message"]) for each in said(cluster, slow)}

    async def run() -> None:
        for node, each in burnins.items():
            cluster.say(node, {"burnin": each})
        async with cluster.controller():
            await until(lambda: findings() == {(SLOW, each.gpu, each.message) for each in found}, seconds=120)

    asyncio.run(run())
    assert [said(cluster, node) for node in sound] == [[]] * len(sound)
