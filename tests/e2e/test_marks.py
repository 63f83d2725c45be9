"""The running agent on a real API server, with the rights that its manifest gives it."""

from __future__ import annotations

import itertools
import json
import os
import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from kube import ControlPlane
from kube.control_plane import RequestError
from testing.burnin_results import START, result, run
from testing.simnode import REAL_KMSG, SimulatedNode, wait_for

from gpuhealth.monitors.burnin_results.readings import TestStatus
from tests.e2e.test_agent import IMPATIENT, QUICK, entries

TAINT = "gpuhealth.io/unhealthy"
_NUMBERS = itertools.count(1)
XID_95 = "pid=7194, name=x, Uncontained: LTC TAG (0x2, 0x1)."


class Marked:
    """A simulated node and its Node object, in a pool of its own."""

    def __init__(self, plane: ControlPlane, folder: Path, kmsg: Path | None = None, gpus: int = 8) -> None:
        self.plane = plane
        self.name = f"marked-{next(_NUMBERS)}"
        self.labels = {"pool": self.name}
        plane.create_node(self.name, self.labels)
        token = plane.service_account_token("gpuhealth", "gpuhealth-agent")
        kubeconfig = plane.write_kubeconfig(self.name, token)
        settings = QUICK | {"kmsg": {"lookback": 0}}
        self.sim = SimulatedNode(folder, self.name, gpus=gpus, kubeconfig=kubeconfig, kmsg=kmsg, settings=settings)

    def budget(self, most: int) -> None:
        """Allows so many nodes of the pool to be out."""
        spec = {"nodeSelector": {"matchLabels": self.labels}, "maxUnavailable": most}
        kind = {"apiVersion": "gpuhealth.io/v1alpha1", "kind": "QuarantineBudget"}
        self.plane.apply([{**kind, "metadata": {"name": self.name}, "spec": spec}])

    def node(self) -> dict[str, Any]:
        """The Node object."""
        found: dict[str, Any] = self.plane.request("GET", f"/api/v1/nodes/{self.name}")
        return found

    def taint(self) -> str | None:
        """The value of our taint."""
        taints = self.node()["spec"].get("taints", [])
        return next((taint["value"] for taint in taints if taint["key"] == TAINT), None)

    def condition(self) -> tuple[str, str]:
        """Status and reason of our condition."""
        conditions = self.node()["status"].get("conditions", [])
        return next(((c["status"], c["reason"]) for c in conditions if c["type"] == "GPUHealthy"), ("", ""))

    def report(self) -> dict[str, Any]:
        """The status of the node's GPUHealthReport; empty while there is none."""
        try:
            found = self.plane.request("GET", f"/apis/gpuhealth.io/v1alpha1/gpuhealthreports/{self.name}")
        except RequestError as error:
            if error.status == 404:
                return {}
            raise
        status: dict[str, Any] = found.get("status", {})
        return status

    def quarantine(self) -> str:
        """How the quarantine stands, by the report: the last that is written."""
        return str(self.report().get("quarantine", {}).get("state"))

    def is_silent(self, rounds: int) -> bool:
        """Whether the agent writes nothing in so many rounds; asked again until then, since something may be due."""
        began, before = _rounds(self.sim), self.writes()
        wait_for("rounds", lambda: _rounds(self.sim) > began + rounds)
        return self.writes() == before

    def writes(self) -> int:
        """How often somebody other than the tests has changed something of this node."""
        user = "system:serviceaccount:gpuhealth:gpuhealth-agent"
        return sum(
            event["user"].get("username") == user and event["verb"] not in ("get", "list", "watch")
            for event in self.plane.audit(self.name)
        )

    def remove(self) -> None:
        """Takes the Node and its budget away."""
        for path in (f"/api/v1/nodes/{self.name}", f"/apis/gpuhealth.io/v1alpha1/quarantinebudgets/{self.name}"):
            try:
                self.plane.request("DELETE", path)
            except RequestError as error:
                if error.status != 404:
                    raise


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
        assert (finding["code"], finding["component"]) == ("xid.95", sim.driver.text("gpu2.uuid"))
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
        _leave_burnin(sim, 2, TestStatus.FAILED)
        wait_for("the failed test", lambda: {"burnin.exact", "burnin.required"} <= sim.findings())
    with marked.sim as sim:
        wait_for("both after a restart", lambda: {"burnin.exact", "burnin.required"} <= sim.findings())
        assert marked.taint() is not None
        _leave_burnin(sim, 2, TestStatus.PASSED)
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
        path = f"/api/v1/nodes/{marked.name}"
        patch = {"spec": {"taints": None}}
        marked.plane.request("PATCH", path, patch, content_type="application/merge-patch+json")
        wait_for("a healthy condition", lambda: marked.condition() == ("True", "Healthy"))
        wait_for("no word of it", lambda: "gpuhealth.io/dismissed" not in str(marked.node()["metadata"]))
        assert marked.taint() is None


