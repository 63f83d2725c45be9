"""The counts of the fleet, and the status and slots of budgets."""

from __future__ import annotations

import asyncio

from testing.controller_steps import outcome, samples, scrape, status
from testing.managed_cluster import QUICK, Cluster, until

from gpuhealth.controller.controller import Controller
from gpuhealth.controller.duties.budget_status import BudgetStatusWriter
from gpuhealth.controller.http_app import serve
from gpuhealth.quarantine.slots.holder import Admitted, Blocked

GPU = {"uuid": "GPU-1", "model": "H100", "verdict": "healthy"}


def test_metrics(cluster: Cluster) -> None:
    """Metrics show nodes by state, GPUs by verdict, silent agents, budgets and drains, as of the scrape."""
    speaking, silent = cluster.node(), cluster.node(state="degraded")
    for node in (speaking, silent):
        cluster.say(node, {"inventory": {"gpuCount": 2, "gpus": [GPU, {**GPU, "uuid": "GPU-2"}]}})
    agent = cluster.agent(speaking)
    cluster.budget(2)

    async def run() -> None:
        controller = Controller(cluster.settings(), services=(serve,), timing=QUICK)
        working = asyncio.create_task(controller.work())
        await until(lambda: controller.http_port and controller.fleet.ready)
        await until(lambda: cluster.name in controller.duty(BudgetStatusWriter).status)
        assert await scrape(controller.http_port, "/healthz") == (200, "ok\n")
        assert await scrape(controller.http_port, "/readyz") == (200, "ok\n")
        shown = samples((await scrape(controller.http_port))[1], cluster.name)
        assert shown["gpuhealth_fleet_nodes", "healthy"] == 1
        assert shown["gpuhealth_fleet_nodes", "degraded"] == 1
        assert shown["gpuhealth_fleet_gpus", "H100", "healthy"] == 2
        assert shown["gpuhealth_fleet_gpus", "H100", "unknown"] == 2
        assert shown["gpuhealth_agents_silent",] == 1
        assert shown["gpuhealth_budget_limit",] == 2
        assert shown["gpuhealth_budget_used",] == 0
        assert shown["gpuhealth_drain_evictions_total", "evicted"] == 0

        assert isinstance(await outcome(cluster, silent), Admitted)
        cluster.quarantine(silent)
        held = {"state": "blocked", "budget": cluster.name, "limit": "maxPerFault", "code": "xid.79"}
        cluster.say(speaking, {"quarantine": held})
        cluster.unready(agent)
        await until(lambda: controller.fleet.drains_by_phase["drained"] == 1)
        await until(lambda: len(controller.fleet.silent_nodes) == 2)
        await until(lambda: controller.duty(BudgetStatusWriter).status[cluster.name].used == 1)
        # Labels and reports come by watches of their own.
        await until(lambda: controller.fleet.nodes_by_state["drained", cluster.name])
        await until(lambda: controller.fleet.blocked_nodes.get(cluster.name))
        shown = samples((await scrape(controller.http_port))[1], cluster.name)
        assert shown["gpuhealth_fleet_nodes", "drained"] == 1
        assert ("gpuhealth_fleet_nodes", "degraded") not in shown
        assert shown["gpuhealth_fleet_gpus", "H100", "unknown"] == 4
        assert shown["gpuhealth_quarantine_blocked_nodes", "xid.79", "maxPerFault"] == 1
        assert shown["gpuhealth_drain_nodes", "drained"] == 1
        cluster.plane.request("DELETE", f"/api/v1/nodes/{silent}")
        await until(lambda: silent not in controller.fleet.nodes.items)
        await until(lambda: set(controller.fleet.silent_nodes) == {speaking})
        await until(lambda: not controller.fleet.drains_by_phase)
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)

    asyncio.run(run())


def test_a_collector_that_fails_costs_its_own_metrics(cluster: Cluster) -> None:
    """A budget status that cannot be exposed costs the metrics of budgets and is counted; all others are served."""

    async def run() -> None:
        controller = Controller(cluster.settings(), services=(serve,), timing=QUICK)
        working = asyncio.create_task(controller.work())
        await until(lambda: controller.http_port and controller.fleet.ready and controller.leading)
        errors = 0.0
        async with asyncio.timeout(180):
            while not errors:  # a round of the duty forgets a budget that does not exist
                controller.duty(BudgetStatusWriter).status["odd"] = None  # type: ignore[assignment]
                status, text = await scrape(controller.http_port)
                assert status == 200
                assert "gpuhealth_agents_silent " in text
                counted = text.partition('gpuhealth_controller_metrics_errors_total{collector="budget_status"} ')[2]
                errors = float(counted.split()[0])
        assert not working.done()
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)

    asyncio.run(run())


def test_budget_status_and_slots_of_deleted_nodes(cluster: Cluster) -> None:
    """Size, limit, used slots and blocked nodes are current; the slot of a deleted node goes to the next one."""
    out, waiting, spare = (cluster.node() for _ in range(3))
    cluster.budget("34%", maxPerWindow=3)

    async def run() -> None:
        async with cluster.controller():
            await until(lambda: status(cluster).get("size") == 3)
            assert (status(cluster)["limit"], status(cluster)["used"], status(cluster)["blocked"]) == (1, 0, 0)
            assert isinstance(await outcome(cluster, out), Admitted)
            assert isinstance(await outcome(cluster, waiting), Blocked)
            cluster.say(waiting, {"quarantine": {"state": "blocked", "budget": cluster.name}})
            await until(lambda: status(cluster)["used"] == 1 and status(cluster)["blocked"] == 1)
            assert (status(cluster)["nodes"], status(cluster)["blockedNodes"]) == ([out], [waiting])
            cluster.plane.request("DELETE", f"/api/v1/nodes/{out}")
            await until(lambda: status(cluster)["used"] == 0 and status(cluster)["size"] == 2)
            assert isinstance(await outcome(cluster, waiting), Admitted)
            assert isinstance(await outcome(cluster, spare), Blocked)

    asyncio.run(run())
    leases = "/apis/coordination.k8s.io/v1/namespaces/gpuhealth/leases"
    left = cluster.plane.request("GET", f"{leases}?labelSelector=gpuhealth.io/budget={cluster.name}")["items"]
    assert sorted(lease["spec"]["holderIdentity"] for lease in left) == sorted([out, waiting, waiting])
    for lease in left:  # that of the window counts what happened, and runs out by itself
        cluster.plane.request("DELETE", f"{leases}/{lease['metadata']['name']}")
