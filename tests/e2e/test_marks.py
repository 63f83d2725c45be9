"""The running agent on a real API server, with the rights that its manifest gives it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kube import ControlPlane
from testing.kernel_log_lock import kernel_log_lock
from testing.marked_node import XID_95, Marked, leave_burnin
from testing.simnode import IMPATIENT, REAL_KMSG, entries
from testing.waiting import wait_for

from gpuhealth.model.burnin_run import TestStatus


@pytest.fixture
def marked(plane: ControlPlane, tmp_path: Path) -> Iterator[Marked]:
    """A node whose agent the test starts."""
    made = Marked(plane, tmp_path)
    yield made
    made.sim.driver.release()
    made.sim.stop()
    made.remove()


def test_a_kernel_fault_marks_the_node_and_a_reset_clears_it(marked: Marked) -> None:
    """An XID taints the Node with its reason, in condition, label and report; a reset of the GPU takes all away."""
    marked.budget(1)
    with marked.sim as sim:
        wait_for("a healthy condition", lambda: marked.condition() == ("True", "Healthy"))
        sim.xid(95, gpu=2, text=XID_95)
        wait_for("the taint", lambda: marked.taint() == "xid.95")
        wait_for("the condition", lambda: marked.condition() == ("False", "Xid95"))
        assert marked.node()["metadata"]["labels"]["gpuhealth.io/state"] == "quarantined"
        wait_for("the report", lambda: marked.quarantine() == "quarantined")
        (finding,) = marked.report()["findings"]
        component = {"kind": "gpu", "id": sim.driver.text("gpu2.uuid")}
        assert (finding["code"], finding["component"]) == ("xid.95", component)
        assert XID_95 in finding["evidence"]["line"]
        sim.driver.inject("recovery_action", gpu=2, value=1)
        wait_for("the reset asked for", lambda: "gpu.recovery_action" in sim.findings())
        sim.driver.clear()
        wait_for("the taint to go", lambda: marked.taint() is None)
        wait_for("a healthy condition", lambda: marked.condition() == ("True", "Healthy"))
        leases = "/apis/coordination.k8s.io/v1/namespaces/gpuhealth/leases"
        wait_for(
            "the place given back",
            lambda: marked.name not in str([each["spec"] for each in marked.plane.request("GET", leases)["items"]]),
        )


def test_a_node_is_tested_before_it_returns(marked: Marked) -> None:
    """With test_before_return a node that recovered stays out until every asked-for test has passed, over restarts."""
    marked.budget(1)
    marked.sim.configure({"quarantine": {"test_before_return": True}})
    with marked.sim as sim:
        sim.driver.inject("remap_failed", gpu=2)
        wait_for("the taint", lambda: marked.taint() == "gpu_memory.remap_failed")
        sim.driver.clear()
        wait_for("the requirement", lambda: marked.taint() == "burnin.required")
        wait_for("the report", lambda: marked.quarantine() == "awaiting_test")
        assert marked.node()["metadata"]["labels"]["gpuhealth.io/state"] == "quarantined"
        leave_burnin(sim, 2, TestStatus.FAILED)
        wait_for("the failed test", lambda: {"burnin.exact", "burnin.required"} <= sim.findings())
    with marked.sim as sim:
        wait_for("both after a restart", lambda: {"burnin.exact", "burnin.required"} <= sim.findings())
        assert marked.taint() is not None
        leave_burnin(sim, 2, TestStatus.PASSED)
        wait_for("the taint to go", lambda: marked.taint() is None)
        wait_for("a healthy condition", lambda: marked.condition() == ("True", "Healthy"))
        gpu = sim.driver.text("gpu2.uuid")  # the report is written last
        wait_for("the history", lambda: _statuses(marked.report(), gpu) == ["passed", "failed"])


def test_a_person_may_take_it_back_untested(marked: Marked) -> None:
    """Who removes the taint ends the requirement with it; nothing is left of either."""
    marked.budget(1)
    marked.sim.configure({"quarantine": {"test_before_return": True}})
    with marked.sim as sim:
        sim.driver.inject("remap_failed", gpu=2)
        wait_for("the taint", lambda: marked.taint() == "gpu_memory.remap_failed")
        sim.driver.clear()
        wait_for("the requirement", lambda: marked.taint() == "burnin.required")
        marked.pool.dismiss(marked.name)
        wait_for("a healthy condition", lambda: marked.condition() == ("True", "Healthy"))
        wait_for("no word of it", lambda: "gpuhealth.io/dismissed" not in str(marked.node()["metadata"]))
        assert marked.taint() is None


def test_a_program_that_removes_the_taint(marked: Marked) -> None:
    """The running agent puts it back by itself, also after a restart without its journal; a person ends it."""
    marked.budget(1)
    marked.sim.configure({"quarantine": {"put_back_after": "500ms"}})
    removed = 'gpuhealth_marks_removed_total{by="%s"}'
    with marked.sim as sim:
        sim.driver.inject("remap_failed", gpu=2)
        wait_for("the taint", lambda: marked.taint() == "gpu_memory.remap_failed")
        marked.program_untaints()
        wait_for("the removal counted", lambda: sim.metric(removed % "program") == 1)
        wait_for("the taint again", lambda: marked.taint() == "gpu_memory.remap_failed")
        wait_for("the report", lambda: marked.quarantine() == "quarantined")
    (marked.sim.folder / "journal.sqlite").unlink()
    marked.program_untaints()
    with marked.sim as sim:
        wait_for("the taint again", lambda: marked.taint() is not None)
        wait_for("the report", lambda: marked.quarantine() == "quarantined")
        assert sim.metric(removed % "person") == 0
        marked.pool.dismiss(marked.name)
        wait_for("the end", lambda: marked.quarantine() == "dismissed")
        wait_for("the removal counted", lambda: sim.metric(removed % "person") == 1)
        assert marked.taint() is None


def _statuses(report: dict[str, Any], gpu: str) -> list[str]:
    """Of the runs on a GPU, the latest first."""
    tested = (report.get("burnin") or {}).get("gpus", {}).get(gpu, {})
    return [each["status"] for each in tested.get("history", [])]


def test_without_a_budget_nothing_is_tainted(marked: Marked) -> None:
    """Without a budget only the condition changes and the node stays in service; creating a budget adds the taint."""
    with marked.sim as sim:
        sim.driver.inject("remap_failed", gpu=0)
        wait_for("the condition", lambda: marked.condition() == ("False", "GpuMemoryRemapFailed"))
        wait_for("the report", lambda: marked.quarantine() == "blocked")
        assert marked.taint() is None
        marked.budget(1)
        wait_for("the taint", lambda: marked.taint() == "gpu_memory.remap_failed")


def test_a_healthy_node_writes_nothing(marked: Marked) -> None:
    """After its first marks an agent sends no write over many rounds."""
    marked.budget(1)
    with marked.sim:
        wait_for("a healthy condition", lambda: marked.condition() == ("True", "Healthy"))
        wait_for("the report", lambda: marked.report().get("verdict") == "healthy")
        wait_for("rates, which need some rounds", lambda: marked.is_silent(for_rounds=10))
        assert marked.writes_during(for_rounds=40) == []


def test_a_driver_that_is_slower_than_the_interval_is_no_news(marked: Marked) -> None:
    """Rounds that take longer than they should are whole all the same, and nothing is written of them."""
    marked.sim.configure({"interval": "50ms"})
    marked.sim.driver.inject("slow", gpu=7, ms=5)
    with marked.sim as sim:
        wait_for("a healthy condition", lambda: marked.condition() == ("True", "Healthy"))
        wait_for("silence", lambda: marked.is_silent(for_rounds=10))
        assert (sim.metric('gpuhealth_agent_round_seconds{monitor="nvidia"}') or 0.0) > 0.2


def test_what_the_controller_finds_takes_the_way_of_every_finding(marked: Marked) -> None:
    """A GPU that the fleet's comparison names is tainted for, within the budget; when it is not named it is well."""
    marked.budget(1)
    path, merge = f"/api/v1/nodes/{marked.name}", "application/merge-patch+json"
    with marked.sim as sim:
        wait_for("a healthy condition", lambda: marked.condition() == ("True", "Healthy"))
        gpu = sim.driver.text("gpu5.uuid")
        said = [{"code": "fleet.digest_mismatch", "gpu": gpu, "message": "differs from 99 of 100"}]
        note = {"metadata": {"annotations": {"gpuhealth.io/fleet-findings": json.dumps(said)}}}
        marked.plane.request("PATCH", path, note, content_type=merge)
        wait_for("the taint", lambda: marked.taint() == "fleet.digest_mismatch")
        wait_for("the report", lambda: [f["component"]["id"] for f in marked.report().get("findings", [])] == [gpu])
        none = {"metadata": {"annotations": {"gpuhealth.io/fleet-findings": None}}}
        marked.plane.request("PATCH", path, none, content_type=merge)
        wait_for("the taint to go", lambda: marked.taint() is None)


