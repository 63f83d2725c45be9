"""The monitor of the host."""

from __future__ import annotations

from gpuhealth.model.component import Component, ComponentInfo, Kind
from gpuhealth.model.missing import Missing
from gpuhealth.monitors.host.checks import CHECK, Context
from gpuhealth.monitors.host.metrics import METRICS
from gpuhealth.monitors.host.probe import read_disks
from gpuhealth.monitors.host.readings import HostReadings
from gpuhealth.monitors.host.settings import HostSettings
from gpuhealth.monitors.monitor import FunctionProbe, Monitor, MonitorFacts, NoBaseline, ProbeContext


def _probe(context: ProbeContext[HostSettings, NoBaseline]) -> FunctionProbe[HostReadings, HostSettings]:
    proc = context.core.roots.proc
    return FunctionProbe(lambda settings: read_disks(proc, settings.host.root), context.settings)


def _facts(context: Context) -> MonitorFacts:
    if isinstance(context.readings, Missing):
        return MonitorFacts()
    points = context.readings.disks
    return MonitorFacts(
        components=tuple(ComponentInfo(component=Component(Kind.MOUNT, point)) for point in points),
        complete=frozenset({Kind.MOUNT}),
    )


MONITOR = Monitor(
    name="host",
    summary="Space and inodes of the host's local disks.",
    readings=HostReadings,
    settings=HostSettings,
    baseline=NoBaseline,
    probe=_probe,
    checks=(CHECK,),
    facts=_facts,
    metrics=METRICS,
)
