"""HTTP pages of the agent: /metrics, /healthz, /readyz. Everything comes from memory; no page waits for a probe."""

from __future__ import annotations

from http import HTTPStatus

from gpuhealth.agent.agent import Agent
from gpuhealth.agent.metrics import Exposition
from gpuhealth.kube.authorizer import authorizer_for
from gpuhealth.runtime.http_server import Page, Response, keep_serving, serving


def pages(agent: Agent, exposition: Exposition) -> dict[str, Page]:
    """The HTTP pages of an agent."""

    async def metrics() -> Response:
        return Response(exposition.text(), content_type=exposition.content_type)

    async def healthz() -> Response:
        # Any answer proves that the agent's event loop runs. The driver's health is not part of it: with a hung GPU
        # the kubelet would kill the agent that reports it.
        return Response(b"ok\n")

    async def readyz() -> Response:
        if not agent.has_judged:
            return Response(b"the first round is not complete\n", HTTPStatus.SERVICE_UNAVAILABLE)
        return Response(b"ok\n")

    return {"/metrics": metrics, "/healthz": healthz, "/readyz": readyz}


async def serve(agent: Agent) -> None:
    """Serves until cancelled. Raises ServingError if, at the start, the address or the TLS files are unusable."""
    exposition = Exposition(agent, agent.settings.interval)

    async def once() -> None:
        authorizer = authorizer_for(agent.settings.http, agent.settings.kubernetes)
        async with serving(agent.settings.http, pages(agent, exposition), authorizer) as agent.http_port:
            await exposition.keep()

    await keep_serving(once, agent.counts.failures)
