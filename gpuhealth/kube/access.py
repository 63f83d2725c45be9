"""Who may read the pages: everybody, or those whom the API server or a certificate vouches for.

With `http.authorization: kubernetes` a bearer token is shown to the API server (TokenReview), and whom it belongs to
must be allowed to get the path (SubjectAccessReview of a non-resource URL), as kube-rbac-proxy does it. With
`http.tls.client_ca` a certificate of that authority is as good. Without an answer of the API server nobody is let in.
The kubelet's probes have neither token nor certificate, so /healthz and /readyz are open: they say one word.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from http import HTTPStatus

import structlog
from aiohttp import web

from gpuhealth.kube.client import Client, Object
from gpuhealth.kube.errors import ClusterError
from gpuhealth.runtime.settings import Http, Kubernetes

log = structlog.get_logger()

OPEN = ("/healthz", "/readyz")
REMEMBER_SECONDS = 60.0  # an answer of the API server, yes or no; a scraper comes more often
REMEMBER = 256  # answers
AT_ONCE = 4  # questions: a peer with wrong tokens must not become the API server's load
ATTEMPTS = 2
TIMEOUT_SECONDS = 3.0  # of one attempt; Prometheus gives up after 10 s

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Access:
    """Decides by request."""

    def __init__(self, http: Http, where: Kubernetes) -> None:
        self._certificates = http.tls is not None and http.tls.client_ca is not None
        self._tokens = http.authorization == "kubernetes"
        self._client = (
            Client.from_kubeconfig(where.kubeconfig, where.context, timeout=TIMEOUT_SECONDS, attempts=ATTEMPTS)
            if self._tokens
            else None
        )
        self._asking = asyncio.Semaphore(AT_ONCE)
        self._known: OrderedDict[tuple[bytes, str], tuple[HTTPStatus, float]] = OrderedDict()

    async def close(self) -> None:
        """Close the connection to the API server."""
        if self._client is not None:
            await self._client.close()

    @web.middleware
    async def check(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Lets a request through to its page, or answers 401, 403, or 503 where the API server does not say."""
        status = await self._status(request)
        if status is HTTPStatus.OK:
            return await handler(request)
        headers = {"WWW-Authenticate": "Bearer"} if status is HTTPStatus.UNAUTHORIZED else None
        return web.Response(status=status, text=f"{status.phrase.lower()}\n", headers=headers)

    async def _status(self, request: web.Request) -> HTTPStatus:
        if request.path in OPEN or not (self._certificates or self._tokens):
            return HTTPStatus.OK
        if self._certificates and request.transport is not None and request.transport.get_extra_info("peercert"):
            return HTTPStatus.OK  # the handshake has verified it
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if self._client is None or scheme.lower() != "bearer" or not token.strip():
            return HTTPStatus.UNAUTHORIZED
        return await self._answer(self._client, token.strip(), request.path)

    async def _answer(self, client: Client, token: str, path: str) -> HTTPStatus:
        key = hashlib.sha256(token.encode(errors="surrogateescape")).digest(), path  # tokens are not kept in memory
        status, until = self._known.get(key, (HTTPStatus.UNAUTHORIZED, 0.0))
        if time.monotonic() < until:
            return status
        try:
            async with self._asking:
                status = await _review(client, token, path)
        except ClusterError as error:
            log.warning("token review failed; denying request", error=str(error))
            return HTTPStatus.SERVICE_UNAVAILABLE
        self._known[key] = status, time.monotonic() + REMEMBER_SECONDS
        self._known.move_to_end(key)
        while len(self._known) > REMEMBER:
            self._known.popitem(last=False)
        return status


async def _review(client: Client, token: str, path: str) -> HTTPStatus:
    version = "authentication.k8s.io/v1"
    body = {"apiVersion": version, "kind": "TokenReview", "spec": {"token": token}}
    answer: Object = await client.request("POST", f"/apis/{version}/tokenreviews", body=body)
    if not answer.get("status", {}).get("authenticated"):
        return HTTPStatus.UNAUTHORIZED
    user = answer["status"]["user"]
    who = {"user": user["username"], "uid": user.get("uid", ""), "groups": user.get("groups", [])}
    spec = {**who, "extra": user.get("extra", {}), "nonResourceAttributes": {"path": path, "verb": "get"}}
    version = "authorization.k8s.io/v1"
    body = {"apiVersion": version, "kind": "SubjectAccessReview", "spec": spec}
    answer = await client.request("POST", f"/apis/{version}/subjectaccessreviews", body=body)
    return HTTPStatus.OK if answer["status"].get("allowed") else HTTPStatus.FORBIDDEN
