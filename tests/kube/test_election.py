"""Leader election: never two at once, and always one again."""

from __future__ import annotations

import asyncio
from pathlib import Path

from kube.proxy import FaultyProxy
from testing.managed_cluster import Cluster
from testing.waiting import until

from gpuhealth.controller.controller import Controller
from gpuhealth.controller.duties.budget_status import BudgetStatusWriter
from gpuhealth.controller.http_app import ControllerCollector
from gpuhealth.kube.client import Client
from gpuhealth.kube.election import Election
from gpuhealth.runtime.settings import Election as Settings

SLOW = {"duration": 600, "renew_within": 300, "retry": 0.05}
QUICK = {"duration": 2, "renew_within": 1, "retry": 0.05}


def names_of(controller: Controller) -> set[str]:
    """The names of the metrics that it shows."""
    return {family.name for family in ControllerCollector(controller).collect()}


class Candidates:
    """Processes that want one Lease, and which of them act."""

    def __init__(self, cluster: Cluster, settings: dict[str, float]) -> None:
        self.acting: list[str] = []
        self.most = 0
        self._settings = Settings.model_validate({**settings, "lease": cluster.name})
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.elections: dict[str, Election] = {}

    def enter(self, name: str, kubeconfig: Path) -> None:
        """Start one more candidate."""
        self._tasks[name] = asyncio.create_task(self._run(name, kubeconfig))

    async def leave(self, *names: str) -> None:
        """Stops candidates and waits for them."""
        for name in names:
            self._tasks[name].cancel()
        await asyncio.gather(*(self._tasks[name] for name in names), return_exceptions=True)

    async def _run(self, name: str, kubeconfig: Path) -> None:
        async def lead() -> None:
            self.acting.append(name)
            self.most = max(self.most, len(self.acting))
            try:
                await asyncio.Event().wait()
            finally:
                self.acting.remove(name)

        async with Client.from_kubeconfig(kubeconfig) as client:
            self.elections[name] = Election(client, "gpuhealth", self._settings, name)
            await self.elections[name].run(lead)


def test_one_of_three_leads_and_hands_over(cluster: Cluster) -> None:
    """One leads at a time; one that is stopped releases the Lease, so that the next need not wait until it expires."""

    async def run() -> None:
        candidates = Candidates(cluster, SLOW)
        for name in ("a", "b", "c"):
            candidates.enter(name, cluster.plane.kubeconfig)
        for _ in range(3):
            await until(lambda: candidates.acting)
            (leader,) = candidates.acting
            assert candidates.elections[leader].leading
            await candidates.leave(leader)
            assert not candidates.elections[leader].leading
        assert (candidates.acting, candidates.most) == ([], 1)

    asyncio.run(run())


def test_leader_that_cannot_renew_stops_before_the_next_begins(cluster: Cluster) -> None:
    """Cut off from the API server a leader stops acting by itself, and another takes the Lease over when it ran out."""

    async def run() -> None:
        candidates = Candidates(cluster, QUICK)
        async with FaultyProxy(cluster.plane) as proxy:
            candidates.enter("cut off", proxy.kubeconfig)
            await until(lambda: candidates.acting == ["cut off"])
            candidates.enter("standby", cluster.plane.kubeconfig)
            await until(lambda: "standby" in candidates.elections and candidates.elections["standby"].leader)
            proxy.fail("hang", times=-1)
            await until(lambda: candidates.acting == ["standby"])
            proxy.heal()
            await until(lambda: candidates.elections["cut off"].leader == "standby")
            await candidates.leave("cut off", "standby")
        assert candidates.most == 1

    asyncio.run(run())


def test_leader_survives_a_short_outage(cluster: Cluster) -> None:
    """Errors that end before the Lease must have been renewed change nothing."""

    async def run() -> None:
        candidates = Candidates(cluster, SLOW)
        async with FaultyProxy(cluster.plane) as proxy:
            candidates.enter("a", proxy.kubeconfig)
            await until(lambda: candidates.acting)
            for fault in (503, 429, "reset", "lost"):
                proxy.fail(fault, method="PUT", times=6)
                seen = len(proxy.seen)
                await until(lambda seen=seen: len(proxy.seen) > seen + 12)  # type: ignore[misc]
                assert candidates.acting == ["a"]
            await candidates.leave("a")

    asyncio.run(run())


def test_a_leader_whose_lease_was_taken_stops(cluster: Cluster) -> None:
    """Somebody else's name in the Lease ends the leadership at once."""
    path = f"/apis/coordination.k8s.io/v1/namespaces/gpuhealth/leases/{cluster.name}"

    async def run() -> None:
        candidates = Candidates(cluster, SLOW)
        candidates.enter("a", cluster.plane.kubeconfig)
        await until(lambda: candidates.acting)
        cluster.patch(path, {"spec": {"holderIdentity": "somebody"}})
        await until(lambda: not candidates.acting)
        await candidates.leave("a")
        assert cluster.plane.request("GET", path)["spec"]["holderIdentity"] == "somebody"

    asyncio.run(run())
    cluster.plane.request("DELETE", path)


def test_only_the_leader_writes(cluster: Cluster) -> None:
    """A standby sees the whole fleet and sends no write, while the leader drains; nor does it show the fleet."""
    node = cluster.node()
    cluster.budget(1)
    election = {"enabled": True, "lease": cluster.name, "duration": 600, "renew_within": 300, "retry": 0.1}

    async def run() -> None:
        async with cluster.controller(election=election) as leader:
            await until(lambda: leader.leading)
            async with cluster.controller(election=election) as standby:
                await until(lambda: standby.fleet.ready and standby.election.leader)
                cluster.quarantine(node)
                await until(lambda: standby.fleet.drains_by_phase["drained"])
                await until(lambda: leader.duty(BudgetStatusWriter).status)
                assert not standby.leading
                assert {method for method, _ in standby.api_calls} == {"GET", "WATCH"}
                assert not any(name.startswith("gpuhealth_fleet") for name in names_of(standby))
                assert any(name.startswith("gpuhealth_fleet") for name in names_of(leader))

    asyncio.run(run())
    cluster.plane.request("DELETE", f"/apis/coordination.k8s.io/v1/namespaces/gpuhealth/leases/{cluster.name}")
