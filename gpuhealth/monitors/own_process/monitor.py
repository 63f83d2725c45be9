"""The monitor of the agent's own process."""

from __future__ import annotations

from gpuhealth.model.missing import Missing
from gpuhealth.monitors.monitor import FunctionProbe, Monitor, NoBaseline, NoSettings, ProbeContext
from gpuhealth.monitors.own_process.checks import CHECK
from gpuhealth.monitors.own_process.readings import OwnProcessReadings
from gpuhealth.runtime.files import file_missing
from gpuhealth.runtime.single_instance import refused_instance


def _probe(context: ProbeContext[NoSettings, NoBaseline]) -> FunctionProbe[OwnProcessReadings, NoSettings]:
    folder = context.core.journal.path.parent

    def read(_: NoSettings) -> OwnProcessReadings | Missing:
        try:
            return OwnProcessReadings(refused_instance(folder))
        except OSError as error:
            return file_missing(error)

    return FunctionProbe(read, context.settings)


MONITOR = Monitor(
    name="own_process",
    summary="Whether a second agent was started on the node.",
    readings=OwnProcessReadings,
    settings=NoSettings,
    baseline=NoBaseline,
    probe=_probe,
    checks=(CHECK,),
)
