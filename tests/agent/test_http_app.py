"""The agent's HTTP server: read only, and alive while the driver is not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import ClientSession
from testing.agents import WELL
from testing.simnode import SimulatedNode
from testing.waiting import wait_for

from gpuhealth.agent import http_app as pages
from gpuhealth.agent.agent import Agent
from gpuhealth.agent.metrics import Exposition
from gpuhealth.runtime.http_server import serving
from gpuhealth.runtime.settings import Http

PATHS = ("/metrics", "/healthz", "/readyz")


def served(agent: Agent, test: Callable[[ClientSession], Awaitable[None]]) -> None:
    """Runs a test against an agent's pages, without the agent."""

    async def whole() -> None:
        http = Http(host="127.0.0.1", port=0)
        shown = pages.pages(agent, Exposition(agent, 10.0))
        async with serving(http, shown) as port, ClientSession(f"http://127.0.0.1:{port}") as session:
            await test(session)

    asyncio.run(whole())


def test_not_ready_before_the_first_round(make_agent: Callable[[], Agent]) -> None:
    """/readyz refuses until every monitor has had a round, /healthz and /metrics answer from the start."""
    agent = make_agent()

    async def body(session: ClientSession) -> None:
        *others, last = agent.node_health.judge.monitors
        readings = WELL.readings()
        for monitor in (None, *others):
            if monitor:
                agent.node_health.apply_round(monitor, readings.of(monitor))
            for path, status in zip(PATHS, (200, 200, 503), strict=True):
                async with session.get(path) as answer:
                    assert answer.status == status
        agent.node_health.apply_round(last, readings.of(last))
        async with session.get("/readyz") as answer:
            assert answer.status == 200

    served(agent, body)


@pytest.mark.parametrize("path", ["/", "/metrics/", "/admin", "/debug/pprof", "/../etc/passwd", "/healthz/x"])
def test_unknown_paths_are_not_found(make_agent: Callable[[], Agent], path: str) -> None:
    """There is nothing but the three pages."""

    async def body(session: ClientSession) -> None:
        async with session.get(path) as answer:
            assert answer.status == 404

    served(make_agent(), body)


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
def test_nothing_can_be_written(make_agent: Callable[[], Agent], method: str) -> None:
    """Every page refuses every method that is not reading."""

    async def body(session: ClientSession) -> None:
        for path in PATHS:
            async with session.request(method, path, data=b"x") as answer:
                assert answer.status == 405

    served(make_agent(), body)


def test_metrics_say_what_they_are(make_agent: Callable[[], Agent]) -> None:
    """The content type is that of Prometheus' text format."""

    async def body(session: ClientSession) -> None:
        async with session.get("/metrics") as answer:
            assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            assert "gpuhealth_node_healthy 0.0" in await answer.text()

    served(make_agent(), body)


def test_an_address_that_is_taken_is_an_error(make_agent: Callable[[], Agent]) -> None:
    """Serving where somebody else does raises, and leaves nothing behind."""

    async def whole() -> None:
        server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        agent = make_agent()
        http = agent.settings.http.model_copy(update={"host": "127.0.0.1", "port": server.sockets[0].getsockname()[1]})
        agent.settings = agent.settings.model_copy(update={"http": http})
        async with server:
            with pytest.raises(OSError, match="Address already in use"):
                await pages.serve(agent)

    asyncio.run(whole())


def test_the_agent_answers_while_the_driver_hangs(impatient: SimulatedNode) -> None:
    """Liveness, readiness and metrics are there throughout a hang, which is a finding and not the agent's end."""
    node = impatient
    node.driver.inject("hang")
    wait_for("the finding", lambda: "driver.unresponsive" in node.findings())
    for path in PATHS:
        assert node.get(path)[0] == 200
    assert node.metric('gpuhealth_verdict{verdict="healthy"}') == 0
    node.driver.clear()
    node.driver.release()
    wait_for("the driver's answer", lambda: "driver.unresponsive" not in node.findings())