def _statuses(report: dict[str, Any], gpu: str) -> list[str]:
    """Of the runs on a GPU, the latest first."""
    tested = (report.get("burnin") or {}).get("gpus", {}).get(gpu, {})
    return [each["status"] for each in tested.get("history", [])]


def _leave_burnin(sim: SimulatedNode, gpu: int, status: TestStatus) -> None:
    """Leaves a result on the node, as a burn-in that has just begun would."""
    now = datetime.now(UTC)
    left = run(result(gpu=sim.driver.text(f"gpu{gpu}.uuid"), status=status), at=(now - START).total_seconds())
    folder = sim.folder / "burnin"
    folder.mkdir(exist_ok=True)
    part = folder / f"{now.timestamp()}.part"
    part.write_bytes(msgspec.json.encode(left))
    part.replace(part.with_suffix(".json"))


def test_without_a_budget_nothing_is_tainted(marked: Marked) -> None:
    """With no budget the condition tells, the node stays in service; a budget made later lets the taint come."""
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
        wait_for("rates, which need some rounds", lambda: marked.is_silent(rounds=10))
        assert marked.is_silent(rounds=40)


def test_a_driver_that_is_slower_than_the_interval_is_no_news(marked: Marked) -> None:
    """Rounds that take longer than they should are whole all the same, and nothing is written of them."""
    marked.sim.configure({"interval": "50ms"})
    marked.sim.driver.inject("slow", gpu=7, ms=5)
    with marked.sim as sim:
        wait_for("a healthy condition", lambda: marked.condition() == ("True", "Healthy"))
        wait_for("silence", lambda: marked.is_silent(rounds=10))
        assert (sim.metric("gpuhealth_agent_round_seconds") or 0.0) > 0.2


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
        wait_for("the report", lambda: [f.get("gpu") for f in marked.report().get("findings", [])] == [gpu])
        none = {"metadata": {"annotations": {"gpuhealth.io/fleet-findings": None}}}
        marked.plane.request("PATCH", path, none, content_type=merge)
        wait_for("the taint to go", lambda: marked.taint() is None)


def _rounds(sim: SimulatedNode) -> float:
    return sim.metric("gpuhealth_agent_rounds_total") or 0.0


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
    """The override `healthy` ends the quarantine, and the annotation release-gpus has the driver let go."""
    marked.budget(1)
    with marked.sim as sim:
        sim.driver.inject("remap_failed", gpu=0)
        wait_for("the taint", lambda: marked.taint() is not None)
        _annotate(marked, "gpuhealth.io/override", "healthy")
        wait_for("the taint to go", lambda: marked.taint() is None)
        _annotate(marked, "gpuhealth.io/release-gpus", "true")
        wait_for("the release", lambda: sim.metric("gpuhealth_agent_driver_released") == 1)
        _annotate(marked, "gpuhealth.io/release-gpus", None)
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
        _annotate(marked, "gpuhealth.io/out-of-service", "fan is loud")
        wait_for("the taint", lambda: marked.taint() == "manual")
        _annotate(marked, "gpuhealth.io/out-of-service", None)
        wait_for("the taint to go", lambda: marked.taint() is None)
        for gpu, restored in ((1, "2099-03-01T12:00:00Z"), (2, "2099-03-01T12:00:01Z")):  # by a clock that is fast
            sim.xid(95, gpu=gpu, text=XID_95)
            wait_for("the taint", lambda: marked.taint() == "xid.95")
            _annotate(marked, "gpuhealth.io/restored", restored)
            wait_for("the taint to go", lambda: marked.taint() is None)
        wait_for("the journal", lambda: ("cleared", "xid.95") in entries(sim))


def _annotate(marked: Marked, key: str, value: str | None) -> None:
    patch = {"metadata": {"annotations": {key: value}}}
    path = f"/api/v1/nodes/{marked.name}"
    marked.plane.request("PATCH", path, patch, content_type="application/merge-patch+json")


@pytest.mark.skipif(not os.access(REAL_KMSG, os.W_OK), reason="/dev/kmsg cannot be written here")
def test_the_real_kernel_log(plane: ControlPlane, tmp_path: Path) -> None:
    """A line written to this machine's own kernel log taints the Node."""
    marked = Marked(plane, tmp_path, REAL_KMSG)
    marked.budget(1)
    try:
        with marked.sim as sim:
            wait_for("a healthy condition", lambda: marked.condition()[0] == "True")
            sim.xid(95, gpu=5, text=XID_95)
            wait_for("the taint", lambda: marked.taint() == "xid.95")
    finally:
        marked.remove()
