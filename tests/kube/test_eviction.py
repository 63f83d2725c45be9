"""Evictions in the version that the server takes, and what their answers mean."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from testing.managed_cluster import Cluster

from gpuhealth.kube import errors
from gpuhealth.kube.client import Client
from gpuhealth.kube.eviction import EvictionOutcome, EvictionResult, Evictor


class Server(Client):
    """A server of a newer version."""

    def __init__(self, version: str, error: errors.ApiError | None = None) -> None:
        super().__init__()
        self.sent: list[Any] = []
        self._resource = {"name": "pods/eviction", "group": "policy", "version": version}
        self._error = error

    async def request(self, method: str, path: str, **options: Any) -> Any:
        """Answers discovery, and takes what is posted."""
        if method == "GET":
            return {"resources": [{"name": "pods"}, self._resource]}
        self.sent.append((path, options["body"]))
        if self._error:
            raise self._error
        return {}


@pytest.mark.parametrize("version", ["v1beta1", "v1"])
def test_version(version: str) -> None:
    """The Eviction has the version of the API discovery, and is for this pod only."""
    server = Server(version)
    assert asyncio.run(Evictor(server).evict("ns", "p", "u")) == EvictionResult(EvictionOutcome.EVICTED)
    ((path, body),) = server.sent
    assert path == "/api/v1/namespaces/ns/pods/p/eviction"
    assert (body["apiVersion"], body["kind"]) == (f"policy/{version}", "Eviction")
    assert body["deleteOptions"] == {"preconditions": {"uid": "u"}}


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (errors.TooManyRequestsError("budget", status=429, retry_after=7), EvictionOutcome.REFUSED),
        (errors.NotFoundError("no pod", status=404), EvictionOutcome.GONE),
        (errors.ConflictError("another uid", status=409), EvictionOutcome.GONE),
        (errors.ForbiddenError("no right", status=403), EvictionOutcome.FAILED),
        (errors.UnavailableError("two budgets", status=500), EvictionOutcome.FAILED),
    ],
)
def test_answers(error: errors.ApiError, outcome: EvictionOutcome) -> None:
    """A refusal, a pod that is gone and a failure are different outcomes."""
    result = asyncio.run(Evictor(Server("v1", error)).evict("ns", "p", "u"))
    assert (result.outcome, result.retry_after) == (outcome, error.retry_after or 0.0)


def test_another_pod_of_the_name_is_left_alone(cluster: Cluster) -> None:
    """A new pod of the same name is neither evicted nor deleted."""
    pod = cluster.pod(cluster.node())
    name = pod.rpartition("/")[2]

    async def run() -> None:
        async with Client.from_kubeconfig(cluster.plane.kubeconfig) as client:
            evictor = Evictor(client)
            assert (await evictor.evict(cluster.namespace, name, "old")).outcome is EvictionOutcome.GONE
            assert (await evictor.delete(cluster.namespace, name, "old")).outcome is EvictionOutcome.GONE

    asyncio.run(run())
    assert not cluster.terminating(pod)
