"""The HTTP server of agent and controller: read only, bounded in connections, size and time, with TLS where configured.

aiohttp bounds lines, headers and bodies, but neither the time a peer may take to send its headers nor the number of
peers. So connections are accepted here, and each belongs to a task that ends with it. At the limit the longest-waiting
connection is closed, so that idle peers cannot block the kubelet's probes.

If the settings restrict who may read, a request needs a client certificate of the configured CA or a bearer token that
the authorizer accepts. The kubelet's probes have neither, so /healthz and /readyz are open: they return a single word.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Protocol

import msgspec
import structlog
from aiohttp import web

from gpuhealth.runtime.settings import Http, Tls

log = structlog.get_logger()

OPEN_PATHS = ("/healthz", "/readyz")
CONNECTIONS = 64  # two Prometheus, the kubelet and people need a handful
HANDSHAKE_SECONDS = 5.0
HEADER_SECONDS = 10.0  # from the first byte of a request, or of a connection, to the end of the headers
IDLE_SECONDS = 75.0  # Prometheus keeps its connections between scrapes
GOODBYE_SECONDS = 2.0  # for requests being answered at shutdown
MAX_BODY_BYTES = 4096  # no page takes a body
MAX_HEADER_BYTES = 8190  # of one line; a service account's token takes about 1,200
MAX_HEADERS = 64
LINGER_SECONDS = 1.0  # for an unexpected body to end
RELOAD_SECONDS = 10.0  # between checks of the TLS files
ACCEPT_PAUSE_SECONDS = 0.1  # after a connection that could not be accepted
FIRST_PAUSE_SECONDS = 0.5  # before a failed server is started again; doubled each time
LONGEST_PAUSE_SECONDS = 8.0  # well below the timeout of a liveness probe

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Response(msgspec.Struct, frozen=True):
    """The response of a page."""

    body: bytes
    status: int = HTTPStatus.OK
    content_type: str = "text/plain; charset=utf-8"


Page = Callable[[], Awaitable[Response]]
"""Answers GET requests for one path."""


class Authorizer(Protocol):
    """Decides whether the holder of a token may read a page."""

    async def check(self, token: str, path: str) -> HTTPStatus:
        """OK, or the error status for the response."""

    async def close(self) -> None:
        """Release its resources after the server has ended."""


class ServingError(OSError):
    """The address or the TLS files are unusable; the text is one sentence with the reason."""


@asynccontextmanager
async def serving(http: Http, pages: Mapping[str, Page], authorizer: Authorizer | None = None) -> AsyncGenerator[int]:
    """Serves the pages by path, for GET and HEAD, at http's address; yields the port. Raises ServingError if it cannot.

    The authorizer is for `http.authorization: kubernetes`; it is closed at the end. If the server itself fails, the
    body is cancelled and the error raised in a group.
    """
    connections, authorization = _Connections(http.tls), _Authorization(http, authorizer)
    app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[connections.count, authorization.check])
    app.add_routes([web.get(path, _handler(page)) for path, page in pages.items()])
    runner = web.AppRunner(
        app,
        access_log=None,
        keepalive_timeout=IDLE_SECONDS,
        shutdown_timeout=GOODBYE_SECONDS,
        max_line_size=MAX_HEADER_BYTES,
        max_field_size=MAX_HEADER_BYTES,
        max_headers=MAX_HEADERS,
        lingering_time=LINGER_SECONDS,
    )
    with _listener(http) as listener:
        listener.setblocking(False)
        await runner.setup()
        assert runner.server is not None
        try:
            async with asyncio.TaskGroup() as group:  # a server that accepts no more connections must not look alive
                tasks = [group.create_task(connections.accept(listener, runner.server))]
                if connections.tls is not None:
                    tasks.append(group.create_task(connections.tls.keep()))
                port: int = listener.getsockname()[1]
                log.info(
                    "serving", host=http.host, port=port, tls=http.tls is not None, authorization=http.authorization
                )
                yield port
                for task in tasks:
                    task.cancel()
        finally:
            await runner.cleanup()
            await connections.close()
            if authorizer is not None:
                await authorizer.close()


async def keep_serving(serve: Callable[[], Awaitable[None]], failures: Counter[str]) -> None:
    """Serves until cancelled; a failed server is counted under "serve" and started again, with back-off.

    Raises ServingError at the first start only: then the settings are wrong, and the user is present to see it.
    """
    task = asyncio.current_task()
    assert task is not None
    pause, started = FIRST_PAUSE_SECONDS, False
    while not task.cancelling():  # the server may have swallowed the exception, as some libraries do
        began = time.monotonic()
        try:
            await serve()
        except Exception as error:  # a failed server must not end its process
            if isinstance(error, ServingError) and not started:
                raise
            failures["serve"] += 1
            log.exception("HTTP server failed", retry_in=pause)
        started = True
        await asyncio.sleep(pause)
        lasted = time.monotonic() - began
        pause = FIRST_PAUSE_SECONDS if lasted > 2 * LONGEST_PAUSE_SECONDS else min(2 * pause, LONGEST_PAUSE_SECONDS)


def _handler(page: Page) -> _Handler:
    async def handle(_: web.Request) -> web.Response:
        response = await page()
        headers = {"Content-Type": response.content_type}
        return web.Response(body=response.body, status=response.status, headers=headers)

    return handle


class _Authorization:
    """Passes requests to their pages, or answers 401, 403, or 503 if authorization cannot be decided."""

    def __init__(self, http: Http, authorizer: Authorizer | None) -> None:
        self._certificates = http.tls is not None and http.tls.client_ca is not None
        self._tokens = http.authorization == "kubernetes"
        self._authorizer = authorizer

    @web.middleware
    async def check(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        """Handles an authorized request, and answers any other with an error."""
        status = await self._status(request)
        if status is HTTPStatus.OK:
            return await handler(request)
        headers = {"WWW-Authenticate": "Bearer"} if status is HTTPStatus.UNAUTHORIZED else None
        return web.Response(status=status, text=f"{status.phrase.lower()}\n", headers=headers)

    async def _status(self, request: web.Request) -> HTTPStatus:
        if request.path in OPEN_PATHS or not (self._certificates or self._tokens):
            return HTTPStatus.OK
        if self._certificates and request.transport is not None and request.transport.get_extra_info("peercert"):
            return HTTPStatus.OK  # the handshake has verified it
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if self._authorizer is None or scheme.lower() != "bearer" or not token.strip():
            return HTTPStatus.UNAUTHORIZED
        return await self._authorizer.check(token.strip(), request.path)


def _listener(http: Http) -> socket.socket:
    try:
        return socket.create_server((http.host, http.port), family=_family(http.host), backlog=CONNECTIONS)
    except UnicodeError:  # a host name with an empty or too long label
        raise ServingError(f"cannot serve at {http.host!r}: the setting http.host is no name of a host") from None
    except OSError as error:
        has_errno = error.errno is not None and error.errno > 0  # errors of name resolution have their own numbers
        reason = os.strerror(error.errno) if has_errno else error.strerror  # type: ignore[arg-type]  # checked above
        raise ServingError(
            f"cannot serve at {http.host} port {http.port}: {reason}; the setting http.host or http.port names another"
        ) from error


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


class ServerTls:
    """The certificate, read again when its files change: cert-manager renews them while the server runs."""

    def __init__(self, tls: Tls) -> None:
        """Raises ServingError if the files cannot be used."""
        self._tls = tls
        try:
            self._stamp = self._stamped()
            self.context = self._read()
        except OSError as error:  # an ssl.SSLError is one
            raise ServingError(f"TLS cannot be served with {tls.cert} and {tls.key}: {error}") from error

    def _read(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self._tls.cert, self._tls.key)
        if self._tls.client_ca is not None:
            # Optional here, enforced by `_Authorization`: the kubelet's probes have no certificate.
            context.verify_mode = ssl.CERT_OPTIONAL
            context.load_verify_locations(self._tls.client_ca)
        return context

    def _stamped(self) -> list[tuple[int, int]]:
        files: list[Path] = [file for file in (self._tls.cert, self._tls.key, self._tls.client_ca) if file is not None]
        return [(found.st_mtime_ns, found.st_ino) for found in (file.stat() for file in files)]

    def reload(self) -> bool:
        """Reloads changed files for new connections; returns whether it did."""
        try:
            if (stamp := self._stamped()) == self._stamp:
                return False
            self.context = self._read()
        except (OSError, ValueError) as error:  # half written, or not a pair: a later check may find both
            log.warning("TLS files unusable, keeping the previous ones", error=str(error))
            return False
        self._stamp = stamp
        log.info("TLS files reloaded", cert=str(self._tls.cert))
        return True

    async def keep(self) -> None:
        """Checks for new files forever."""
        while True:
            await asyncio.sleep(RELOAD_SECONDS)
            self.reload()


class _Connection(asyncio.Protocol):
    """Wraps aiohttp's protocol, and aborts the connection when a request takes too long to arrive."""

    def __init__(self, inner: web.RequestHandler) -> None:
        self.inner = inner
        self.closed = asyncio.get_running_loop().create_future()
        self.answering = False
        self._between = False  # two requests: the next byte begins one
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._within(HEADER_SECONDS)
        self.inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if self._between:
            self._between = False
            self._within(HEADER_SECONDS)
        self.inner.data_received(data)

    def eof_received(self) -> None:
        self.inner.eof_received()

    def pause_writing(self) -> None:
        self.inner.pause_writing()

    def resume_writing(self) -> None:
        self.inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._within(None)
        self.inner.connection_lost(exc)
        if not self.closed.done():
            self.closed.set_result(None)

    def begin(self) -> None:
        """Called when the headers are complete."""
        self.answering = True
        self._within(None)

    def end(self) -> None:
        """Called when the request has been handled; the peer may take its time to read, and send another request."""
        self.answering = False
        self._between = True
        self._within(IDLE_SECONDS)

    def cut(self) -> None:
        """Ends the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def _within(self, seconds: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else asyncio.get_running_loop().call_later(seconds, self.cut)


class _Connections:
    """All connections, the longest-waiting first."""

    def __init__(self, tls: Tls | None) -> None:
        self.tls = ServerTls(tls) if tls is not None else None
        self._tasks: dict[_Connection, asyncio.Task[None]] = {}
        self._by_inner: dict[object, _Connection] = {}

    async def accept(self, listener: socket.socket, server: web.Server) -> None:
        """Accepts connections until it is cancelled."""
        loop = asyncio.get_running_loop()
        failing = ""
        while True:
            try:
                sock, _ = await loop.sock_accept(listener)
            except OSError as error:  # such as no file descriptor left, or a peer that has disconnected
                if failing != str(error):  # it may last, and a line for each attempt would fill the log
                    log.warning("connection accept failed", error=str(error))
                failing = str(error)
                await asyncio.sleep(ACCEPT_PAUSE_SECONDS)
                continue
            failing = ""
            if len(self._tasks) >= CONNECTIONS:
                self._make_room()
            connection = _Connection(server())
            self._by_inner[connection.inner] = connection
            self._tasks[connection] = asyncio.create_task(self._live(connection, sock))
            await asyncio.sleep(0)  # a task cancelled before its first step would leave its socket open

    def _make_room(self) -> None:
        waiting = [connection for connection in self._tasks if not connection.answering]
        task = self._tasks.pop(waiting[0] if waiting else next(iter(self._tasks)))
        task.cancel()

    async def _live(self, connection: _Connection, sock: socket.socket) -> None:
        """One connection from handshake to close."""
        loop = asyncio.get_running_loop()
        context = self.tls.context if self.tls is not None else None
        seconds = HANDSHAKE_SECONDS if context is not None else None
        try:
            with contextlib.suppress(OSError):  # a failed or slow handshake: there is no peer to inform
                await loop.connect_accepted_socket(lambda: connection, sock, ssl=context, ssl_handshake_timeout=seconds)
                await connection.closed
        finally:
            connection.cut()
            self._tasks.pop(connection, None)
            self._by_inner.pop(connection.inner, None)

    @web.middleware
    async def count(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        """Tracks which connections are being answered."""
        connection = self._by_inner.get(request.protocol)
        if connection is None:  # it has been closed meanwhile
            raise web.HTTPServiceUnavailable
        connection.begin()
        try:
            return await handler(request)
        finally:
            connection.end()
            if connection in self._tasks:
                self._tasks[connection] = self._tasks.pop(connection)  # to the end of the queue

    async def close(self) -> None:
        """Closes all remaining connections."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
