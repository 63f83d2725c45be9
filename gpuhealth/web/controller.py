"""What a controller serves: /metrics, /healthz, /readyz, all from memory.

Only the one that leads shows the fleet: two that show it would count every node twice in a sum.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator

from aiohttp import web
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from gpuhealth import __version__
from gpuhealth.cluster.eviction import Outcome
from gpuhealth.controller.controller import Controller
from gpuhealth.controller.testing import OUTCOMES
from gpuhealth.web.access import Access
from gpuhealth.web.families import counter, gauge
from gpuhealth.web.server import Handler, serving


class ControllerCollector(Collector):
    """The metrics, made at each scrape from counts that are kept: there is nothing to wait for."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    def collect(self) -> Iterator[Metric]:
        """All families."""
        controller = self._controller
        info = [(__version__, controller.identity, 1)]
        yield gauge("controller_info", "The controller", ["version", "identity"], info)
        yield gauge("controller_leading", "1 for the controller that acts", [], [(controller.leading,)])
        calls = [(*key, value) for key, value in controller.api_calls.items()]
        yield counter("controller_api_calls", "Attempts at the API server", ["method", "status"], calls)
        yield counter("controller_failures", "Unexpected errors", ["loop"], controller.failures.items())
        text = "Objects of the API server, each version once, that could not be read"
        yield counter("controller_unreadable_objects", text, ["kind"], controller.unreadable.items())
        results = [(each, controller.results[each]) for each in Outcome]  # from the start: a rate needs its zero
        yield counter("drain_evictions", "Pods sent away by drains, and tries at it", ["result"], results)
        tests = [(each, controller.testing.outcomes[each]) for each in OUTCOMES]
        yield counter("burnin_tests", "Burn-ins of nodes in service that are over", ["outcome"], tests)
        if controller.leading and controller.fleet.ready:
            yield from self._fleet()

    def _fleet(self) -> Iterator[Metric]:
        fleet, standings = self._controller.fleet, self._controller.budgets.standings.items()
        states = [(*key, value) for key, value in fleet.states.items()]
        yield gauge("fleet_nodes", "GPU nodes", ["state", "pool"], states)
        gpus = [(*key, value) for key, value in fleet.gpus.items()]
        yield gauge("fleet_gpus", "GPUs; those of a silent agent are unknown", ["verdict", "model"], gpus)
        yield gauge("agents_silent", "GPU nodes with no agent that is ready", [], [(len(fleet.silent),)])
        phases = [(phase, fleet.phases[phase]) for phase in ("pending", "draining", "drained")]
        yield gauge("drain_nodes", "Nodes that are to be drained", ["phase"], phases)
        used = [(name, standing.used) for name, standing in standings]
        yield gauge("budget_used", "Places of a budget that are taken", ["budget"], used)
        limits = [(name, standing.limit) for name, standing in standings]
        yield gauge("budget_limit", "Nodes that a budget lets be out at once", ["budget"], limits)
        uncounted = [(name, standing.uncounted) for name, standing in standings]
        text = "Nodes that are out, and for which a budget that selects them by now has no free place"
        yield gauge("budget_uncounted_nodes", text, ["budget"], uncounted)
        held = [(*hold, count) for hold, count in fleet.holds.items()]
        text = "Nodes that should be out and for which a limit of a budget leaves no place"
        yield gauge("quarantine_held_nodes", text, ["budget", "limit", "code"], held)
        under_way = Counter(test.reason for test in fleet.tests.items.values() if not test.over)
        yield gauge("burnin_running", "Burn-ins under way or waiting for their node", ["reason"], under_way.items())
        outliers = [(each.code, each.node, each.gpu, 1) for each in self._controller.outliers.found]
        yield gauge(
            "fleet_finding", "GPUs that differ from all others of their kind", ["code", "node", "gpu"], outliers
        )


def pages(controller: Controller) -> dict[str, Handler]:
    """The controller's pages."""
    registry = CollectorRegistry()
    registry.register(ControllerCollector(controller))
    ProcessCollector(registry=registry)

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")  # that this is answered is the proof: the loop runs

    async def readyz(_: web.Request) -> web.Response:
        if not controller.fleet.ready:
            return web.Response(text="the fleet has not been listed yet\n", status=503)
        return web.Response(text="ok\n")

    return {"/metrics": metrics, "/healthz": healthz, "/readyz": readyz}


async def serve(controller: Controller) -> None:
    """Serves until cancelled. Raises ServingError where the address or the TLS files cannot be had."""
    http = controller.settings.controller.http
    access = Access(http, controller.settings.kubernetes)
    async with serving(http, pages(controller), access) as controller.http_port:
        await asyncio.Event().wait()
