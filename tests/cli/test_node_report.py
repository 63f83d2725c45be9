"""`gpuhealth node` and `gpuhealth fleet` print objects with any content."""

from __future__ import annotations

import io
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from testing.odd_objects import SAMPLES, TIME, mutants

from gpuhealth.cli.fleet_report import _named, _readable_row, summarize
from gpuhealth.cli.fleet_report import show as show_fleet
from gpuhealth.cli.node_report import NodeDetails, show
from gpuhealth.cli.output import console
from gpuhealth.kube.kinds import NODES, REPORTS

FINDING = {
    "code": "xid.79",
    "severity": "critical",
    "component": {"kind": "gpu", "id": "GPU-1"},
    "message": "lost",
    "action": "reboot_node",
    "firstSeen": TIME,
    "lastSeen": TIME,
    "clearsWhen": "a new boot id",
    "evidence": {"source": "kernel log", "reading": "79", "threshold": "0"},
}
REPORT: Any = SAMPLES[REPORTS] | {
    "status": SAMPLES[REPORTS]["status"]
    | {"worst": "xid.79", "findings": [FINDING], "notChecked": [{"check": "a", "reason": "b"}]}
}
EVENT = {"count": 2, "lastTimestamp": TIME, "reason": "Fault", "message": "m"}


@given(report=mutants(REPORT))
@settings(max_examples=300)
def test_node_shows_what_can_be_read(report: Any) -> None:
    """Every section that can be read is printed; the others say that they cannot be read."""
    status = report.get("status")
    status = status if isinstance(status, dict) else {}
    out = io.StringIO()
    details = NodeDetails(
        node="a",
        condition={"type": "GPUHealthy", "status": "True"},
        state="healthy",
        taint="",
        cordoned=False,
        annotations={},
        budgets=[{"name": "b"}],
        report=status,
        events=[EVENT],
    )
    show(console(out), details)
    assert "Last Events:" in out.getvalue()


@given(node=mutants(SAMPLES[NODES]), report=mutants(REPORT), first=st.booleans())
@settings(max_examples=300)
def test_fleet_shows_every_node(node: Any, report: Any, first: bool) -> None:
    """A node whose objects cannot be read has a row that says so, and does not hide the others."""
    good = dict([_named(REPORT), _named(report)] if first else [_named(report), _named(REPORT)])
    rows = [row for row in (_readable_row(node, good, ()), _readable_row(SAMPLES[NODES], good, ())) if row is not None]
    assert "a" in {row.node for row in rows}
    assert all(row.unreadable.startswith(("Node ", "GPUHealthReport ")) for row in rows if row.unreadable)
    show_fleet(console(io.StringIO()), summarize("", rows))


@pytest.mark.parametrize("place", ["firstSeen", "lastSeen", "action", "message", "code", "clearsWhen"])
def test_node_prints_no_control_characters(place: str) -> None:
    """Nothing in a report controls the terminal on which it is shown."""
    escape = "\x1b[31m\x85"
    report = {"agentVersion": escape, "inventory": {"driver": escape}, "findings": [FINDING | {place: escape}]}
    details = NodeDetails(
        node=escape,
        condition={"type": "GPUHealthy", "status": "True", "message": escape},
        state=escape,
        taint=escape,
        cordoned=False,
        annotations={"override": escape},
        budgets=[],
        report=report,
        events=[EVENT | {"message": escape}],
    )
    out = io.StringIO()
    show(console(out), details)
    assert out.getvalue().replace("\n", "").isprintable()
