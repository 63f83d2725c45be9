"""The running agent whose journal is lost while its node is out of service, on a real API server."""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from kube import ControlPlane
from testing.marked_node import XID_95, Marked, leave_burnin
from testing.simnode import SimulatedNode, entries, rounds
from testing.waiting import wait_for

from gpuhealth.model.burnin_run import TestStatus

LOST = "quarantine.memory_lost"


def deleted(sim: SimulatedNode) -> None:
    """An emptyDir that went with its pod, or a disk that was set up again."""
    for path in sim.folder.glob("journal.sqlite*"):
        path.unlink()


def truncated(sim: SimulatedNode) -> None:
    """A full disk, or a power cut."""
    for path in sim.folder.glob("journal.sqlite-*"):
        path.unlink()
    journal = sim.folder / "journal.sqlite"
    journal.write_bytes(journal.read_bytes()[:100])


def spoiled(sim: SimulatedNode, value: object = b'{"tracked": 7}') -> None:
    """A version that writes something else, or a flipped bit."""
    with sqlite3.connect(sim.folder / "journal.sqlite") as journal:
        journal.execute("UPDATE state SET value = ? WHERE key = 'findings'", (value,))
    journal.close()


def spoiled_as_text(sim: SimulatedNode) -> None:
    """An edit by hand, which leaves text where the agent writes bytes."""
    spoiled(sim, "nothing")


@pytest.fixture
def marked(plane: ControlPlane, tmp_path: Path) -> Iterator[Marked]:
    """A node that is out for an XID that only a reboot or a reset ends, and whose agent has stopped."""
    made = Marked(plane, tmp_path)
    made.budget(1)
    with made.sim as sim:
        wait_for("a healthy condition", lambda: made.condition() == ("True", "Healthy"))
        sim.xid(95, gpu=2, text=XID_95)
        wait_for("the taint", lambda: made.taint() == "xid.95")
        wait_for("the report", lambda: made.quarantine() == "quarantined")
        wait_for("the journal", lambda: ("raised", "xid.95") in entries(sim))
    yield made
    made.sim.stop()
    made.remove()


def stays_out(marked: Marked) -> None:
    """The agent has judged the node many times, and it is out."""
    wait_for("the taint", lambda: marked.taint() == LOST)
    began = rounds(marked.sim)
    wait_for("rounds", lambda: rounds(marked.sim) > began + 30)
    assert marked.taint() == LOST
    assert marked.condition() == ("False", "QuarantineMemoryLost")


@pytest.mark.parametrize("lose", [deleted, truncated, spoiled, spoiled_as_text])
def test_a_lost_journal_returns_no_node(marked: Marked, lose: Callable[[SimulatedNode], None]) -> None:
    """The node stays out and says why in condition, report and log; a person's `gpuhealth restore` returns it."""
    lose(marked.sim)
    with marked.sim as sim:
        stays_out(marked)
        wait_for("the report", lambda: [each["code"] for each in marked.report()["findings"]] == [LOST])
        (finding,) = marked.report()["findings"]
        assert "xid.95" in finding["message"]
        assert (
            finding["clearsWhen"] == "the node has rebooted, a later burn-in has passed, or a person restores the node"
        )
        assert any("stored" in line["event"] or "set aside" in line["event"] for line in sim.log())
        marked.annotate("gpuhealth.io/restored", datetime.now(UTC).isoformat())
        wait_for("the taint to go", lambda: marked.taint() is None)
        wait_for("a healthy condition", lambda: marked.condition() == ("True", "Healthy"))


def test_lost_again(marked: Marked) -> None:
    """What an agent without memory has written keeps the node out when that one's memory is lost as well."""
    for _ in range(2):
        deleted(marked.sim)
        with marked.sim:
            stays_out(marked)
            wait_for("the report", lambda: "xid.95" in str(marked.report().get("findings")))


def test_a_reboot_returns_it(marked: Marked) -> None:
    """A boot after the one in which it was taken out does: a GPU that is reset and reads well has proven it."""
    deleted(marked.sim)
    boot = marked.sim.driver.root / "proc/sys/kernel/random/boot_id"
    boot.write_text(f"{uuid.uuid4()}\n")
    with marked.sim:
        wait_for("the taint to go", lambda: marked.taint() is None)
        wait_for("a healthy condition", lambda: marked.condition() == ("True", "Healthy"))


def test_a_burnin_returns_it(marked: Marked) -> None:
    """One that passed on the GPU that was at fault; another GPU's proves nothing."""
    deleted(marked.sim)
    with marked.sim as sim:
        wait_for("the taint", lambda: marked.taint() == LOST)
        leave_burnin(sim, 3, TestStatus.PASSED)
        stays_out(marked)
        leave_burnin(sim, 2, TestStatus.PASSED)
        wait_for("the taint to go", lambda: marked.taint() is None)


def test_with_its_journal_it_clears_as_ever(marked: Marked) -> None:
    """An agent that was merely restarted remembers: nothing is recalled, and a reset of the GPU ends the fault."""
    with marked.sim as sim:
        sim.driver.inject("recovery_action", gpu=2, value=1)
        wait_for("the reset asked for", lambda: "gpu.recovery_action" in sim.findings())
        sim.driver.clear()
        wait_for("the taint to go", lambda: marked.taint() is None)
        assert LOST not in {code for _, code in entries(sim)}


def test_found_again(marked: Marked) -> None:
    """A lost fault that is detected again becomes an ordinary finding."""
    deleted(marked.sim)
    with marked.sim as sim:
        wait_for("the taint", lambda: marked.taint() == LOST)
        sim.xid(95, gpu=2, text=XID_95)
        wait_for("the fault's own taint", lambda: marked.taint() == "xid.95")
        assert sim.findings() == {"xid.95"}


def test_a_record_of_an_older_version(marked: Marked) -> None:
    """It names neither boot nor GPU: the node stays out through a reboot that nobody can know of."""
    deleted(marked.sim)
    old = '{"code":"xid.95","since":"2026-03-01T12:00:00Z","cordoned":false}'
    marked.annotate("gpuhealth.io/quarantine", old)
    (marked.sim.driver.root / "proc/sys/kernel/random/boot_id").write_text(f"{uuid.uuid4()}\n")
    with marked.sim:
        stays_out(marked)


@pytest.mark.parametrize("text", ["garbage", "{}", '{"code":"xid.95","since":"0001-01-01T00:00:00+14:00"}', "[" * 9000])
def test_a_record_that_nobody_can_read(marked: Marked, text: str) -> None:
    """What is on the Node may be ours or not, so it stays, and so does the budget's slot."""
    deleted(marked.sim)
    marked.annotate("gpuhealth.io/quarantine", text)
    with marked.sim as sim:
        began = rounds(sim)
        wait_for("rounds", lambda: rounds(sim) > began + 30)
        assert marked.taint() == "xid.95"
        leases = marked.plane.request("GET", "/apis/coordination.k8s.io/v1/namespaces/gpuhealth/leases")["items"]
        assert [each["metadata"]["name"] for each in leases if each["spec"]["holderIdentity"] == marked.name]


def test_a_person_who_removes_the_taint_ends_it(marked: Marked) -> None:
    """While it is out for a forgotten fault, as for any other."""
    deleted(marked.sim)
    with marked.sim as sim:
        wait_for("the taint", lambda: marked.taint() == LOST)
        marked.pool.dismiss(marked.name)
        wait_for("the end", lambda: sim.findings() == set())
        wait_for("a healthy condition", lambda: marked.condition() == ("True", "Healthy"))
        assert marked.taint() is None