def test_a_fault_during_an_outage_is_acted_on_afterwards(marked: Marked) -> None:
    """While the API server is away the fault is journalled and shown; when it is back the node is marked."""
    marked.budget(1)
    with marked.sim as sim:
        wait_for("a healthy condition", lambda: marked.condition() == ("True", "Healthy"))
        marked.plane.pause()
        try:
            sim.xid(95, gpu=1, text=XID_95)
            wait_for("the finding", lambda: "xid.95" in sim.findings())
            wait_for("the journal", lambda: ("raised", "xid.95") in entries(sim))
        finally:
            marked.plane.resume()
        wait_for("the taint", lambda: marked.taint() == "xid.95")


def test_a_hang_is_reported_with_the_gpus_that_are_known(marked: Marked) -> None:
    """While NVML hangs, from the agent's start on too, Node and report say so, and the inventory is what it was."""
    with marked.sim as sim:
        wait_for("a report of all GPUs", lambda: len(marked.report().get("inventory", {}).get("gpus", [])) == 8)
        sim.stop()
        sim.driver.inject("hang")
        sim.configure(IMPATIENT)
        sim.start()
        wait_for("the condition", lambda: marked.condition() == ("False", "DriverUnresponsive"))
        wait_for("the report", lambda: marked.report().get("worst") == "driver.unresponsive")
        assert len(marked.report()["inventory"]["gpus"]) == 8
        sim.driver.release()
        wait_for("a healthy condition", lambda: marked.condition() == ("True", "Healthy"))


