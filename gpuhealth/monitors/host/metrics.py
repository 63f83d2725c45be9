"""Metrics of the host's disks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

from prometheus_client.core import Metric

from gpuhealth.model.missing import Missing
from gpuhealth.monitors.host import metric_names as own
from gpuhealth.monitors.host.readings import HostReadings
from gpuhealth.monitors.host.settings import HostSettings
from gpuhealth.monitors.monitor import MetricsContext
from gpuhealth.runtime.metric_families import family

Context: TypeAlias = MetricsContext[HostReadings, HostSettings]


def _disks(context: Context) -> Iterator[Metric]:
    readings = context.readings
    disks = {} if isinstance(readings, Missing) else readings.disks
    known = [(point, space) for point, space in disks.items() if not isinstance(space, Missing)]
    free = [(point, space.free_percent / 100.0) for point, space in known]
    yield family(own.DISK_FREE, free)
    inodes = [(point, space.free_inodes_percent / 100.0) for point, space in known]
    yield family(own.DISK_FREE_INODES, inodes)


METRICS: dict[str, Callable[[Context], Iterator[Metric]]] = {"host_disks": _disks}
