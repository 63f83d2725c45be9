"""Persistence mode."""

from __future__ import annotations

from testing.readings import gpu, judged, node

from gpuhealth.model.finding import Severity
from gpuhealth.model.missing import NOT_SUPPORTED, Missing, MissingReason
from gpuhealth.monitors.nvidia.checks import persistence as subject


def test_off() -> None:
    """Off is a warning, on is clean, unread is not checked, not supported is nothing."""
    assert judged(subject.CHECK, node(gpu(persistence_mode=False))).severity("persistence.off") is Severity.WARNING
    assert judged(subject.CHECK, node(gpu())).is_clean("persistence.off")
    unread = gpu(persistence_mode=Missing(MissingReason.ERROR))
    assert judged(subject.CHECK, node(unread)).why_not("persistence.off") is MissingReason.ERROR
    assert judged(subject.CHECK, node(gpu(persistence_mode=NOT_SUPPORTED))).says_nothing("persistence.off")
