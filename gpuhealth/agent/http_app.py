"""What an agent serves: /metrics, /healthz, /readyz. Everything comes from memory; nothing here waits on a probe."""

from __future__ import annotations

from aiohttp import web

from gpuhealth.agent.agent import Agent
from gpuhealth.agent.metrics import Exposition
from gpuhealth.kube.access import Access
from gpuhealth.runtime.http_server import Handler, keep_serving, serving


def pages(agent: Agent, exposition: Exposition) -> dict[str, Handler]:
    """The agent's pages."""

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=exposition.text(), headers={"Content-Type": exposition.content_type})

    async def healthz(_: web.Request) -> web.Response:
        # That this is answered at all is the proof: the agent's own loop runs. The driver's health is not asked,
        # or a hung GPU would have the kubelet kill the agent that reports it.
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        if not agent.has_judged:
            return web.Response(text="the first round is not complete\n", status=503)
        return web.Response(text="ok\n")

    return {"/metrics": metrics, "/healthz": healthz, "/readyz": readyz}


async def serve(agent: Agent) -> None:
    """Serves until cancelled. Raises ServingError where, at the start, the address or the TLS files cannot be had."""
    exposition = Exposition(agent, agent.settings.interval)

    async def once() -> None:
        access = Access(agent.settings.http, agent.settings.kubernetes)
        async with serving(agent.settings.http, pages(agent, exposition), access) as agent.http_port:
            await exposition.keep()

    await keep_serving(once, agent.counts.failures)