def test_an_agent_that_was_killed_takes_up_where_it_was(marked: Marked) -> None:
    """Killed right after a fault, the next agent has the node marked once, with one place."""
    marked.budget(1)
    marked.sim.configure({"kmsg": {"lookback": "1h"}})  # it may be killed before it has noted where it was
    marked.sim.start()
    marked.sim.xid(95, gpu=1, text=XID_95)
    wait_for("the finding", lambda: "xid.95" in marked.sim.findings())
    marked.sim.stop(signal.SIGKILL)
    with marked.sim:
        wait_for("the taint", lambda: marked.taint() == "xid.95")
        leases = marked.plane.request("GET", "/apis/coordination.k8s.io/v1/namespaces/gpuhealth/leases")["items"]
        assert len([lease for lease in leases if lease["spec"].get("holderIdentity") == marked.name]) == 1


def test_what_people_say_on_the_node_holds(marked: Marked) -> None:
    """The override `healthy` ends the quarantine, and the annotation release-gpus releases the driver."""
    marked.budget(1)
    with marked.sim as sim:
        sim.driver.inject("remap_failed", gpu=0)
        wait_for("the taint", lambda: marked.taint() is not None)
        marked.annotate("gpuhealth.io/override", "healthy")
        wait_for("the taint to go", lambda: marked.taint() is None)
        marked.annotate("gpuhealth.io/release-gpus", "true")
        wait_for("the release", lambda: sim.metric("gpuhealth_agent_driver_released") == 1)
        marked.annotate("gpuhealth.io/release-gpus", None)
        wait_for("the driver again", lambda: sim.metric("gpuhealth_agent_driver_released") == 0)


def test_a_condition_that_others_change_is_written_again(marked: Marked) -> None:
    """An agent that was called silent, and is not, says so itself: by its watch, without waiting for anything."""
    with marked.sim:
        wait_for("a healthy condition", lambda: marked.condition() == ("True", "Healthy"))
        new = {"type": "GPUHealthy", "status": "Unknown", "reason": "AgentSilent", "message": "by the controller"}
        path, body = f"/api/v1/nodes/{marked.name}/status", {"status": {"conditions": [new]}}
        marked.plane.request("PATCH", path, body, content_type="application/strategic-merge-patch+json")
        wait_for("a healthy condition again", lambda: marked.condition() == ("True", "Healthy"))


def test_a_person_takes_it_out_and_brings_it_back(marked: Marked) -> None:
    """Out by annotation at once; what only a person can end is ended by one, and comes back when it is seen again."""
    marked.budget(1)
    with marked.sim as sim:
        wait_for("a healthy condition", lambda: marked.condition() == ("True", "Healthy"))
        marked.annotate("gpuhealth.io/out-of-service", "fan is loud")
        wait_for("the taint", lambda: marked.taint() == "manual")
        marked.annotate("gpuhealth.io/out-of-service", None)
        wait_for("the taint to go", lambda: marked.taint() is None)
        for gpu, restored in ((1, "2099-03-01T12:00:00Z"), (2, "2099-03-01T12:00:01Z")):  # by a clock that is fast
            sim.xid(95, gpu=gpu, text=XID_95)
            wait_for("the taint", lambda: marked.taint() == "xid.95")
            marked.annotate("gpuhealth.io/restored", restored)
            wait_for("the taint to go", lambda: marked.taint() is None)
        wait_for("the journal", lambda: ("cleared", "xid.95") in entries(sim))


@pytest.mark.skipif(not os.access(REAL_KMSG, os.W_OK), reason="/dev/kmsg cannot be written here")
def test_the_real_kernel_log(plane: ControlPlane, tmp_path: Path) -> None:
    """A line written to this machine's own kernel log taints the Node."""
    marked = Marked(plane, tmp_path, REAL_KMSG)
    marked.budget(1)
    try:
        with kernel_log_lock(), marked.sim as sim:
            wait_for("a healthy condition", lambda: marked.condition()[0] == "True")
            sim.xid(95, gpu=5, text=XID_95)
            wait_for("the taint", lambda: marked.taint() == "xid.95")
    finally:
        marked.remove()
