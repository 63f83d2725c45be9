"""What the controller says of the node's GPUs."""

from __future__ import annotations

import pytest
from testing.readings import gpu, judged, node, uuid

from gpuhealth.controller.duties.outlier_publisher import annotation
from gpuhealth.fleet.comparison import MISMATCH, SLOW, Outlier
from gpuhealth.model.finding import Severity
from gpuhealth.model.missing import NOT_SUPPORTED, Missing, MissingReason
from gpuhealth.monitors.fleet_findings import checks as subject
from gpuhealth.quarantine.marks import fleet_findings


@pytest.mark.parametrize(("code", "severity"), [(MISMATCH, Severity.CRITICAL), (SLOW, Severity.WARNING)])
def test_what_the_controller_says(code: str, severity: Severity) -> None:
    """What the controller writes to the annotation is a finding of the GPU that it names, and clean when it is gone."""
    said = annotation([Outlier("n", uuid(0), code, "differs from the others")])
    found = judged(subject.CHECK, node(gpu(0), gpu(1), fleet=fleet_findings({"gpuhealth.io/fleet-findings": said})))
    (finding,) = found.findings
    assert (finding.code, finding.gpu, finding.severity) == (code, uuid(0), severity)
    assert "differs from the others" in finding.message
    assert judged(subject.CHECK, node(gpu(0), fleet=fleet_findings({}))).is_clean(code)


def test_what_is_not_known_is_not_clean() -> None:
    """An API server that has not been reached and an annotation that says nothing readable: not checked."""
    away = Missing(MissingReason.ERROR, "our Node has not been seen yet")
    for fleet in (away, fleet_findings({"gpuhealth.io/fleet-findings": "{"})):
        assert judged(subject.CHECK, node(gpu(), fleet=fleet)).why_not(MISMATCH) is MissingReason.ERROR
    assert judged(subject.CHECK, node(gpu(), fleet=NOT_SUPPORTED)).says_nothing(MISMATCH)
