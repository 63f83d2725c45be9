"""HTTP pages of the controller: /metrics, /healthz and /readyz, all answered from memory.

Only the leader exposes metrics of the fleet: a sum over two controllers that did would count every node twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from http import HTTPStatus

from prometheus_client import ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from gpuhealth import __version__
from gpuhealth.api import metrics as names
from gpuhealth.controller.controller import Controller
from gpuhealth.controller.duty import Duty
from gpuhealth.kube.authorizer import authorizer_for
from gpuhealth.runtime.exposition import CONTENT_TYPE, Collect, Rendering
from gpuhealth.runtime.http_server import Page, Response, keep_serving, serving
from gpuhealth.runtime.metric_families import family


class ControllerCollector(Collector):
    """Makes the metrics of a controller and its duties at each scrape, from counts in memory."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics; the first error ends the iteration."""
        for metrics in self.collectors().values():
            yield from metrics()

    def collectors(self) -> dict[str, Collect]:
        """Return the collectors by name; each is a failure domain of its own."""
        duties: dict[str, Collect] = {duty.name: partial(self._of_duty, duty) for duty in self._controller.duties}
        return {"controller": self._own, "fleet": self._fleet} | duties

    def _exposes_fleet(self) -> bool:
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

    def _fleet(self) -> Iterator[Metric]:
        if not self._exposes_fleet():
            return
        fleet = self._controller.fleet
        states = [(*key, value) for key, value in fleet.nodes_by_state.items()]
        yield family(names.FLEET_NODES, states)
        yield family(names.UNWATCHED_NODES, [(*key, value) for key, value in fleet.unwatched_nodes.items()])
        gpus = [(*key, value) for key, value in fleet.gpus_by_verdict.items()]
        yield family(names.FLEET_GPUS, gpus)

    def _of_duty(self, duty: Duty) -> Iterator[Metric]:
        yield from duty.counters()
        if self._exposes_fleet():
            yield from duty.gauges()


def pages(controller: Controller) -> dict[str, Page]:
    """Return the controller's pages by path."""
    process: dict[str, Collect] = {"process": ProcessCollector(registry=None).collect}
    rendering = Rendering(names.CONTROLLER_METRICS_ERRORS, ControllerCollector(controller).collectors() | process)

    async def metrics() -> Response:
        return Response(rendering.text(), content_type=CONTENT_TYPE)

    async def healthz() -> Response:
        if not controller.healthy:
            return Response(b"tasks of an ended leadership have not stopped\n", HTTPStatus.SERVICE_UNAVAILABLE)
        return Response(b"ok\n")  # an answer at all shows that the event loop runs

    async def readyz() -> Response:
        if not controller.fleet.ready:
            return Response(b"the fleet has not been listed yet\n", HTTPStatus.SERVICE_UNAVAILABLE)
        return Response(b"ok\n")

    return {"/metrics": metrics, "/healthz": healthz, "/readyz": readyz}


async def serve(controller: Controller) -> None:
    """Serve the pages until cancelled.

    Raises ServingError where the address or the TLS files cannot be used at the first start.
    """
    http, handlers = controller.settings.controller.http, pages(controller)

    async def once() -> None:
        authorizer = authorizer_for(http, controller.settings.kubernetes)
        async with serving(http, handlers, authorizer) as controller.http_port:
            await asyncio.Event().wait()

    await keep_serving(once, controller.failures)
