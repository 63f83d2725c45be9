"""Raw bytes to the HTTP server that agent and controller share."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
import threading

import msgspec

from fuzzing import mutate
from fuzzing.target import require
from gpuhealth.runtime import http_server
from gpuhealth.runtime.settings import Http

_MOST_BYTES = 1 << 20
_SECONDS = 8.0
_QUIET_SECONDS = 0.02  # without an answer, after which a connection is given up: the server waits for the rest
_HEALTHZ = b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
_REQUESTS = (
    b"GET /metrics HTTP/1.1\r\nHost: a\r\nAccept: */*\r\n\r\n",
    b"GET /healthz HTTP/1.0\r\n\r\n",
    b"HEAD /metrics HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
    b"GET /metrics HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"GET /metrics?x=%ff HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer x\r\nConnection: close\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: x\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
)
_WORDS = (
    b"\r\n", b"\n", b"\r", b": ", b"HTTP/1.1", b"HTTP/9.9", b"GET ", b"Content-Length: -1\r\n",
    b"Content-Length: 99999999999999999999\r\n",
    b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n", b"Range: bytes=0-\r\n",
    b"Cookie: " + b"a" * 9000,
    b"\x00", b"\xff", b"%2e%2e/", b"/" * 9000, b"X: y\r\n" * 100, b"ffffffffffffffff\r\n",
    b"Content-Encoding: gzip\r\n", b"Connection: close\r\n",
)  # fmt: skip


async def _page() -> http_server.Response:
    return http_server.Response(b"gpuhealth_node_state 1\n")


class Target:
    """A case is the bytes of a few connections; the server runs in a thread of its own."""

    def __init__(self) -> None:
        self._logger = logging.getLogger("aiohttp.server")
        self._logger.disabled = True  # it logs each malformed request
        self._before = http_server.GOODBYE_SECONDS, http_server.LINGER_SECONDS
        http_server.GOODBYE_SECONDS = http_server.LINGER_SECONDS = 0.1
        self._loop = asyncio.new_event_loop()
        self._errors: list[str] = []
        self._loop.set_exception_handler(lambda _, context: self._errors.append(str(context)))
        self._port = 0
        self._ready, self._stop = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        self._ready.wait(30)

    def _serve(self) -> None:
        async def serve() -> None:
            settings = Http.model_validate({"host": "127.0.0.1", "port": 0})
            pages = {"/metrics": _page, "/healthz": _page}
            async with http_server.serving(settings, pages) as self._port:
                self._ready.set()
                await self._stop.wait()

        self._loop.run_until_complete(serve())

    def make(self, chance: random.Random) -> bytes:
        """Requests with changed bytes, in parts."""
        connections = []
        for _ in range(4):
            data = b"".join(chance.choice(_REQUESTS) for _ in range(chance.choice((1, 1, 2, 3))))
            if chance.random() < 0.9:
                data = mutate.mutate_bytes(data, chance, _WORDS)
            connections.append(data)
        return msgspec.json.encode(connections)

    def check(self, case: bytes) -> int:
        """Each connection is answered or ended, within bounds; afterwards the server still answers."""
        connections = msgspec.json.decode(case, type=list[bytes])
        for data in connections:
            self._exchange(data)
        answer = self._exchange(_HEALTHZ)
        require(
            answer.startswith((b"HTTP/1.0 200", b"HTTP/1.1 200")), f"the server no longer answers: {answer[:100]!a}"
        )
        require(not self._errors, f"errors of the event loop: {self._errors[:2]}")
        return len(connections)

    def _exchange(self, data: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", self._port), timeout=_SECONDS) as peer:
            with contextlib.suppress(OSError):
                peer.sendall(data)
            answer = b""
            peer.settimeout(_SECONDS if b"Connection: close\r\n\r\n" in data[-30:] else _QUIET_SECONDS)
            with contextlib.suppress(ConnectionError, TimeoutError):
                while part := peer.recv(1 << 16):
                    answer += part
                    require(len(answer) <= _MOST_BYTES, "an answer is not bounded")
        require(answer[:5] in (b"", b"HTTP/"), f"the answer is no HTTP: {answer[:40]!a}")
        require(b" 500 " not in answer[:20], f"an internal error: {answer[:300]!a}")
        return answer

    def close(self) -> None:
        """Stops the server and its thread, and puts the limits back."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)
        self._loop.close()
        self._logger.disabled = False
        http_server.GOODBYE_SECONDS, http_server.LINGER_SECONDS = self._before
