"""Lines from public reports mean the same as they meant to the people who reported them."""

from __future__ import annotations

import pytest
from testing.public_reports import REPORTS, Report

from gpuhealth.kernel_log.formats import KernelLogText
from gpuhealth.model.finding import Severity
from gpuhealth.monitors.registry import kernel_log_parser

_ORDER = (Severity.INFO, Severity.WARNING, Severity.CRITICAL)


@pytest.mark.parametrize("report", REPORTS, ids=[f"{number}" for number in range(len(REPORTS))])
def test_the_meaning(report: Report) -> None:
    """The worst event in the lines has the finding, severity, action and address that the fault calls for."""
    log = KernelLogText(kernel_log_parser())
    events = [found.event for found in log.events(report.text.splitlines(keepends=True))]
    worst = max(events, key=lambda event: _ORDER.index(event.severity), default=None)
    expected = (report.finding, report.severity, report.action, report.pci) if report.finding else None
    assert (worst and (worst.finding, worst.severity, worst.action, worst.pci)) == expected
    assert log.unread == 0
