"""What a controller serves: /metrics, /healthz, /readyz, all from memory.

Only the one that leads shows the fleet: two that show it would count every node twice in a sum.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from http import HTTPStatus

from prometheus_client import ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from gpuhealth import __version__
from gpuhealth.controller.burnin_scheduler import OUTCOMES
from gpuhealth.controller.controller import Controller
from gpuhealth.kube.authorizer import authorizer_for
from gpuhealth.kube.eviction import Outcome
from gpuhealth.runtime.exposition import CONTENT_TYPE, Collect, Rendering
from gpuhealth.runtime.http_server import Page, Response, keep_serving, serving
from gpuhealth.runtime.metric_families import counter, gauge


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
        yield gauge("controller_info", "The controller", ["version", "identity"], info)
        yield gauge("controller_leading", "1 for the controller that acts", [], [(controller.leading,)])
        calls = [(*key, value) for key, value in controller.api_calls.items()]
        yield counter("kube_requests", "Requests to the API server; status 0: no answer", ["method", "status"], calls)
        yield counter("loop_failures", "Unexpected errors by loop", ["loop"], controller.failures.items())
        text = "Versions of objects that could not be read"
        yield counter("controller_unreadable_objects", text, ["kind"], controller.unreadable.items())
        results = [(each, controller.results[each]) for each in Outcome]  # from the start: a rate needs its zero
        yield counter("drain_evictions", "Pods sent away by drains, and tries at it", ["result"], results)
        tests = [(each, controller.testing.outcomes[each]) for each in OUTCOMES]
        yield counter("burnin_tests", "Burn-ins of nodes in service that are over", ["outcome"], tests)

    def _fleet(self) -> Iterator[Metric]:
        fleet = self._controller.fleet
        if not self._shows_fleet():
            return
        states = [(*key, value) for key, value in fleet.states.items()]
        yield gauge("fleet_nodes", "GPU nodes", ["state", "pool"], states)
        gpus = [(*key, value) for key, value in fleet.gpus.items()]
        yield gauge("fleet_gpus", "GPUs; those of a silent agent are unknown", ["verdict", "model"], gpus)
        yield gauge("agents_silent", "GPU nodes with no agent that is ready", [], [(len(fleet.silent),)])
        phases = [(phase, fleet.phases[phase]) for phase in ("pending", "draining", "drained")]
        yield gauge("drain_nodes", "Nodes that are to be drained", ["phase"], phases)
        under_way = Counter(test.reason for test in fleet.tests.items.values() if not test.over)
        yield gauge("burnin_running", "Burn-ins under way or waiting for their node", ["reason"], under_way.items())

    def _budgets(self) -> Iterator[Metric]:
        if not self._shows_fleet():
            return
        standings = self._controller.budgets.standings.items()
        used = [(name, standing.used) for name, standing in standings]
        yield gauge("budget_used", "Slots of a budget that are taken", ["budget"], used)
        limits = [(name, standing.limit) for name, standing in standings]
        yield gauge("budget_limit", "Nodes that a budget lets be out at once", ["budget"], limits)
        uncounted = [(name, standing.uncounted) for name, standing in standings]
        text = "Nodes that are out, and for which a budget that selects them by now has no free slot"
        yield gauge("budget_uncounted_nodes", text, ["budget"], uncounted)
        held = [(*hold, count) for hold, count in self._controller.fleet.holds.items()]
        text = "Nodes that should be out and for which a limit of a budget leaves no free slot"
        yield gauge("quarantine_blocked_nodes", text, ["budget", "limit", "code"], held)

    def _outliers(self) -> Iterator[Metric]:
        if not self._shows_fleet():
            return
        outliers = [(each.code, each.node, each.gpu, 1) for each in self._controller.outliers.found]
        yield gauge(
            "fleet_finding", "GPUs that differ from all others of their kind", ["code", "node", "gpu"], outliers
        )


def pages(controller: Controller) -> dict[str, Page]:
    """The controller's pages."""
    process: dict[str, Collect] = {"process": ProcessCollector(registry=None).collect}
    rendering = Rendering("controller", ControllerCollector(controller).collectors() | process)

    async def metrics() -> Response:
        return Response(rendering.text(), content_type=CONTENT_TYPE)

    async def healthz() -> Response:
        if not controller.healthy:
            return Response(b"what was done as the leader has not ended\n", HTTPStatus.SERVICE_UNAVAILABLE)
        return Response(b"ok\n")  # that this is answered shows that the event loop runs

    async def readyz() -> Response:
        if not controller.fleet.ready:
            return Response(b"the fleet has not been listed yet\n", HTTPStatus.SERVICE_UNAVAILABLE)
        return Response(b"ok\n")

    return {"/metrics": metrics, "/healthz": healthz, "/readyz": readyz}


async def serve(controller: Controller) -> None:
    """Serves until cancelled. Raises ServingError where, at the start, the address or the TLS files cannot be had."""
    http, shown = controller.settings.controller.http, pages(controller)

    async def once() -> None:
        authorizer = authorizer_for(http, controller.settings.kubernetes)
        async with serving(http, shown, authorizer) as controller.http_port:
            await asyncio.Event().wait()

    await keep_serving(once, controller.failures)
