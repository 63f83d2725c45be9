"""What a controller serves: /metrics, /healthz, /readyz, all from memory.

Only the one that leads shows the fleet: two that show it would count every node twice in a sum.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator

from aiohttp import web
from prometheus_client import ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from gpuhealth import __version__
from gpuhealth.api import metrics as names
from gpuhealth.api.report import DrainPhase
from gpuhealth.controller.burnin_scheduler import OUTCOMES
from gpuhealth.controller.controller import Controller
from gpuhealth.kube.access import Access
from gpuhealth.kube.eviction import Outcome
from gpuhealth.runtime.exposition import CONTENT_TYPE, Collect, Rendering
from gpuhealth.runtime.http_server import Handler, keep_serving, serving
from gpuhealth.runtime.metric_families import family


class ControllerCollector(Collector):
    """The metrics, made at each scrape from counts that are kept: there is nothing to wait for."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    def collect(self) -> Iterator[Metric]:
        """All metrics; the first error ends them."""
        for metrics in self.collectors().values():
            yield from metrics()

    def collectors(self) -> dict[str, Collect]:
        """By name; each is a failure domain of its own."""
        return {"controller": self._own, "fleet": self._fleet, "budgets": self._budgets, "outliers": self._outliers}

    def _shows_fleet(self) -> bool:
        return self._controller.leading and self._controller.fleet.ready

    def _own(self) -> Iterator[Metric]:
        controller = self._controller
        info = [(__version__, controller.identity, 1)]
        yield family(names.CONTROLLER_INFO, info)
        yield family(names.CONTROLLER_LEADING, [(controller.leading,)])
        calls = [(*key, value) for key, value in controller.api_calls.items()]
        yield family(names.KUBE_REQUESTS, calls)
        yield family(names.LOOP_FAILURES, controller.failures.items())
        yield family(names.CONTROLLER_UNREADABLE_OBJECTS, controller.unreadable.items())
        results = [(each, controller.results[each]) for each in Outcome]  # from the start: a rate needs its zero
        yield family(names.DRAIN_EVICTIONS, results)
        tests = [(each, controller.testing.outcomes[each]) for each in OUTCOMES]
        yield family(names.BURNIN_TESTS, tests)

    def _fleet(self) -> Iterator[Metric]:
        fleet = self._controller.fleet
        if not self._shows_fleet():
            return
        states = [(*key, value) for key, value in fleet.states.items()]
        yield family(names.FLEET_NODES, states)
        gpus = [(*key, value) for key, value in fleet.gpus.items()]
        yield family(names.FLEET_GPUS, gpus)
        yield family(names.AGENTS_SILENT, [(len(fleet.silent),)])
        phases = [(phase, fleet.phases[phase]) for phase in ("pending", DrainPhase.DRAINING, DrainPhase.DRAINED)]
        yield family(names.DRAIN_NODES, phases)
        under_way = Counter(test.reason for test in fleet.tests.items.values() if not test.over)
        yield family(names.BURNIN_RUNNING, under_way.items())

    def _budgets(self) -> Iterator[Metric]:
        if not self._shows_fleet():
            return
        standings = self._controller.budgets.standings.items()
        used = [(name, standing.used) for name, standing in standings]
        yield family(names.BUDGET_USED, used)
        limits = [(name, standing.limit) for name, standing in standings]
        yield family(names.BUDGET_LIMIT, limits)
        uncounted = [(name, standing.uncounted) for name, standing in standings]
        yield family(names.BUDGET_UNCOUNTED_NODES, uncounted)
        held = [(*hold, count) for hold, count in self._controller.fleet.holds.items()]
        yield family(names.QUARANTINE_BLOCKED_NODES, held)

    def _outliers(self) -> Iterator[Metric]:
        if not self._shows_fleet():
            return
        outliers = [(each.code, each.node, each.gpu, 1) for each in self._controller.outliers.found]
        yield family(names.FLEET_FINDING, outliers)


def pages(controller: Controller) -> dict[str, Handler]:
    """The controller's pages."""
    process: dict[str, Collect] = {"process": ProcessCollector(registry=None).collect}
    rendering = Rendering(names.CONTROLLER_METRICS_ERRORS, ControllerCollector(controller).collectors() | process)

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=rendering.text(), headers={"Content-Type": CONTENT_TYPE})

    async def healthz(_: web.Request) -> web.Response:
        if not controller.healthy:
            return web.Response(text="what was done as the leader has not ended\n", status=503)
        return web.Response(text="ok\n")  # that this is answered shows that the event loop runs

    async def readyz(_: web.Request) -> web.Response:
        if not controller.fleet.ready:
            return web.Response(text="the fleet has not been listed yet\n", status=503)
        return web.Response(text="ok\n")

    return {"/metrics": metrics, "/healthz": healthz, "/readyz": readyz}


async def serve(controller: Controller) -> None:
    """Serves until cancelled. Raises ServingError where, at the start, the address or the TLS files cannot be had."""
    http, shown = controller.settings.controller.http, pages(controller)

    async def once() -> None:
        access = Access(http, controller.settings.kubernetes)
        async with serving(http, shown, access) as controller.http_port:
            await asyncio.Event().wait()

    await keep_serving(once, controller.failures)
