"""Steps that tests of the controller share: what agents, kubelets and people do, and what is there afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
from kube import Document
from kube.control_plane import RequestError
from prometheus_client.parser import text_string_to_metric_families

from gpuhealth.kube.client import Client
from gpuhealth.model.time import format_time
from gpuhealth.quarantine.slots.holder import SlotHolder
from gpuhealth.quarantine.target import Desired
from testing.cluster_objects import finding, verdict
from testing.managed_cluster import Cluster, until

HEALTHY = ("True", "Healthy")
SILENT = ("Unknown", "AgentSilent")
SICK = Desired(verdict=verdict(finding()), quarantine=("xid.79",))
PODS = "/api/v1/namespaces/gpuhealth/pods"
QB = "/apis/gpuhealth.io/v1alpha1/quarantinebudgets"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/gpuhealth/leases"


def healthy_node(cluster: Cluster) -> tuple[str, str]:
    """Makes a node with a condition and a ready agent; names of the node and of the agent's pod."""
    node = cluster.node()
    pod = cluster.agent(node)
    cluster.set_condition(node, "GPUHealthy", *HEALTHY)
    return node, pod


def burnin(cluster: Cluster, node: str) -> Document | None:
    """The Pod of a node's burn-in, if there is one."""
    with contextlib.suppress(RequestError):
        found: Document = cluster.plane.request("GET", f"{PODS}/burnin-{node}")
        return found
    return None


def runs(cluster: Cluster, node: str) -> bool:
    """Whether the burn-in is scheduled on its node; sets its phase to Running then, as the kubelet does."""
    pod = burnin(cluster, node)
    if pod is None or pod["spec"].get("nodeName") != node:
        return False
    cluster.patch(f"{PODS}/burnin-{node}/status", {"status": {"phase": "Running"}})
    return True


def ends(cluster: Cluster, node: str, exit_code: int) -> None:
    """Ends the burn-in with an exit code, as the kubelet does."""
    state = {"terminated": {"exitCode": exit_code, "reason": "OOMKilled" if exit_code == 137 else "Error"}}
    ended = [{"name": "burnin", "image": "i", "imageID": "", "ready": False, "restartCount": 0, "state": state}]
    phase = "Failed" if exit_code else "Succeeded"
    cluster.patch(f"{PODS}/burnin-{node}/status", {"status": {"phase": phase, "containerStatuses": ended}})


def gone(cluster: Cluster, node: str) -> bool:
    """Whether the burn-in's Pod is deleted; stops one that terminates, as the kubelet does."""
    pod = burnin(cluster, node)
    if pod is not None and pod["metadata"].get("deletionTimestamp"):
        with contextlib.suppress(RequestError):
            cluster.stop(f"{PODS}/burnin-{node}")
    return pod is None


def say_tested(cluster: Cluster, node: str, when: str = "2099-01-01T00:00:00Z") -> None:
    """Writes into the report that the node was tested, as the agent does."""
    cluster.say(node, {"burnin": {"testedAt": when, "gpus": {}}})


def in_seconds(seconds: float) -> str:
    """A time so many seconds from now, in the format of a report."""
    return format_time(datetime.now(UTC) + timedelta(seconds=seconds))


async def stop_all(cluster: Cluster, *paths: str) -> None:
    """Stops Pods once they terminate, as the kubelet does."""
    for path in paths:
        await until(lambda path=path: cluster.terminating(path))  # type: ignore[misc]
        await asyncio.to_thread(cluster.stop, path)


def holders(cluster: Cluster) -> list[str]:
    """The nodes that hold slots of the test's budget, sorted."""
    items = cluster.plane.request("GET", f"{LEASES}?labelSelector=gpuhealth.io/budget={cluster.name}")["items"]
    return sorted(item["spec"]["holderIdentity"] for item in items)


def drop(cluster: Cluster) -> None:
    """Deletes the slots of the test's budget."""
    cluster.plane.request("DELETE", f"{LEASES}?labelSelector=gpuhealth.io/budget={cluster.name}")


def tainted(cluster: Cluster, node: str) -> bool:
    """Whether the node has our taint."""
    taints = cluster.plane.request("GET", f"/api/v1/nodes/{node}")["spec"].get("taints", [])
    return any(taint["key"] == "gpuhealth.io/unhealthy" for taint in taints)


def said(cluster: Cluster, node: str) -> list[dict[str, str]]:
    """The fleet findings in the Node's annotation."""
    found = cluster.plane.request("GET", f"/api/v1/nodes/{node}")
    text = (found["metadata"].get("annotations") or {}).get("gpuhealth.io/fleet-findings")
    return json.loads(text) if text else []


async def scrape(port: int, path: str = "/metrics") -> tuple[int, str]:
    """Status and text of a page of the controller's HTTP server."""
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}{path}") as answer:
        return answer.status, await answer.text()


def samples(text: str, pool: str) -> dict[tuple[str, ...], float]:
    """The samples of a pool and its budget, by name and label values."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.labels.get("pool", pool) == pool and sample.labels.get("budget", pool) == pool:
                found[sample.name, *(v for k, v in sorted(sample.labels.items()) if k not in {"pool", "budget"})] = (
                    sample.value
                )
    return found


def status(cluster: Cluster) -> dict[str, Any]:
    """The status of the test's budget; empty while there is none."""
    path = f"/apis/gpuhealth.io/v1alpha1/quarantinebudgets/{cluster.name}"
    found: dict[str, Any] = cluster.plane.request("GET", path).get("status", {})
    return found


async def outcome(cluster: Cluster, node: str) -> Any:
    """The answer to a node that asks for a slot of the test's budget."""
    async with Client.from_kubeconfig(cluster.plane.kubeconfig) as client:
        return await SlotHolder(client, "gpuhealth", node).acquire({"gpuhealth.io/pool": cluster.name}, "xid.79")
