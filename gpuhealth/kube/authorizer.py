"""Decides, through the API server, who may read the pages of agent and controller, as kube-rbac-proxy does.

The API server identifies the user of a bearer token (TokenReview), and decides whether that user may get the path
(SubjectAccessReview of a non-resource URL). Without its answer every request is denied.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from http import HTTPStatus

import structlog

from gpuhealth.kube.client import Client, Object
from gpuhealth.kube.errors import ClusterError
from gpuhealth.runtime.settings import Http, Kubernetes

log = structlog.get_logger()

CACHE_SECONDS = 60.0  # for an answer of the API server, yes or no; a scraper comes more often
CACHE_SIZE = 256  # answers
MAX_REVIEWS = 4  # at once: a peer with wrong tokens must not become the API server's load
ATTEMPTS = 2
TIMEOUT_SECONDS = 3.0  # of one attempt; Prometheus gives up after 10 s


def authorizer_for(http: Http, where: Kubernetes) -> KubernetesAuthorizer | None:
    """The authorizer required by the settings of a server, if any."""
    return KubernetesAuthorizer(where) if http.authorization == "kubernetes" else None


class KubernetesAuthorizer:
    """Reviews bearer tokens, and remembers the answers for a while."""

    def __init__(self, where: Kubernetes) -> None:
        self._client = Client.from_kubeconfig(
            where.kubeconfig, where.context, timeout=TIMEOUT_SECONDS, attempts=ATTEMPTS
        )
        self._reviews = asyncio.Semaphore(MAX_REVIEWS)
        self._cache: OrderedDict[tuple[bytes, str], tuple[HTTPStatus, float]] = OrderedDict()

    async def close(self) -> None:
        """Close the connection to the API server."""
        await self._client.close()

    async def check(self, token: str, path: str) -> HTTPStatus:
        """OK if the token's user may get the path; 401 or 403 if not, 503 where the API server does not answer."""
        key = hashlib.sha256(token.encode(errors="surrogateescape")).digest(), path  # tokens are not kept in memory
        status, until = self._cache.get(key, (HTTPStatus.UNAUTHORIZED, 0.0))
        if time.monotonic() < until:
            return status
        try:
            async with self._reviews:
                status = await _review(self._client, token, path)
        except ClusterError as error:
            log.warning("token review failed; denying request", error=str(error))
            return HTTPStatus.SERVICE_UNAVAILABLE
        self._cache[key] = status, time.monotonic() + CACHE_SECONDS
        self._cache.move_to_end(key)
        while len(self._cache) > CACHE_SIZE:
            self._cache.popitem(last=False)
        return status


async def _review(client: Client, token: str, path: str) -> HTTPStatus:
    version = "authentication.k8s.io/v1"
    body = {"apiVersion": version, "kind": "TokenReview", "spec": {"token": token}}
    answer: Object = await client.request("POST", f"/apis/{version}/tokenreviews", body=body)
    if not answer.get("status", {}).get("authenticated"):
        return HTTPStatus.UNAUTHORIZED
    user = answer["status"]["user"]
    identity = {"user": user["username"], "uid": user.get("uid", ""), "groups": user.get("groups", [])}
    spec = {**identity, "extra": user.get("extra", {}), "nonResourceAttributes": {"path": path, "verb": "get"}}
    version = "authorization.k8s.io/v1"
    body = {"apiVersion": version, "kind": "SubjectAccessReview", "spec": spec}
    answer = await client.request("POST", f"/apis/{version}/subjectaccessreviews", body=body)
    return HTTPStatus.OK if answer["status"].get("allowed") else HTTPStatus.FORBIDDEN
