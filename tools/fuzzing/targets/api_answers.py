"""Odd HTTP answers to the client of the API server: anything between may answer, a proxy or a captive page."""

from __future__ import annotations

import asyncio
import contextlib
import random
import tempfile
from contextlib import aclosing
from datetime import UTC
from pathlib import Path
from typing import Any

import msgspec
import yaml
from testing.odd_objects import SAMPLES

from fuzzing import mutate
from fuzzing.target import require
from gpuhealth.kube.client import Client
from gpuhealth.kube.errors import ApiError
from gpuhealth.kube.kinds import NODES, REPORTS
from gpuhealth.kube.watching import WatchChanged, WatchListed, watch
from gpuhealth.quarantine import marks

_NODE = msgspec.json.encode(SAMPLES[NODES])
_LIST = msgspec.json.encode({"kind": "NodeList", "metadata": {"resourceVersion": "3"}, "items": [SAMPLES[NODES]]})
_EVENTS = b"".join(
    msgspec.json.encode({"type": kind, "object": SAMPLES[NODES]}) + b"\n"
    for kind in ("ADDED", "MODIFIED", "BOOKMARK", "DELETED")
)
_STATUS = msgspec.json.encode(
    {
        "kind": "Status",
        "status": "Failure",
        "reason": "Conflict",
        "code": 409,
        "message": "x",
        "details": {"retryAfterSeconds": 1},
    }
)
_BODIES = (_NODE, _NODE, _LIST, _EVENTS, _STATUS, b"<html>log in</html>", b"[]", b"null", b'""', b"", b"[" * 3000)
_HEADERS = (
    b"Content-Type: application/json", b"Date: Sun, 01 Mar 2026 12:00:00 GMT",
    b"Date: Mon, 01 Jan 0001 00:00:00 GMT", b"Date: \xff", b"Retry-After: 0",
    b"Retry-After: soon", b"Retry-After: -5", b"Retry-After: 1e300", b"Content-Encoding: gzip",
    b"Transfer-Encoding: chunked", b"Location: /x",
    b"Set-Cookie: a=b", b"Connection: close", b"Content-Length: 5", b"Content-Length: x",
)  # fmt: skip
_STATUSES = (
    b"200 OK", b"200 OK", b"200 OK", b"201 Created", b"204 No Content", b"301 Moved", b"302 Found", b"304 Not Modified",
    b"400 Bad", b"404 Not Found", b"409 Conflict", b"410 Gone", b"422 x", b"500 x", b"503 x", b"101 Switching",
    b"999 x", b"100 Continue", b"x",
)  # fmt: skip
_VERBS = ("get", "list", "patch", "watch", "served", "delete", "create")


class Case(msgspec.Struct):
    """A request of the client, and the bytes of the answer to it."""

    verb: str
    answer: bytes


class Target:
    """A case is some requests and their answers; a server on the loopback sends them."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._folder = tempfile.TemporaryDirectory()
        self._answer = b""
        self._server: Any = None
        self._client: Any = None
        self._loop.run_until_complete(self._start())

    async def _start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        kubeconfig = Path(self._folder.name) / "kubeconfig"
        cluster = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}
        context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
        whole = {
            "clusters": [cluster],
            "contexts": [context],
            "current-context": "c",
            "users": [{"name": "u", "user": {}}],
        }
        kubeconfig.write_text(yaml.safe_dump(whole))
        self._client = Client.from_kubeconfig(kubeconfig)
        self._client.attempts = 1
        self._client.timeout = 3.0

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(self._answer)
            await writer.drain()
        writer.close()

    def make(self, chance: random.Random) -> bytes:
        """Answers with changed values, headers and bytes."""
        cases = []
        for _ in range(4):
            body = chance.choice(_BODIES)
            if body[:1] == b"{" and b"\n" not in body and chance.random() < 0.5:
                value = msgspec.json.decode(body)
                mutate.mutate_value(value, chance, 3)
                body = msgspec.json.encode(value)
            elif chance.random() < 0.5:
                body = mutate.mutate_bytes(body, chance)
            status = chance.choice(_STATUSES) if chance.random() < 0.4 else b"200 OK"
            headers = [chance.choice(_HEADERS) for _ in range(chance.choice((0, 1, 2)))]
            if chance.random() < 0.7:
                headers.append(b"Content-Length: %d" % len(body))
            answer = b"HTTP/1.1 " + status + b"\r\n" + b"".join(header + b"\r\n" for header in headers) + b"\r\n" + body
            if chance.random() < 0.1:
                answer = mutate.mutate_bytes(answer, chance)
            cases.append(Case(chance.choice(_VERBS), answer))
        return msgspec.json.encode(cases)

    def check(self, case: bytes) -> int:
        """Each request ends with what was asked for, or with an ApiError."""
        cases = msgspec.json.decode(case, type=list[Case])
        for each in cases:
            self._answer = each.answer
            self._loop.run_until_complete(self._request(each.verb))
        return len(cases)

    async def _request(self, verb: str) -> None:
        client = self._client
        with contextlib.suppress(ApiError):
            async with asyncio.timeout(8.0):
                match verb:
                    case "get":
                        self._check_node(await client.get(NODES, "a"))
                    case "patch":
                        self._check_node(await client.patch(NODES, "a", {"metadata": {}}))
                    case "create":
                        found = await client.create(REPORTS, {"metadata": {"name": "a"}})
                        require(found["metadata"]["name"] == "a", "another object")
                    case "list":
                        listed = await client.list(NODES)
                        for item in listed.items:
                            require(isinstance(item["metadata"]["name"], str), "an object without a name")
                    case "delete":
                        await client.delete(NODES, "a")
                    case "served":
                        await client.served_versions("policy")
                    case "watch":
                        await self._watch()
        now = client.server_time()
        require(now.tzinfo is UTC or now.utcoffset() is not None, "the server's time has no zone")

    async def _watch(self) -> None:
        """The first events of a watch; an answer that ends it is an event, and it waits before it tries again."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.02), aclosing(watch(self._client, NODES)) as events:
                seen = 0
                async for event in events:
                    seen += 1
                    require(isinstance(event, WatchListed | WatchChanged) or event is not None, "an event of no kind")
                    if seen > 8:
                        break

    def _check_node(self, node: dict[str, Any]) -> None:
        require(node["metadata"]["name"] == "a", "another Node is taken for ours")
        with contextlib.suppress(ApiError):
            marks.check_readable(node)
            marks.record(node)
            marks.condition(node)

    def close(self) -> None:
        """Stops client and server."""

        async def stop() -> None:
            await self._client.close()
            self._server.close()
            await self._server.wait_closed()

        self._loop.run_until_complete(stop())
        self._loop.close()
        self._folder.cleanup()
