"""A new node on a real API server: closed until its tests have passed, whatever happens meanwhile.

Processors stand in for the two GPUs of a simulated node; agent, preflight and the tests' workers are real.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from kube import ControlPlane
from testing import odd_torch
from testing.marked_node import Marked
from testing.waiting import wait_for

from gpuhealth.model.burnin_run import BurninRun, TestStatus

KEY = "gpuhealth.io/preflight"
PENDING = {"key": KEY, "value": "pending", "effect": "NoSchedule"}
THEIRS = {"key": "example.com/theirs", "value": "x", "effect": "NoSchedule"}
TEST = "memory"  # the quickest on a processor
BAD_GPU = {"kind": "memory_bits", "bits": 1}
QUICK = {"level": "quick", "tests": [TEST], "duration": "100ms", "retry": "200ms"}
NO_LIMITS = {
    "floor_percent": 0,
    "min_percent_of_best_peer": 0,
}  # a processor is no H100, and two of them share its cores


class NewNode(Marked):
    """A node that has just joined, as its kubelet registers it."""

    def __init__(self, plane: ControlPlane, folder: Path) -> None:
        super().__init__(plane, folder, gpus=2)
        self.folder = folder
        self.budget(1)
        self.close()
        token = plane.service_account_token("gpuhealth", "gpuhealth-preflight")
        self._kubeconfig = plane.write_kubeconfig(f"{self.name}-preflight", token)
        self._process: subprocess.Popen[bytes] | None = None
        self.log = folder / "preflight.log"
        self.sim.configure({"burnin": {"devices": "cpu:0,1"}, "preflight": QUICK})

    def close(self) -> None:
        """Puts our taint on, between those of somebody else."""
        patch = {"spec": {"taints": [THEIRS, PENDING, {**THEIRS, "effect": "PreferNoSchedule"}]}}
        path = f"/api/v1/nodes/{self.name}"
        self.plane.request("PATCH", path, patch, content_type="application/merge-patch+json")

    def start(self, **more: str) -> None:
        """Starts `gpuhealth preflight` in the background, with more variables."""
        environment = {
            **self.sim.env,
            **more,
            "GPUHEALTH_KUBERNETES__KUBECONFIG": str(self._kubeconfig),
            "PYTHONWARNINGS": "",
        }
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gpuhealth", "preflight"],
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def ended(self) -> int:
        """The exit status of preflight, which ends by itself; its kubelet would start it again."""
        assert self._process is not None
        process, self._process = self._process, None
        return process.wait(120)

    def kill(self, number: int = signal.SIGKILL) -> int:
        """Ends preflight, as the end of its container does: everything in it."""
        if self._process is None:
            return 0
        process, self._process = self._process, None
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if number == signal.SIGKILL else os.kill)(process.pid, number)
        return process.wait(120)

    def taint_value(self) -> str | None:
        """The value of the preflight taint; None if it is gone."""
        return next((taint["value"] for taint in self.node()["spec"].get("taints", []) if taint["key"] == KEY), None)

    def others(self) -> list[dict[str, Any]]:
        """The taints of somebody else."""
        return [taint for taint in self.node()["spec"].get("taints", []) if taint["key"] == THEIRS["key"]]

    def label(self) -> str:
        """The label of the state."""
        return str(self.node()["metadata"]["labels"].get("gpuhealth.io/state"))

    def event_messages(self, reason: str) -> list[str]:
        """The messages of the Events of a reason."""
        items = self.plane.request("GET", f"/api/v1/events?fieldSelector=involvedObject.name={self.name}")["items"]
        return [event["message"] for event in items if event["reason"] == reason]

    def reported(self) -> set[tuple[str, str]]:
        """Code and GPU of the findings in the report."""
        return {(each["code"], each["component"]["id"]) for each in self.report().get("findings", [])}

    def runs(self) -> list[BurninRun]:
        """The results on the node, oldest first."""
        files = sorted((self.folder / "burnin").glob("*.json"))
        return [msgspec.json.decode(file.read_bytes(), type=BurninRun) for file in files]

    def gpu(self, index: int) -> str:
        """The uuid of a GPU."""
        return self.sim.driver.text(f"gpu{index}.uuid")

    def is_open(self) -> bool:
        """Whether work may come, as far as we are concerned."""
        assert len(self.others()) == 2, "the taints of others stay"
        return self.taint_value() is None


@pytest.fixture
def new(plane: ControlPlane, tmp_path: Path) -> Iterator[NewNode]:
    """A new node whose processes the test starts."""
    made = NewNode(plane, tmp_path)
    yield made
    made.kill()
    made.sim.driver.release()
    made.sim.stop()
    made.remove()


@pytest.mark.timeout(600)
def test_a_new_node_is_opened_when_all_passes(new: NewNode) -> None:
    """It waits for the driver, tests all GPUs, opens the node and reports the run; no test is repeated."""
    new.sim.configure({"burnin": {"limits": NO_LIMITS}})
    new.sim.configure({"preflight": {**QUICK, "tests": [TEST, "bandwidth"], "duration": "200ms"}})
    new.sim.driver.inject("init_failure")
    with new.sim as sim:
        wait_for("the agent's label", lambda: new.label() == "preflight")
        new.start()
        wait_for("the first look", lambda: "preflight started" in new.log.read_text())
        assert new.taint_value() == "pending"
        sim.driver.clear()
        assert new.ended() != 0, "its container has no libraries of the driver that came later"
        new.start()
        wait_for("the node to open", new.is_open, seconds=300)
        wait_for("the agent's own label", lambda: new.label() == "healthy")
        wait_for("the Event", lambda: new.event_messages("PreflightPassed"))
        (run,) = new.runs()
        assert (run.reason, run.status, len(run.results)) == ("preflight", TestStatus.PASSED, 4)
        gpus = wait_for("the report", lambda: (new.report().get("burnin") or {}).get("gpus"))
        assert gpus.keys() == {new.gpu(index) for index in range(2)}
        for gpu in gpus.values():
            assert {test: said["status"] for test, said in gpu["tests"].items()} == {
                TEST: "passed",
                "bandwidth": "passed",
            }
        new.kill()
        new.close()
        new.start()
        wait_for("the node to open again", new.is_open)
        assert len(new.runs()) == 1


@pytest.mark.timeout(600)
def test_a_bad_gpu_keeps_the_node_closed(new: NewNode) -> None:
    """A GPU that fails: the taint says so, the agent marks the node; nothing is tried again until a person asks."""
    new.sim.configure({"burnin": {"faults": [{**BAD_GPU, "gpu": new.gpu(1)}]}})
    with new.sim:
        new.start()
        wait_for("the failure", lambda: new.taint_value() == "failed", seconds=300)
        wait_for("the agent's mark", lambda: new.taint() == f"burnin.{TEST}")
        wait_for("the report", lambda: (f"burnin.{TEST}", new.gpu(1)) in new.reported())
        (message,) = wait_for("the Event", lambda: new.event_messages("PreflightFailed"))
        assert f"burnin.{TEST} {new.gpu(1)}" in message
        assert (new.label(), len(new.others())) == ("preflight", 2)
        new.sim.configure({"burnin": {"faults": []}})
        new.kill()
        new.start()
        wait_for("a look", lambda: "preflight waiting" in new.log.read_text())
        assert (new.taint_value(), len(new.runs())) == ("failed", 1)
        new.kill()
        new.close()
        new.start()
        wait_for("the node to open", new.is_open, seconds=300)
        wait_for("the agent's mark to go", lambda: new.taint() is None)


@pytest.mark.timeout(600)
def test_killed_in_the_middle_it_starts_over(new: NewNode) -> None:
    """Killed and stopped while the tests run, the node stays closed, and the next process begins again."""
    new.sim.configure({"preflight": {**QUICK, "duration": "10m"}})
    for number in (signal.SIGKILL, signal.SIGTERM):
        new.start()
        wait_for("the workers", lambda: len(_descendants(new)) >= 3)
        assert new.kill(number) == (0 if number is signal.SIGTERM else -number)
        assert new.taint_value() == "pending"
    assert [run for run in new.runs() if run.status is not TestStatus.STOPPED] == []
    new.sim.configure({"preflight": QUICK})
    new.start()
    wait_for("the node to open", new.is_open, seconds=300)


def _descendants(new: NewNode) -> list[int]:
    assert new._process is not None
    found, parents = list[int](), [new._process.pid]
    while parents:
        with contextlib.suppress(OSError):
            children = Path(f"/proc/{parents[-1]}/task/{parents[-1]}/children").read_text().split()
            found += map(int, children)
            parents[:0] = map(int, children)
        parents.pop()
    return found


@pytest.mark.timeout(600)
def test_it_is_bounded_in_time(new: NewNode) -> None:
    """Tests that do not end in time, and passive checks that do not pass in time, leave the node closed, and say so."""
    new.sim.configure({"preflight": {**QUICK, "duration": "10m", "deadline": "8s"}})
    new.start()
    wait_for("the failure", lambda: new.taint_value() == "failed")
    assert "not done within 8 s" in wait_for("the Event", lambda: new.event_messages("PreflightFailed"))[0]
    new.kill()
    new.sim.driver.inject("remap_failed", gpu=0)
    new.sim.configure({"preflight": {**QUICK, "readiness_timeout": "1s", "deadline": "30m"}})
    new.close()
    new.start()
    wait_for("the failure", lambda: new.taint_value() == "failed")
    wait_for(
        "the Event", lambda: any("gpu_memory.remap_failed" in text for text in new.event_messages("PreflightFailed"))
    )
    assert all(run.status is not TestStatus.PASSED for run in new.runs())


@pytest.mark.timeout(600)
def test_a_driver_that_is_too_old_is_no_failed_gpu(new: NewNode) -> None:
    """A driver that does not fit torch: the node stays closed, an Event gives the reason, and no GPU has a finding."""
    new.sim.configure({"burnin": {"devices": "all"}, "preflight": QUICK})
    (new.folder / "torch").mkdir()
    environment = odd_torch.cuda_init_fails(new.folder / "torch", odd_torch.TOO_OLD)
    with new.sim as sim:
        new.start(PYTHONPATH=environment["PYTHONPATH"])
        (message,) = wait_for("the Event", lambda: new.event_messages("PreflightNotTested"))
        assert "not tested: the driver is too old for this build of torch" in message
        assert "it supports CUDA 11.4" in message
        assert new.taint_value() == "pending"
        assert new.runs() == []
        assert not any(code.startswith("burnin.") for code, _ in new.reported())
        assert sim.findings() == set()
        new.kill()


@pytest.mark.timeout(600)
def test_after_a_reboot_the_agent_closes_the_node(new: NewNode) -> None:
    """With preflight.after_reboot a node that was seen before is closed again by its agent, once for each boot."""
    open_node = {"spec": {"taints": [THEIRS]}}
    path = f"/api/v1/nodes/{new.name}"
    new.plane.request("PATCH", path, open_node, content_type="application/merge-patch+json")
    new.sim.configure({"preflight": {**QUICK, "after_reboot": True}})
    with new.sim:
        wait_for("a healthy condition", lambda: new.condition() == ("True", "Healthy"))
        assert new.taint_value() is None, "the first boot that is seen is none after another"
    boot = new.sim.driver.root / "proc/sys/kernel/random/boot_id"
    boot.write_text(f"{uuid.uuid4()}\n")
    with new.sim:
        wait_for("the taint", lambda: new.taint_value() == "pending")
        wait_for("the label", lambda: new.label() == "preflight")
        new.plane.request("PATCH", path, open_node, content_type="application/merge-patch+json")
        wait_for("the agent's own label", lambda: new.label() == "healthy")
    with new.sim:
        wait_for("a healthy condition", lambda: new.condition() == ("True", "Healthy"))
        assert new.taint_value() is None
