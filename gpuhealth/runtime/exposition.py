"""Prometheus metrics text from collectors that fail independently.

A metric that cannot be read or written, such as process memory when no file descriptor is left, costs only its
collector's samples in that scrape, and is counted; everything else is served.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from traceback import walk_tb

import structlog
from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from gpuhealth.api.metrics import Metric as MetricName
from gpuhealth.runtime.metric_families import family

log = structlog.get_logger()

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
_ERROR_CHARACTERS = 200  # of an error's text in the log: prometheus_client includes whole metrics in it

Collect = Callable[[], Iterable[Metric]]
"""One collector: the current metrics of one subject."""


class Rendering:
    """The text of all collectors, and the number of failures of each."""

    def __init__(self, errors: MetricName, collectors: Mapping[str, Collect]) -> None:
        """`errors` counts failures by collector."""
        self._metric = errors
        self._collectors = collectors
        self._errors = Counter(dict.fromkeys(collectors, 0))  # present from the start: a rate needs its zero
        self._failing: dict[str, str] = {}  # collector -> its last error

    def text(self) -> bytes:
        """The current metrics. Never raises an error of a collector."""
        parts = [part for name, collect in self._collectors.items() for part in self._rendered(name, collect)]
        return b"".join([*parts, _text(family(self._metric, self._errors.items()))])

    def _rendered(self, name: str, collect: Collect) -> Iterator[bytes]:
        try:
            for metric in collect():
                yield _text(metric)
        except Exception as error:  # noqa: BLE001 - an error of one collector must not affect the others
            self._errors[name] += 1
            self._log(name, error)
        else:
            self._failing.pop(name, None)

    def _log(self, name: str, error: Exception) -> None:
        """Logs an error of a collector once while it stays the same."""
        kind = type(error).__name__
        if self._failing.get(name) == kind:
            return
        self._failing[name] = kind
        frame, line = list(walk_tb(error.__traceback__))[-1]
        log.error(
            "metrics collection failed",
            collector=name,
            error=f"{kind}: {error}"[:_ERROR_CHARACTERS],
            where=f"{frame.f_code.co_filename}:{line}",
        )


class _Alone(Collector):
    """One metric, in the form that prometheus_client expects."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterable[Metric]:
        return (self._metric,)


def _text(metric: Metric) -> bytes:
    return generate_latest(_Alone(metric))
