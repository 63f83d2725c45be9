"""The HTTP server of both processes: bounded in connections, sizes and times, and TLS with files that are renewed."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from testing.certificates import Authority

from gpuhealth.monitors.settings import load
from gpuhealth.runtime import http_server as server
from gpuhealth.runtime.settings import Http
from gpuhealth.runtime.settings_file import ConfigError

ASK = b"GET /page HTTP/1.1\r\nHost: x\r\n\r\n"


async def page() -> server.Response:
    """A small page with text."""
    return server.Response(b"read\n")


class OneToken:
    """An authorizer for one token, which counts what it is asked."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.closed = False

    async def check(self, token: str, path: str) -> HTTPStatus:
        """Whether it is that token."""
        self.paths.append(path)
        return HTTPStatus.OK if token == "sesame" else HTTPStatus.FORBIDDEN

    async def close(self) -> None:
        """It is not asked any more."""
        self.closed = True


@asynccontextmanager
async def served(authorizer: server.Authorizer | None = None, **http: Any) -> AsyncIterator[int]:
    """A server with one page; its port."""
    settings = Http.model_validate({"host": "127.0.0.1", "port": 0, **http})
    async with server.serving(settings, {"/page": page}, authorizer) as port:
        yield port


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Runs a test within a time that no server's patience should exceed."""

    async def whole() -> None:
        async with asyncio.timeout(300):
            await test()

    asyncio.run(whole())


async def exchange(port: int, *sent: bytes, **options: Any) -> bytes:
    """What the server answers to some bytes, until it ends the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, **options)
    try:
        for data in sent:
            writer.write(data)
        return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        await closed(writer)


async def closed(writer: asyncio.StreamWriter) -> None:
    """Closes a connection and sees it closed: an open socket outlives its loop as a warning."""
    writer.close()
    with suppress(OSError):  # the other side was quicker
        await writer.wait_closed()


def test_slow_headers_are_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who says nothing, who says a little at a time, and who begins a second request slowly: each is cut off."""
    monkeypatch.setattr(server, "HEADER_SECONDS", 1.0)

    async def body() -> None:
        async with served() as port:
            assert await exchange(port) == b""
            assert await exchange(port, b"GET /page HTTP/1.1\r\n") == b""
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            with suppress(ConnectionError):  # a byte now and then is no progress
                while not reader.at_eof():
                    writer.write(b"G")
                    await writer.drain()
                    await asyncio.sleep(0.02)
            await closed(writer)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(ASK)
            assert (await reader.readline()).endswith(b"200 OK\r\n")
            writer.write(b"GET /pa")
            assert b"200" not in await reader.read()
            await closed(writer)

    run(body)


def test_idle_connections_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection may be used again, and not be kept for ever."""
    monkeypatch.setattr(server, "IDLE_SECONDS", 0.3)

    async def body() -> None:
        async with served() as port:
            answer = await exchange(port, ASK, ASK)
            assert answer.count(b"HTTP/1.1 200 OK") == 2

    run(body)


@pytest.mark.parametrize("tls", [False, True])
def test_idle_connections_make_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, tls: bool) -> None:
    """However many connections somebody opens and leaves, no more than the limit live, and a probe is answered."""
    monkeypatch.setattr(server, "CONNECTIONS", 8)
    Authority(tmp_path).issue(tmp_path / "tls.crt", tmp_path / "tls.key", "server")
    files: dict[str, Any] = {"tls": {"cert": tmp_path / "tls.crt", "key": tmp_path / "tls.key"}} if tls else {}

    async def body() -> None:
        async with served(**files) as port:
            idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(40)]
            options: dict[str, Any] = {"ssl": _trusting(None)} if tls else {}
            answer = await exchange(port, ASK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), **options)
            assert answer.startswith(b"HTTP/1.1 200 OK")
            gone = [asyncio.create_task(_ended(reader)) for reader, _ in idle]
            while sum(task.done() for task in gone) < 32:  # of 40
                await asyncio.sleep(0.01)
            await asyncio.gather(*(closed(writer) for _, writer in idle))
            await asyncio.gather(*gone)

    run(body)


async def _ended(reader: asyncio.StreamReader) -> None:
    with suppress(ConnectionResetError):
        await reader.read()


def _trusting(authority: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority) if authority else None)
    if authority is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


@pytest.mark.parametrize(
    ("request_text", "status"),
    [
        (b"GET /" + b"x" * 10_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
        (b"GET /page HTTP/1.1\r\nX: " + b"x" * 10_000 + b"\r\n\r\n", b"400"),
        (b"GET /page HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % k for k in range(100)) + b"\r\n", b"400"),
        (b"POST /page HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000000\r\n\r\n" + b"x" * 9000, b"405"),
        (b"GET /page HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000000\r\n\r\n" + b"x" * 9000, b"200"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"400"),
    ],
    ids=["line", "header", "headers", "body", "body of a GET", "no HTTP"],
)
def test_sizes_are_bounded(monkeypatch: pytest.MonkeyPatch, request_text: bytes, status: bytes) -> None:
    """Long lines, headers, many headers and endless bodies are answered at once, and the connection ends."""
    monkeypatch.setattr(server, "IDLE_SECONDS", 300.0)  # it is not this that ends them
    monkeypatch.setattr(server, "HEADER_SECONDS", 300.0)

    async def body() -> None:
        async with served() as port:
            answer = await exchange(port, request_text)
            assert answer.startswith((b"HTTP/1.1 " + status, b"HTTP/1.0 " + status))

    run(body)


def test_tls_and_renewed_files(tmp_path: Path) -> None:
    """Served over TLS alone; a renewed certificate is used for new connections, a broken one is not."""
    cert, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    authority = Authority(tmp_path)
    authority.issue(cert, key, "first")
    http = Http.model_validate({"host": "127.0.0.1", "port": 0, "tls": {"cert": cert, "key": key}})

    async def body() -> None:
        async with served(tls=http.tls) as port:
            assert b"200" not in await exchange(port, ASK)
            assert await _get(port, _trusting(authority.cert)) == (200, "first")
            authority.issue(cert, key, "second")
            while (await _get(port, _trusting(authority.cert)))[1] != "second":
                await asyncio.sleep(0.05)
            with capture_logs() as logged:
                key.write_text("half a k")
                while not any("TLS files unusable" in entry["event"] for entry in logged):
                    await asyncio.sleep(0.05)
            assert await _get(port, _trusting(authority.cert)) == (200, "second")
            authority.issue(cert, key, "third")
            while (await _get(port, _trusting(authority.cert)))[1] != "third":
                await asyncio.sleep(0.05)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "RELOAD_SECONDS", 0.05)
        run(body)


async def _get(port: int, context: ssl.SSLContext, path: str = "/page", token: str = "") -> tuple[int, str]:
    """Status, and the common name of the server's certificate."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{token}\r\n".encode())
        answer = await reader.read()
        subject = (writer.get_extra_info("peercert") or {}).get("subject", ())
        return int(answer.split()[1]), "".join(value for part in subject for _, value in part)
    finally:
        await closed(writer)


