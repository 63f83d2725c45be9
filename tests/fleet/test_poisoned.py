"""Objects that an API server accepts and we cannot read: each costs only itself, not the fleet."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs
from testing.controller_steps import samples, scrape
from testing.managed_cluster import QUICK, SINCE, Cluster, until

from gpuhealth.controller.controller import Controller
from gpuhealth.controller.http_app import serve

ODD: list[dict[str, Any]] = [
    {"burnin": {"testedAt": "0000-01-01T00:00:00Z"}},
    {"burnin": {"testedAt": "2026-01-01T00:00:00+99:99"}},
    {"quarantine": {"since": "0000-01-01T00:00:00Z"}},
    {"quarantine": {"since": "2026-01-01T00:00:00+99:99"}},
    {"drain": {"deadline": "9999-12-31T23:59:59-12:00"}},
    {"drain": {"startedAt": "0000-01-01T00:00:00Z"}},
]


@pytest.mark.parametrize("status", ODD, ids=str)
def test_a_report_that_cannot_be_read(cluster: Cluster, status: dict[str, Any]) -> None:
    """It is logged once with its name and the error, and counted; another node is drained meanwhile. Once it can be
    read again, it is used."""
    other, odd = cluster.node(), cluster.node()
    cluster.say(odd, status)

    async def run() -> None:
        controller = Controller(cluster.settings(), services=(serve,), timing=QUICK)
        working = asyncio.create_task(controller.work())
        try:
            with capture_logs() as logs:
                await until(lambda: controller.fleet.ready and controller.http_port)
                cluster.quarantine(other)
                await until(lambda: cluster.drain(other).get("phase") == "drained")
                said = [line for line in logs if line["event"] == "unreadable object"]
            assert [(line["kind"], line["name"]) for line in said] == [("GPUHealthReport", odd)]
            (value,) = next(iter(status.values())).values()
            assert value in said[0]["problem"] or "RFC3339" in said[0]["problem"] or "range" in said[0]["problem"]
            metrics = samples((await scrape(controller.http_port))[1], cluster.name)
            assert metrics["gpuhealth_controller_unreadable_objects_total", "GPUHealthReport"] == 1
            assert metrics["gpuhealth_controller_unreadable_objects_total", "Node"] == 0
            (part,) = status
            cluster.say(odd, {part: None})
            cluster.quarantine(odd)
            await until(lambda: cluster.drain(odd).get("phase") == "drained")
            assert not controller.failures
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)

    asyncio.run(run())


def test_a_report_that_cannot_be_read_any_longer(cluster: Cluster) -> None:
    """A running drain continues: taint and override are on the Node, which can be read."""
    node = cluster.node()
    pod = cluster.pod(node, labels={"app": "one"})
    guard = cluster.guard({"app": "one"}, 1)

    async def run() -> None:
        await until(lambda: cluster.is_guarding(guard, 1))
        async with cluster.controller() as controller:
            cluster.quarantine(node)
            await until(lambda: cluster.evictions(pod)[429])
            cluster.say(node, {"burnin": {"testedAt": "0000-01-01T00:00:00Z"}})
            await until(lambda: controller.fleet.unreadable["GPUHealthReport"])
            cluster.plane.request("DELETE", guard)
            await until(lambda: cluster.terminating(pod))

    asyncio.run(run())


def test_times_that_people_write(cluster: Cluster) -> None:
    """A time in lower-case letters is valid, as for the API server."""
    node = cluster.node()
    cluster.say(node, {"burnin": {"testedAt": "2026-01-01t00:00:00z"}, "quarantine": {"since": SINCE.lower()}})

    async def run() -> None:
        async with cluster.controller() as controller:
            await until(lambda: controller.fleet.ready)
            report = controller.fleet.reports.items[node]
            assert report.tested_at is not None
            assert report.quarantine.since is not None
            assert not controller.fleet.unreadable

    asyncio.run(run())


def test_many_gpus(cluster: Cluster) -> None:
    """A device plugin that shares GPUs may offer 1000, which the API server writes as 1k."""
    node = cluster.node(gpus=1000)

    async def run() -> None:
        async with cluster.controller() as controller:
            await until(lambda: controller.fleet.ready)
            assert controller.fleet.nodes.items[node].gpus == 1000

    asyncio.run(run())
