"""The monitor of fleet findings: the controller publishes them as an annotation on our Node."""

from __future__ import annotations

import msgspec

from gpuhealth.api.names import FLEET_FINDINGS
from gpuhealth.model.decoding import JSON_ERRORS
from gpuhealth.model.missing import Missing, MissingReason
from gpuhealth.monitors.fleet_findings.checks import CHECK
from gpuhealth.monitors.fleet_findings.readings import FleetFinding, FleetReadings
from gpuhealth.monitors.monitor import Monitor, NoBaseline, NoSettings, ProbeContext


class _AnnotationProbe:
    def __init__(self, context: ProbeContext[NoSettings, NoBaseline]) -> None:
        self._annotations = context.annotations

    async def read(self) -> FleetReadings | Missing:
        annotations = self._annotations()
        if isinstance(annotations, Missing):
            return annotations
        try:
            text = annotations.get(FLEET_FINDINGS, "[]")
            return FleetReadings(msgspec.json.decode(text, type=tuple[FleetFinding, ...]))
        except JSON_ERRORS as error:
            return Missing(MissingReason.ERROR, f"annotation {FLEET_FINDINGS}: {error}")

    def configure(self, _settings: NoSettings) -> None:
        pass

    def close(self) -> None:
        pass


MONITOR = Monitor(
    name="fleet_findings",
    summary="GPUs that differ from all others of their model, found by the controller.",
    readings=FleetReadings,
    settings=NoSettings,
    baseline=NoBaseline,
    probe=_AnnotationProbe,
    checks=(CHECK,),
)
