"""The agent's very first start on a node that has been up for long: old faults are found once, not after their end."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from testing.simnode import QUICK, SimulatedNode, entries, healthy
from testing.waiting import wait_for

from gpuhealth.model.tracker_state import TrackerState
from gpuhealth.runtime.journal import Journal

OLD = 7200.0  # seconds; the look-back is 600
TO_RESET = "GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)"
TO_NONE = "GPU recovery action changed from 0x1 (GPU Reset Required) to 0x0 (None)"


@pytest.fixture
def node(tmp_path: Path) -> SimulatedNode:
    """A node that has been up for hours, and whose driver does not report the recovery action of a GPU."""
    made = SimulatedNode(tmp_path, gpus=4, settings=QUICK)
    made.driver.set({f"gpu{index}.supports.recovery_action": 0 for index in range(4)})
    made.kernel_says("Linux version 6.8.0", seconds_ago=2 * OLD)
    return made


def raised(node: SimulatedNode, code: str) -> int:
    """How often the journal has the finding as raised."""
    return entries(node).count(("raised", code))


def test_an_old_fault_is_found_once_and_not_after_its_end(node: SimulatedNode) -> None:
    """The first start raises an old XID with its own time; later starts neither repeat it nor raise it once cleared."""
    node.xid(119, gpu=1, seconds_ago=OLD)
    node.xid(31, gpu=1, seconds_ago=OLD)
    with node:
        wait_for("the old fault", lambda: "xid.119" in node.findings())
        wait_for("the journal", lambda: raised(node, "xid.119"))
        assert node.findings() == {"xid.119"}
        assert ("kernel", "xid.31") not in entries(node)
    journal = Journal(node.folder / "journal.sqlite", 1e9, 1000, read_only=True)
    state = msgspec.json.decode(journal.stored("findings") or b"", type=TrackerState)
    quarantined = {tracked.finding.code: tracked.finding for tracked in state.tracked}
    journal.close()
    age = datetime.now(UTC) - quarantined["xid.119"].first_seen
    assert abs(age - timedelta(seconds=OLD)) < timedelta(minutes=5)
    with node:
        assert node.findings() == {"xid.119"}
        node.xid(154, gpu=1, text=TO_RESET)
        wait_for("the request", lambda: "xid.154" in node.findings())
        node.xid(154, gpu=1, text=TO_NONE)
        wait_for("the end", lambda: not node.findings())
    with node:
        wait_for("healthy", lambda: healthy(node))
        assert node.findings() == set()
    assert raised(node, "xid.119") == 1


def test_a_node_that_was_repaired_before_is_healthy(node: SimulatedNode) -> None:
    """A load of the driver after the old fault, or a GPU that proves to be sound, ends it before the first verdict."""
    node.driver.set({"gpu2.supports.recovery_action": 1})
    node.xid(119, gpu=2, seconds_ago=OLD)
    node.xid(79, gpu=1, seconds_ago=OLD)
    node.kernel_says("NVRM: loading NVIDIA UNIX x86_64 Kernel Module  570.86.15", seconds_ago=OLD - 1)
    node.xid(95, gpu=3, seconds_ago=3.0)
    with node:
        wait_for("the recent one", lambda: "xid.95" in node.findings())
        assert node.findings() == {"xid.95"}
        over = {line["code"] for line in node.log() if line.get("event") == "earlier fault is over"}
    assert over == {"xid.119", "xid.79"}


def test_records_that_are_gone_are_logged(node: SimulatedNode) -> None:
    """At its first start the agent logs that the ring buffer has lost the beginning of this boot."""
    node.kmsg.write_text("6,500,1000000,-;usb 1-1: new device\n")
    with node:
        gone = wait_for(
            "the log line", lambda: next((e for e in node.log() if "records of this boot" in e["event"]), None)
        )
    assert gone["begins"]
