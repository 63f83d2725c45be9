"""What an agent serves: /metrics, /healthz, /readyz. Everything comes from memory; nothing here waits on a probe."""

from __future__ import annotations

import structlog
from aiohttp import web

from gpuhealth.agent import Agent
from gpuhealth.web.metrics import Exposition

log = structlog.get_logger()

_MAX_REQUEST_BYTES = 4096  # nobody has anything to send us
_IDLE_SECONDS = 75.0  # Prometheus keeps its connections between scrapes
_GOODBYE_SECONDS = 2.0  # for who is being answered when we stop


def application(agent: Agent, exposition: Exposition) -> web.Application:
    """The agent's pages. Read only."""

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=exposition.text(), headers={"Content-Type": exposition.content_type})

    async def healthz(_: web.Request) -> web.Response:
        # That this is answered at all is the proof: the agent's own loop runs. The driver's health is not asked,
        # or a hung GPU would have the kubelet kill the agent that reports it.
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        if agent.verdict is None:
            return web.Response(text="the first round is not complete\n", status=503)
        return web.Response(text="ok\n")

    app = web.Application(client_max_size=_MAX_REQUEST_BYTES)
    app.add_routes(
        [web.get("/metrics", metrics), web.get("/healthz", healthz), web.get("/readyz", readyz)],
    )
    return app


async def serve(agent: Agent) -> None:
    """Serves until cancelled. Raises OSError where the address cannot be had."""
    http = agent.settings.http
    exposition = Exposition(agent)
    runner = web.AppRunner(
        application(agent, exposition),
        access_log=None,
        keepalive_timeout=_IDLE_SECONDS,
        shutdown_timeout=_GOODBYE_SECONDS,
    )
    try:
        await runner.setup()
        site = web.TCPSite(runner, http.host, http.port, reuse_address=True)
        await site.start()
        agent.http_port = runner.addresses[0][1]
        log.info("serving", host=http.host, port=agent.http_port)
        await exposition.keep()
    finally:
        await runner.cleanup()