def test_tls_1_1_is_refused(tmp_path: Path) -> None:
    """Nothing older than TLS 1.2."""
    Authority(tmp_path).issue(tmp_path / "c", tmp_path / "k", "server")
    tls = server.ServerTls(Http.model_validate({"tls": {"cert": tmp_path / "c", "key": tmp_path / "k"}}).tls)  # type: ignore[arg-type]
    assert tls.context.minimum_version is ssl.TLSVersion.TLSv1_2


def test_files_that_are_no_certificate(tmp_path: Path) -> None:
    """A server that cannot have its certificate says which, and does not start without."""

    async def body() -> None:
        with pytest.raises(OSError, match=r"TLS cannot be served with .*absent\.crt"):
            async with served(tls={"cert": tmp_path / "absent.crt", "key": tmp_path / "absent.key"}):
                pass

    run(body)


def test_certificates_of_clients(tmp_path: Path) -> None:
    """With client_ca a page needs a certificate of that authority; another authority's ends the handshake."""
    ours, others = Authority(tmp_path), Authority(tmp_path, "others")
    cert, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    for authority, name in ((ours, "tls"), (ours, "reader"), (others, "stranger")):
        authority.issue(tmp_path / f"{name}.crt", tmp_path / f"{name}.key", name)

    def context(name: str = "") -> ssl.SSLContext:
        made = _trusting(ours.cert)
        if name:
            made.load_cert_chain(tmp_path / f"{name}.crt", tmp_path / f"{name}.key")
        return made

    async def body() -> None:
        async with served(tls={"cert": cert, "key": key, "client_ca": ours.cert}) as port:
            assert (await _get(port, context()))[0] == 401
            assert (await _get(port, context(), token="Authorization: Bearer x\r\n"))[0] == 401
            assert (await _get(port, context(), "/healthz"))[0] == 404, "open, and not one of this server's"
            assert (await _get(port, context("reader")))[0] == 200
            with pytest.raises((OSError, IndexError)):  # refused in the handshake, or with no answer
                await _get(port, context("stranger"))

    run(body)


@pytest.mark.parametrize("with_authorizer", [True, False])
def test_tokens_are_shown_to_the_authorizer(tmp_path: Path, *, with_authorizer: bool) -> None:
    """Its status is the answer; open pages and requests without a token do not reach it. Where the settings want tokens
    and nobody can check them, nobody is let in."""
    authority = Authority(tmp_path)
    authority.issue(tmp_path / "tls.crt", tmp_path / "tls.key", "tls")
    tls = {"cert": tmp_path / "tls.crt", "key": tmp_path / "tls.key"}
    authorizer = OneToken() if with_authorizer else None

    async def body() -> None:
        async with served(authorizer, tls=tls, authorization="kubernetes") as port:
            context = _trusting(authority.cert)

            async def status(token: str, path: str = "/page") -> int:
                return (await _get(port, context, path, token and f"Authorization: {token}\r\n"))[0]

            assert await status("Bearer sesame") == (200 if with_authorizer else 401)
            assert await status("bearer other") == (403 if with_authorizer else 401)
            assert [await status(token) for token in ("", "Bearer ", "Basic sesame")] == [401] * 3
            assert await status("", "/readyz") == 404, "open, and not one of this server's"
        if authorizer is not None:
            assert authorizer.paths == ["/page", "/page"]
            assert authorizer.closed

    run(body)


def test_tokens_do_not_travel_in_the_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    """Authorization without TLS is a configuration that is refused, for agent and controller."""
    monkeypatch.setenv("GPUHEALTH_HTTP__AUTHORIZATION", "kubernetes")
    with pytest.raises(ConfigError, match="http: authorization kubernetes needs tls"):
        load()
    monkeypatch.setenv("GPUHEALTH_HTTP__TLS__CERT", "/tls/tls.crt")
    monkeypatch.setenv("GPUHEALTH_HTTP__TLS__KEY", "/tls/tls.key")
    assert load().http.tls is not None
