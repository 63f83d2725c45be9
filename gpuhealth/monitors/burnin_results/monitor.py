"""The monitor of burn-in results."""

from __future__ import annotations

from gpuhealth.model.missing import Missing
from gpuhealth.monitors.burnin_results.checks import CHECK, Context
from gpuhealth.monitors.burnin_results.probe import BurninProbe
from gpuhealth.monitors.burnin_results.readings import BurninReadings
from gpuhealth.monitors.monitor import Monitor, MonitorFacts, NoBaseline, NoSettings, ProbeContext


def _probe(context: ProbeContext[NoSettings, NoBaseline]) -> BurninProbe:
    return BurninProbe(context.core.burnin.results_dir)


def _facts(context: Context) -> MonitorFacts:
    return MonitorFacts(burnins=() if isinstance(context.readings, Missing) else context.readings.runs)


MONITOR = Monitor(
    name="burnin_results",
    summary="Results of burn-ins stored on the node.",
    readings=BurninReadings,
    settings=NoSettings,
    baseline=NoBaseline,
    probe=_probe,
    checks=(CHECK,),
    facts=_facts,
)
