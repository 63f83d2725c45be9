"""A controller that no longer leads stops acting, whatever happens at that moment, and can lead again."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import yaml
from kube.proxy import FaultyProxy
from testing.controller_steps import scrape
from testing.managed_cluster import QUICK, Cluster, until
from testing.waiting import wait_for

from gpuhealth.controller.controller import Controller
from gpuhealth.controller.duties.burnin_scheduler import BurninScheduler
from gpuhealth.controller.http_app import serve
from gpuhealth.kube.client import Client

NODES = 100
LOSSES = 3
RENEW_WITHIN = 3.0
LEASES = "/apis/coordination.k8s.io/v1/namespaces/gpuhealth/leases"


def drains() -> set[asyncio.Task[object]]:
    """The tasks of this event loop that drain nodes."""
    return {task for task in asyncio.all_tasks() if "DrainController._drain" in repr(task.get_coro())}


def acts(proxy: FaultyProxy) -> int:
    """Count the leader's requests that went through the proxy: writes other than of the Lease, and watches of pods."""
    return sum(
        (method != "GET" and "/leases" not in path) or "spec.nodeName" in path for method, path in list(proxy.seen)
    )


@asynccontextmanager
async def working(controller: Controller) -> AsyncIterator[None]:
    """Run the controller for the length of the block."""
    task = asyncio.create_task(controller.work())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def test_a_storm_of_drains_and_losses(cluster: Cluster) -> None:
    """Leadership is lost repeatedly at the moment when the requests of many drains time out: no drain continues,
    nothing is sent before the controller leads again, and it does."""
    nodes = [cluster.node() for _ in range(NODES)]
    for node in nodes:
        cluster.quarantine(node)
    election = {"enabled": True, "lease": cluster.name, "renew_within": RENEW_WITHIN, "duration": 5, "retry": 0.2}

    async def lose(controller: Controller, proxy: FaultyProxy) -> None:
        await until(lambda: controller.leading and controller.fleet.ready)
        await until(drains_of(asyncio.get_running_loop()))
        proxy.fail("hang", times=-1)
        lost_at = controller.election._leads_until

        def stall() -> None:
            """Block the event loop as a busy machine does: all that becomes due is handled in one turn of the loop."""
            while time.monotonic() < lost_at + 0.3:
                time.sleep(0.01)

        asyncio.get_running_loop().call_later(max(0.0, lost_at - 0.2 - time.monotonic()), stall)
        await until(lambda: not controller.leading)
        seen = acts(proxy)
        async with asyncio.timeout(60):
            while left := drains():
                await asyncio.wait(left, timeout=0.1)
        assert acts(proxy) == seen
        proxy.heal()

    async def run() -> None:
        async with FaultyProxy(cluster.plane, cluster.token()) as proxy:
            # All time out when the leadership is lost, at the latest.
            connect = partial(Client.from_kubeconfig, proxy.kubeconfig)
            controller = Controller(
                cluster.settings(election=election),
                connect=lambda **options: connect(**{**options, "timeout": RENEW_WITHIN}),
                timing=QUICK,
            )
            async with working(controller):
                for _ in range(LOSSES):
                    await lose(controller, proxy)
                await until(lambda: all(cluster.drain(node).get("phase") == "drained" for node in nodes), 300)
                assert controller.healthy
            assert not drains()

    asyncio.run(run())
    cluster.plane.request("DELETE", f"{LEASES}/{cluster.name}")


def drains_of(loop: asyncio.AbstractEventLoop) -> Callable[[], bool]:
    """Make a condition for another thread: whether the loop has tasks that drain."""
    return lambda: any("DrainController._drain" in repr(task.get_coro()) for task in asyncio.all_tasks(loop))


def test_a_duty_that_does_not_end(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a duty ignores its cancellation, /healthz fails and the controller does not lead; once it has ended, the
    controller is healthy and leads again."""
    ends = asyncio.Event()
    ignored = 0

    async def deaf(scheduler: BurninScheduler) -> None:
        nonlocal ignored
        while not ends.is_set():
            try:
                await ends.wait()
            except asyncio.CancelledError:
                ignored += 1
        await asyncio.Event().wait()

    monkeypatch.setattr(BurninScheduler, "run", deaf)
    path = f"{LEASES}/{cluster.name}"
    election = {"enabled": True, "lease": cluster.name, "renew_within": 2, "duration": 3, "retry": 0.1}

    async def run() -> None:
        controller = Controller(cluster.settings(election=election), services=(serve,), timing=QUICK)
        async with working(controller):
            await until(lambda: controller.leading and controller.http_port)
            assert (await scrape(controller.http_port, "/healthz"))[0] == 200
            cluster.patch(path, {"spec": {"holderIdentity": "somebody"}})
            await until(lambda: not controller.leading)
            await until(lambda: not controller.healthy)
            assert (await scrape(controller.http_port, "/healthz")) == (
                503,
                "tasks of an ended leadership have not stopped\n",
            )
            cluster.patch(path, {"spec": {"holderIdentity": ""}})
            before = ignored
            await until(lambda: ignored > before + 2 or controller.leading)  # cancelled again every second
            assert not controller.leading
            ends.set()
            await until(lambda: controller.leading and controller.healthy)
            assert (await scrape(controller.http_port, "/healthz"))[0] == 200

    asyncio.run(run())
    cluster.plane.request("DELETE", path)


STUCK = """
import asyncio, contextlib, sys
from gpuhealth.cli.main import run
from gpuhealth.controller.duties.burnin_scheduler import BurninScheduler

async def deaf(scheduler):
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

BurninScheduler.run = deaf
sys.exit(run(["controller", "--config", sys.argv[1]]))
"""


def test_sigterm_ends_a_process_that_is_stuck(cluster: Cluster, tmp_path: Path) -> None:
    """A process with a task that does not end releases the Lease, logs which tasks are left, and exits by itself within
    the grace period of its Pod."""
    settings = {
        "kubernetes": {"kubeconfig": str(cluster.kubeconfig()), "context": "controller"},
        "controller": {"election": {"lease": cluster.name}, "http": {"host": "127.0.0.1", "port": 0}},
    }
    config, log = tmp_path / "gpuhealth.yaml", tmp_path / "log"
    config.write_text(yaml.safe_dump(settings))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GPUHEALTH_")}
    with log.open("wb") as stream:
        process = subprocess.Popen([sys.executable, "-c", STUCK, config], stderr=stream, env=environment)
    try:
        wait_for("a leader", lambda: b'"became leader"' in log.read_bytes())
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 3
    finally:
        process.kill()
        process.wait()
    said = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    (last,) = [line for line in said if line["event"] == "controller did not stop"]
    assert "burnin_scheduler" in last["tasks"]
    path = f"{LEASES}/{cluster.name}"
    assert not cluster.plane.request("GET", path)["spec"].get("holderIdentity")
    cluster.plane.request("DELETE", path)


def test_a_process_that_was_frozen_does_not_lead(cluster: Cluster) -> None:
    """Leadership ends with its time, also before the election task runs again."""
    election = {"enabled": True, "lease": cluster.name, "renew_within": 1, "duration": 600, "retry": 0.1}

    async def run() -> None:
        async with cluster.controller(election=election) as controller:
            await until(lambda: controller.leading)
            while controller.leading:  # the event loop stands still, so no other task runs
                time.sleep(0.01)
            assert controller.election.leader == controller.identity, "the election has not noticed yet"

    asyncio.run(run())
    cluster.plane.request("DELETE", f"{LEASES}/{cluster.name}")
