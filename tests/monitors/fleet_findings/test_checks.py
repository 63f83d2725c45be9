"""What the controller says of the node's GPUs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest
from testing.readings import gpu, judged, node, uuid

from gpuhealth.api.names import FLEET_FINDINGS
from gpuhealth.controller.duties.outlier_publisher import annotation
from gpuhealth.fleet.comparison import MISMATCH, SLOW, Outlier
from gpuhealth.model.component import gpu as gpu_component
from gpuhealth.model.finding import Severity
from gpuhealth.model.missing import NOT_SUPPORTED, Missing, MissingReason, Reading
from gpuhealth.monitors.fleet_findings import checks as subject
from gpuhealth.monitors.fleet_findings.monitor import MONITOR
from gpuhealth.monitors.fleet_findings.readings import FleetReadings
from gpuhealth.monitors.monitor import NoBaseline, NoSettings, ProbeContext
from gpuhealth.monitors.settings import Settings


def read(annotations: Reading[Mapping[str, str]]) -> FleetReadings | Missing:
    """What the monitor reads on a Node with these annotations."""
    context = ProbeContext(
        core=Settings(), settings=NoSettings(), baseline=NoBaseline(), annotations=lambda: annotations
    )
    return asyncio.run(MONITOR.probe(context).read())


@pytest.mark.parametrize(("code", "severity"), [(MISMATCH, Severity.CRITICAL), (SLOW, Severity.WARNING)])
def test_what_the_controller_says(code: str, severity: Severity) -> None:
    """What the controller writes to the annotation is a finding of the GPU that it names, and clean when it is gone."""
    said = annotation([Outlier("n", uuid(0), code, "differs from the others")])
    found = judged(subject.CHECK, node(gpu(0), gpu(1), fleet=read({"gpuhealth.io/fleet-findings": said})))
    (finding,) = found.findings
    assert (finding.code, finding.component, finding.severity) == (code, gpu_component(uuid(0)), severity)
    assert "differs from the others" in finding.message
    assert found.is_clean(code, uuid(1))
    assert judged(subject.CHECK, node(gpu(0), fleet=read({}))).is_clean(code)


def test_what_is_not_known_is_not_clean() -> None:
    """An API server that has not been reached and an annotation that says nothing readable: not checked."""
    away = Missing(MissingReason.ERROR, "our Node has not been seen yet")
    for fleet in (read(away), read({"gpuhealth.io/fleet-findings": "{"})):
        assert judged(subject.CHECK, node(gpu(), fleet=fleet)).why_not(MISMATCH) is MissingReason.ERROR
    assert judged(subject.CHECK, node(gpu(), fleet=read(NOT_SUPPORTED))).says_nothing(MISMATCH)


@pytest.mark.parametrize("text", ["", "null", '{"code": "fleet.slow_gpu"}', '[{"code": 1}]', "[" * 5000])
def test_an_annotation_that_somebody_has_changed(text: str) -> None:
    """Whatever it holds, it is named with the reason, and the round goes on."""
    reading = read({FLEET_FINDINGS: text})
    assert isinstance(reading, Missing)
    assert reading.reason is MissingReason.ERROR
    assert FLEET_FINDINGS in reading.detail
