"""A server in the place of the API server that gives the same answer to every request."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web
from kube import ControlPlane

from gpuhealth.kube.client import Client

PAGE = b"<html><body>Please log in to use this network</body></html>"


class Page:
    """The answer of the server, and the number of requests so far."""

    def __init__(self) -> None:
        self.body = PAGE
        self.asked = 0
        self.port = 0

    async def handle(self, _: web.Request) -> web.Response:
        """Answers one request, whatever it is."""
        self.asked += 1
        return web.Response(body=self.body)


@asynccontextmanager
async def in_the_way(plane: ControlPlane) -> AsyncIterator[tuple[Page, Client]]:
    """A running server, and a client that is configured to use it as the API server."""
    page, application = Page(), web.Application(client_max_size=2**24)
    application.router.add_route("*", "/{path:.*}", page.handle)
    runner = web.AppRunner(application, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    page.port = port
    kubeconfig = plane.write_kubeconfig(f"page-{port}", "token", f"http://{host}:{port}")
    try:
        async with Client.from_kubeconfig(kubeconfig, attempts=1) as client:
            yield page, client
    finally:
        await runner.cleanup()
