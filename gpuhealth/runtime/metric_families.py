"""Metric families from rows, for the metrics of agent and controller."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.core import Metric as Metric  # for the modules whose metrics are made here

from gpuhealth.api import metrics as names
from gpuhealth.model.missing import Missing

Rows = Iterable[tuple[Any, ...]]
"""Label values and, last, the value; a row without a value has no sample."""


def family(metric: names.Metric, rows: Rows) -> Metric:
    """The samples of a metric."""
    kind = GaugeMetricFamily if metric.type is names.MetricType.GAUGE else CounterMetricFamily
    made: Any = kind(metric.name.removesuffix("_total"), metric.help, labels=metric.labels)
    for *values, value in rows:
        if not isinstance(value, Missing):
            made.add_metric([_label(text) for text in values], float(value))
    found: Metric = made
    return found


def _label(value: object) -> str:
    """A label's text. Unpaired surrogates, left by bytes that are not UTF-8, are escaped: \\udcff."""
    return str(value).encode(errors="backslashreplace").decode()
