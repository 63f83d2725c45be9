"""Records of the kernel log from before the agent's start are judged before its first verdict, at their own times."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from kube import ControlPlane
from testing.marked_node import Marked
from testing.waiting import wait_for

AGO = 300.0


@pytest.fixture
def marked(plane: ControlPlane, tmp_path: Path) -> Iterator[Marked]:
    """A node with a budget for it, whose agent looks back as by default."""
    made = Marked(plane, tmp_path)
    made.sim.configure({"kmsg": {"lookback": "600s", "since_boot": True}, "findings": {"*": {"raise_after": 0}}})
    made.budget(1)
    yield made
    made.sim.stop()


def old_records(number: int) -> str:
    """So many records of the kernel log from before the agent's start."""
    micros = (time.monotonic() - AGO) * 1e6
    return "".join(f"6,{sequence},{micros:.0f},-;usb 1-1: new device\n" for sequence in range(number))


def published(marked: Marked, since: int) -> set[str]:
    """The reasons that the agent has given since a position of the audit log, in conditions and Events."""
    found = set()
    for event in marked.plane.audit(marked.name, since):
        body: dict[str, Any] = event.get("requestObject") or {}
        found |= {condition["reason"] for condition in (body.get("status") or {}).get("conditions", [])}
        if body.get("kind") == "Event" or "involvedObject" in body:
            found.add(body["reason"])
    return found


def age(time: str) -> float:
    """Seconds since a time of the API."""
    return (datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds()


@pytest.mark.parametrize("known", [True, False], ids=["restart", "first start"])
def test_a_fault_that_was_logged_without_an_agent(marked: Marked, known: bool) -> None:
    """It is published at once, with the time of its record; the node is never called healthy before."""
    node = marked.sim
    if known:
        node.start()
        wait_for("healthy", lambda: marked.report().get("verdict") == "healthy")
        node.stop()
    since = marked.plane.audit_position()
    node.kmsg.write_text(old_records(20_000))
    node._sequence = 20_000
    node.xid(79, gpu=3, text="GPU has fallen off the bus.", seconds_ago=AGO)
    node.start()
    wait_for("the taint", lambda: marked.taint() == "xid.79")
    wait_for("the report", lambda: marked.quarantine() == "quarantined")
    wait_for("the condition", lambda: marked.condition() == ("False", "Xid79"))
    reasons = published(marked, since)
    assert "Healthy" not in reasons
    (finding,) = marked.report()["findings"]
    assert AGO - 5 <= age(finding["firstSeen"]) < AGO + 120
    assert finding["firstSeen"] == finding["evidence"]["time"]
