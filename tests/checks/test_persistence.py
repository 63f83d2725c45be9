"""Persistence mode."""

from __future__ import annotations

from gpuhealth.checks import persistence as subject
from gpuhealth.model import Missing, MissingReason, Severity
from gpuhealth.readings import NOT_SUPPORTED
from tests.checks.builders import gpu, judged, node


def test_off() -> None:
    """Off is a warning, on is clean, unread is not checked, not supported is nothing."""
    assert judged(subject.CHECK, node(gpu(persistence_mode=False))).severity("persistence.off") is Severity.WARNING
    assert judged(subject.CHECK, node(gpu())).is_clean("persistence.off")
    unread = gpu(persistence_mode=Missing(MissingReason.ERROR))
    assert judged(subject.CHECK, node(unread)).why_not("persistence.off") is MissingReason.ERROR
    assert judged(subject.CHECK, node(gpu(persistence_mode=NOT_SUPPORTED))).says_nothing("persistence.off")
