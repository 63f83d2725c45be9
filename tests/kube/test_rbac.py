"""The agent's own ServiceAccount can do what it needs, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from kube import ControlPlane
from testing.cluster_objects import Pool, finding, verdict
from testing.rights import granted, used
from testing.waiting import until

from gpuhealth.kube import errors
from gpuhealth.kube.client import Client
from gpuhealth.monitors.settings import Settings
from gpuhealth.quarantine.own_node import OwnNode
from gpuhealth.quarantine.target import Desired
from gpuhealth.quarantine.writer import NodeWriter

POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "work", "namespace": "default"},
    "spec": {"containers": [{"name": "c", "image": "i"}]},
}
EVICTION = {"apiVersion": "policy/v1beta1", "kind": "Eviction", "metadata": {"name": "work", "namespace": "default"}}


@pytest.fixture
def kubeconfig(plane: ControlPlane) -> Path:
    """With the rights of the agent."""
    return plane.write_kubeconfig("agent", plane.service_account_token("gpuhealth", "gpuhealth-agent"))


@pytest.fixture
def pod(plane: ControlPlane) -> Iterator[str]:
    """A pod that belongs to somebody else."""
    path = plane.path_of(POD)
    plane.request("POST", "/api/v1/namespaces/default/pods", POD)
    yield path
    plane.request("DELETE", f"{path}?gracePeriodSeconds=0")


def test_all_that_the_agent_does(plane: ControlPlane, pool: Pool, kubeconfig: Path) -> None:
    """Watch, quarantine with every kind of slot, take over, repeat an Event, recover: none of it is refused."""
    node = pool.node()
    pool.budget("50%", maxPerWindow=1, maxPerFault=1, window="1s")
    sick = Desired(verdict=verdict(finding()), quarantine=("xid.79",))

    async def run() -> None:
        async with Client.from_kubeconfig(kubeconfig) as client:
            writer = NodeWriter(client, Settings(), OwnNode(client, node))
            follow = asyncio.create_task(writer.node.follow())
            await until(lambda: writer.node.labels)
            for _ in range(2):
                await writer.apply(sick)
                async with asyncio.timeout(180):
                    while not writer.node.taints:
                        await asyncio.sleep(writer.retry_in or 0.01)
                        await writer.apply(sick)
                await writer.apply(Desired(verdict=verdict()))
            assert writer._events.dropped == 0
            follow.cancel()
            await asyncio.wait([follow])
            refused = [call for call in client.calls if call[1] in {401, 403}]
            assert refused == []

    asyncio.run(run())
    assert pool.report(node)["status"]["verdict"] == "healthy"


def test_every_right_is_used(plane: ControlPlane, pool: Pool, kubeconfig: Path) -> None:
    """No rule grants a verb that the agent does not need: the audit log shows a request with each."""
    node = pool.node()
    pool.budget("50%", maxPerFault=1, window="1s")
    sick, again = (
        Desired(verdict=verdict(finding(message=text)), quarantine=("xid.79",)) for text in ("once", "again")
    )
    clock = [datetime.now(UTC)]

    async def run() -> None:
        async with Client.from_kubeconfig(kubeconfig) as client:
            writer = NodeWriter(client, Settings(), OwnNode(client, node), now=lambda: clock[0])
            await writer.apply(Desired(verdict=verdict()))  # not following yet: it gets its Node
            follow = asyncio.create_task(writer.node.follow())
            await until(lambda: writer.node.labels)
            run_out = client.server_time()
            for desired in (sick, again, sick, again):  # out and back within the time in which Events are counted up
                clock[0] += timedelta(seconds=2)
                while client.server_time() < run_out:  # until the slot of the fault expires
                    await asyncio.sleep(0.05)
                await writer.apply(desired)
                run_out = client.server_time() + timedelta(seconds=2)
                assert writer.node.taints
                await writer.apply(Desired(verdict=verdict()))
            follow.cancel()
            await asyncio.wait([follow])
        plane.request("DELETE", f"/api/v1/nodes/{node}")
        plane.create_node(node, pool.labels)
        async with Client.from_kubeconfig(kubeconfig) as client:  # a recreated Node adopts its report
            await NodeWriter(client, Settings(), OwnNode(client, node)).apply(sick)

    asyncio.run(run())
    assert granted("gpuhealth-agent") - used(plane, "gpuhealth-agent") == set()


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/api/v1/namespaces/default/pods/work/eviction", EVICTION),
        ("DELETE", "/api/v1/namespaces/default/pods/work", None),
        ("GET", "/api/v1/namespaces/default/pods", None),
        ("PATCH", "/api/v1/namespaces/default/pods/work", {"metadata": {"labels": {"a": "b"}}}),
        ("PATCH", "/api/v1/namespaces/gpuhealth/configmaps/gpuhealth", {"data": {}}),
        ("GET", "/api/v1/namespaces/default/secrets", None),
        ("DELETE", "/api/v1/nodes/{node}", None),
        ("PUT", "/api/v1/nodes/{node}", {}),
        ("POST", "/api/v1/nodes", {}),
        (
            "PATCH",
            "/apis/apps/v1/namespaces/gpuhealth/daemonsets/gpuhealth-agent",
            {"metadata": {"labels": {"a": "b"}}},
        ),
        ("PATCH", "/apis/gpuhealth.io/v1alpha1/quarantinebudgets/any", {"spec": {"maxUnavailable": "100%"}}),
        ("PATCH", "/apis/gpuhealth.io/v1alpha1/quarantinebudgets/any/status", {"status": {"size": 1000}}),
        ("DELETE", "/apis/gpuhealth.io/v1alpha1/gpuhealthreports/{node}", None),
        ("POST", "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases", {"metadata": {"name": "x"}}),
        ("DELETE", "/api/v1/namespaces/default/events/any", None),
        ("PATCH", "/apis/rbac.authorization.k8s.io/v1/clusterroles/gpuhealth-agent", {"rules": []}),
        ("POST", "/api/v1/namespaces/gpuhealth/serviceaccounts/gpuhealth-agent/token", {}),
    ],
)
def test_what_the_agent_must_not_do(
    plane: ControlPlane, pool: Pool, pod: str, kubeconfig: Path, method: str, path: str, body: Any
) -> None:
    """It cannot evict, delete, read secrets, change budgets or its own rights: 403 on every one."""
    node = pool.node()

    async def run() -> None:
        async with Client.from_kubeconfig(kubeconfig) as client:
            content = "application/merge-patch+json" if method == "PATCH" else "application/json"
            with pytest.raises(errors.ForbiddenError):
                await client.request(method, path.format(node=node), body=body, content_type=content)

    asyncio.run(run())
