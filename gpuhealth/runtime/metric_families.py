"""Metric families from rows: what both the agent's and the controller's metrics are made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.core import Metric as Metric  # for the modules whose metrics are made here

from gpuhealth.model.missing import Missing

Rows = Iterable[tuple[Any, ...]]
"""Label values and, last, the value; a row whose value is missing has no sample."""


def gauge(name: str, text: str, labels: Sequence[str], rows: Rows) -> Metric:
    """The gauge gpuhealth_NAME."""
    return _filled(GaugeMetricFamily(f"gpuhealth_{name}", text, labels=labels), rows)


def counter(name: str, text: str, labels: Sequence[str], rows: Rows) -> Metric:
    """The counter gpuhealth_NAME_total."""
    return _filled(CounterMetricFamily(f"gpuhealth_{name}", text, labels=labels), rows)


def _filled(family: Any, rows: Rows) -> Metric:
    for *values, value in rows:
        if not isinstance(value, Missing):
            family.add_metric([_label(each) for each in values], float(value))
    metric: Metric = family
    return metric


def _label(value: object) -> str:
    """A label's text. Half of a surrogate pair, which bytes that are no UTF-8 leave behind, has no UTF-8: \\udcff."""
    return str(value).encode(errors="backslashreplace").decode()
