"""An HTTP proxy in front of an API server that fails on demand, once, several times or until healed.

async with FaultyProxy(plane) as proxy:
    proxy.fail(503, method="PATCH", path="/status", times=2)
    client = Client.from_kubeconfig(proxy.kubeconfig)
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from types import TracebackType
from weakref import WeakSet

import aiohttp
import msgspec
from aiohttp import web
from aiohttp.connector import AddrInfoType

from kube.control_plane import ADMIN_TOKEN, ControlPlane

_GOODBYE_SECONDS = 120.0  # for TLS, on a machine that has much else to do
_HOP_HEADERS = {"host", "connection", "transfer-encoding", "content-length", "keep-alive"}


class Fault(msgspec.Struct):
    """What goes wrong with requests that match; `left` counts down, below zero it never ends."""

    what: int | str
    """A status, "reset" (before the server sees it), "lost" (after it did it), "hang", or "end" (an empty answer)."""
    method: str = ""
    path: str = ""
    left: int = 1
    retry_after: str = ""
    then: Callable[[], None] | None = None  # done before the client hears of it


class FaultyProxy:
    """The proxy, as an async context manager."""

    def __init__(self, plane: ControlPlane, token: str = ADMIN_TOKEN) -> None:
        self._plane = plane
        self._token = token
        self._faults: list[Fault] = []
        self._streams: set[asyncio.Task[object]] = set()
        self._sockets: WeakSet[socket.socket] = WeakSet()  # to the API server
        self._healed = asyncio.Event()
        self.seen: list[tuple[str, str]] = []  # method and path with query of every request, failed or not

    async def __aenter__(self) -> FaultyProxy:
        context = ssl.create_default_context(cafile=str(self._plane.ca))
        connector = aiohttp.TCPConnector(ssl=context, limit=0, socket_factory=self._opened)
        self._session = aiohttp.ClientSession(connector=connector, auto_decompress=False)
        application = web.Application(client_max_size=2**24)
        application.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.server = f"http://{host}:{port}"
        self.kubeconfig = self._plane.write_kubeconfig(f"proxy-{port}", self._token, self.server)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.heal()
        self.break_streams()
        await self._runner.cleanup()
        await self._session.close()
        async with asyncio.timeout(_GOODBYE_SECONDS):
            while any(each.fileno() >= 0 for each in self._sockets):  # the loop closes those that were cut off
                await asyncio.sleep(0.01)

    def _opened(self, address: AddrInfoType) -> socket.socket:
        made = socket.socket(*address[:3])
        made.setblocking(False)
        self._sockets.add(made)
        return made

    def fail(
        self,
        what: int | str,
        *,
        method: str = "",
        path: str = "",
        times: int = 1,
        retry_after: str = "",
        then: Callable[[], None] | None = None,
    ) -> None:
        """From now on fail the next `times` requests that match (-1: all of them until heal())."""
        self._healed.clear()
        self._faults.append(Fault(what, method, path, times, retry_after, then))

    def heal(self) -> None:
        """No more faults; requests that hang go on."""
        self._faults.clear()
        self._healed.set()

    def break_streams(self) -> None:
        """Cut every request that is under way, such as watches."""
        for task in self._streams:
            task.cancel()

    def _fault(self, request: web.Request) -> Fault | None:
        for fault in self._faults:
            if fault.left != 0 and fault.method in {"", request.method} and fault.path in str(request.rel_url):
                fault.left -= 1
                return fault
        return None

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.seen.append((request.method, str(request.rel_url)))
        fault = self._fault(request)
        if fault is None:
            return await self._forward(request)
        if fault.what == "lost":
            await self._forward(request, answer=False)
        if fault.then is not None:
            fault.then()
        if isinstance(fault.what, int):
            headers = {"Retry-After": fault.retry_after} if fault.retry_after else {}
            status = {"kind": "Status", "code": fault.what, "message": f"made to fail with {fault.what}"}
            return web.json_response(status, status=fault.what, headers=headers)
        if fault.what == "end":
            return web.Response()
        if fault.what == "hang":
            await self._healed.wait()
        if request.transport is not None:
            request.transport.abort()
        return web.Response()

    async def _forward(self, request: web.Request, *, answer: bool = True) -> web.StreamResponse:
        headers = {key: value for key, value in request.headers.items() if key.lower() not in _HOP_HEADERS}
        task = asyncio.current_task()
        assert task is not None
        self._streams.add(task)
        try:
            async with self._session.request(
                request.method,
                self._plane.server + str(request.rel_url),
                headers=headers,
                data=await request.read(),
                timeout=aiohttp.ClientTimeout(total=None),
            ) as source:
                kept = {
                    key: value
                    for key, value in source.headers.items()
                    if key.lower() not in _HOP_HEADERS - {"content-encoding"}
                }
                response = web.StreamResponse(status=source.status, headers=kept)
                try:
                    if not answer:
                        await source.read()
                        return response
                    await response.prepare(request)
                    async for chunk in source.content.iter_any():
                        await response.write(chunk)
                    await response.write_eof()
                    return response
                finally:  # if it ends early there still is a connection: a polite TLS shutdown would outlive the loop
                    if source.connection is not None and source.connection.transport is not None:
                        source.connection.transport.abort()
        except asyncio.CancelledError:
            if request.transport is not None:
                request.transport.abort()
            raise
        finally:
            self._streams.discard(task)
