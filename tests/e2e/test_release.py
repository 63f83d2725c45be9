"""A released driver is no fault; condition, metrics and journal show the release, and it is limited in time."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from kube import ControlPlane
from testing.marked_node import XID_95, Marked
from testing.simnode import ROUNDS, entries
from testing.waiting import wait_for

UPGRADE = "nvidia.com/gpu-driver-upgrade-state"
ANNOTATION = "gpuhealth.io/release-gpus"
RELEASED = 'gpuhealth_released{reason="%s"}'
UNKNOWN_AFTER = 2.0
"""Seconds. A busy machine may hold up the rounds for longer: then the node is unknown for a moment, not for good."""


class Upgraded(Marked):
    """A node on whose driver others work."""

    def says(self, *, labels: dict[str, str | None] | None = None, notes: dict[str, str | None] | None = None) -> None:
        """Changes labels and annotations of the Node."""
        patch = {"metadata": {"labels": labels or {}, "annotations": notes or {}}}
        path = f"/api/v1/nodes/{self.name}"
        self.plane.request("PATCH", path, patch, content_type="application/merge-patch+json")

    def unload(self) -> None:
        """What is left of the GPUs without the kernel module: their functions on the PCI bus."""
        self.sim.driver.inject("init_failure", code=9)
        self.sim.driver.inject("drop", bus=1)

    def load(self) -> None:
        """The module is back."""
        self.sim.driver.clear()

    def holders(self) -> list[str]:
        """The agent's processes that hold the driver."""
        children = Path(f"/proc/{self.sim.pid}/task/{self.sim.pid}/children").read_text().split()
        maps = [Path(f"/proc/{child}/maps") for child in children]
        return [str(each) for each in maps if _has_library(each)]

    def message(self) -> str:
        """The message of the GPUHealthy condition."""
        conditions = self.node()["status"].get("conditions", [])
        return next((str(c["message"]) for c in conditions if c["type"] == "GPUHealthy"), "")

    def outlast(self, seconds: float) -> None:
        """Waits for a round that is so much later than the last one."""
        last = 'gpuhealth_agent_last_round_timestamp_seconds{monitor="nvidia"}'
        before = wait_for("a round", lambda: self.sim.metric(last))
        wait_for("a later round", lambda: (self.sim.metric(last) or 0.0) > before + seconds)

    def is_released(self) -> bool:
        """Whether the condition is True with reason DriverReleased."""
        return self.condition() == ("True", "DriverReleased")

    def rounds(self, more: int) -> None:
        """Waits for so many rounds more."""
        before = self.sim.metric(ROUNDS) or 0.0
        wait_for("rounds", lambda: (self.sim.metric(ROUNDS) or 0.0) >= before + more)


def _has_library(maps: Path) -> bool:
    try:
        return "libnvidia-ml" in maps.read_text()
    except OSError:  # the process has just ended
        return False


@pytest.fixture
def upgraded(plane: ControlPlane, tmp_path: Path) -> Iterator[Upgraded]:
    """A node with room for it in a budget, whose agent the test starts."""
    made = Upgraded(plane, tmp_path)
    made.budget(1)
    made.sim.configure({"unknown_after": UNKNOWN_AFTER})
    yield made
    made.sim.driver.release()
    made.sim.stop()
    made.remove()


def test_an_upgrade_by_the_gpu_operator(upgraded: Upgraded) -> None:
    """Through all of the operator's states the node is called healthy, nothing is found, and nobody holds the driver
    while it is unloaded; a kernel-log fault of that time counts."""
    with upgraded.sim as sim:
        wait_for("a healthy condition", lambda: upgraded.condition() == ("True", "Healthy"))
        for state in ("upgrade-required", "cordon-required", "wait-for-jobs-required"):
            upgraded.says(labels={UPGRADE: state})
        upgraded.rounds(2)
        assert sim.metric("gpuhealth_agent_driver_released") == 0
        upgraded.says(labels={UPGRADE: "pod-deletion-required"})
        wait_for("the release", lambda: sim.metric(RELEASED % "driver_upgrade") == 1)
        wait_for("no holder", lambda: not upgraded.holders())
        upgraded.says(labels={UPGRADE: "pod-restart-required"})
        upgraded.unload()
        wait_for("the condition", upgraded.is_released)
        assert upgraded.message().startswith("the driver is released (driver_upgrade) since ")
        wait_for("the report", lambda: upgraded.report().get("driverReleased", {}).get("reasons") == ["driver_upgrade"])
        sim.xid(45, gpu=0, text="pid=1, name=job, Ch 1")
        upgraded.outlast(UNKNOWN_AFTER)
        wait_for("the same condition", upgraded.is_released)
        wait_for("the same verdict", lambda: sim.metric("gpuhealth_node_healthy") == 1)
        assert sim.metric('gpuhealth_not_checked{check="gpu.lost",reason="released"}') == 1
        wait_for("silence: a release costs one write, not one a round", lambda: upgraded.is_silent(for_rounds=10))
        upgraded.says(labels={UPGRADE: "validation-required"})
        wait_for("the driver being asked again", lambda: sim.metric("gpuhealth_agent_driver_released") == 0)
        upgraded.rounds(3)
        assert sim.findings() <= {"xid.45"}, "it may take a while to be back"
        upgraded.load()
        wait_for("a healthy condition", lambda: upgraded.condition() == ("True", "Healthy"))
        wait_for("a report without it", lambda: not upgraded.report().get("driverReleased"))
        assert sim.metric(RELEASED % "driver_upgrade") is None
        upgraded.says(labels={UPGRADE: "pod-restart-required"})
        wait_for("the release", lambda: sim.metric("gpuhealth_agent_driver_released") == 1)
        sim.xid(95, gpu=2, text=XID_95)
        wait_for("the taint", lambda: upgraded.taint() == "xid.95")
        wait_for("the condition", lambda: upgraded.condition() == ("False", "Xid95"))
        assert "the driver is released" in upgraded.message()
    raised = {code for kind, code in entries(sim) if kind == "raised"}
    assert raised == {"xid.45", "xid.95"}


PAUSED = {f"nvidia.com/gpu.deploy.{name}": "paused-for-%s" for name in ("device-plugin", "dcgm", "client")}


@pytest.mark.parametrize(
    ("labels", "done", "reason"),
    [
        (
            {key: value % "driver-upgrade" for key, value in PAUSED.items()},
            dict.fromkeys(PAUSED, "true"),
            "driver_upgrade",
        ),
        (
            {"nvidia.com/mig.config.state": "pending", **{key: value % "mig-change" for key, value in PAUSED.items()}},
            {"nvidia.com/mig.config.state": "success", **dict.fromkeys(PAUSED, "true")},
            "mig_change",
        ),
        ({"nvidia.com/mig.config.state": "rebooting"}, {"nvidia.com/mig.config.state": "success"}, "mig_change"),
        ({"example.com/work": "gpu-firmware"}, {"example.com/work": None}, "label"),
    ],
)
def test_announced_work(
    upgraded: Upgraded, labels: dict[str, str | None], done: dict[str, str | None], reason: str
) -> None:
    """What others announce by labels: nobody holds the driver, GPUs that they reset and a driver that takes its time
    are no fault, and the node is healthy throughout."""
    upgraded.sim.configure({"driver_release": {"labels": ["example.com/work=gpu-*"], "reacquire_grace": "1s"}})
    upgraded.sim.configure({"findings": {"driver.not_loaded": {"raise_after": "10m"}}})
    with upgraded.sim as sim:
        wait_for("a healthy condition", lambda: upgraded.condition() == ("True", "Healthy"))
        upgraded.says(labels=labels)
        wait_for("the release", lambda: sim.metric(RELEASED % reason) == 1)
        wait_for("no holder", lambda: not upgraded.holders())
        upgraded.unload()
        sim.xid(79, gpu=1, text="pid=1, name=x, GPU has fallen off the bus.")
        wait_for("the XID", lambda: ("raised", "xid.79") in entries(sim))
        wait_for("the condition", upgraded.is_released)
        upgraded.says(labels=done)
        wait_for("the driver being asked again", lambda: sim.metric("gpuhealth_agent_driver_released") == 0)
        upgraded.outlast(3.0)  # the module is loaded only after everything runs again
        assert {code for code in sim.findings() if not code.startswith("agent.")} <= {"xid.79"}
        assert upgraded.taint() is None
        upgraded.load()
        wait_for("a healthy condition", lambda: upgraded.condition() == ("True", "Healthy"))
        assert upgraded.taint() is None
    raised = {code for kind, code in entries(sim) if kind == "raised"}
    assert raised - {"agent.nvml_library"} == {"xid.79"}


def test_several_reasons_at_once(upgraded: Upgraded) -> None:
    """The driver stays released until annotation, label and signal are all withdrawn."""
    with upgraded.sim as sim:
        wait_for("a healthy condition", lambda: upgraded.condition() == ("True", "Healthy"))
        upgraded.says(notes={ANNOTATION: "true"}, labels={UPGRADE: "drain-required"})
        os.kill(sim.pid, signal.SIGUSR1)
        for reason in ("annotation", "driver_upgrade", "signal"):
            wait_for(reason, lambda reason=reason: sim.metric(RELEASED % reason) == 1)  # type: ignore[misc]
        upgraded.says(notes={ANNOTATION: None})
        wait_for("one less", lambda: sim.metric(RELEASED % "annotation") is None)
        os.kill(sim.pid, signal.SIGUSR1)
        wait_for("two less", lambda: sim.metric(RELEASED % "signal") is None)
        assert sim.metric("gpuhealth_agent_driver_released") == 1
        upgraded.says(labels={UPGRADE: "upgrade-done"})
        wait_for("a healthy condition", lambda: upgraded.condition() == ("True", "Healthy"))
        assert sim.metric("gpuhealth_agent_driver_released") == 0


def test_an_unhealthy_node_stays_so(upgraded: Upgraded) -> None:
    """What was found before the release is neither cleared nor hidden by it: condition and taint stay."""
    with upgraded.sim as sim:
        sim.driver.inject("remap_failed", gpu=0)
        wait_for("the taint", lambda: upgraded.taint() == "gpu_memory.remap_failed")
        upgraded.says(notes={ANNOTATION: "true"})
        wait_for("the release", lambda: upgraded.report().get("driverReleased"))
        sim.driver.clear()
        upgraded.outlast(UNKNOWN_AFTER)
        wait_for("the same condition", lambda: upgraded.condition() == ("False", "GpuMemoryRemapFailed"))
        assert upgraded.taint() == "gpu_memory.remap_failed"
        upgraded.says(notes={ANNOTATION: None})
        wait_for("the taint to go", lambda: upgraded.taint() is None)


def test_not_for_ever(upgraded: Upgraded) -> None:
    """After `max_duration` the node is unknown, and says why; after `reacquire_grace` an absent driver is a finding."""
    upgraded.sim.configure(
        {"driver_release": {"reacquire_grace": "1s"}, "findings": {"driver.not_loaded": {"raise_after": "1s"}}}
    )
    with upgraded.sim as sim:
        wait_for("a healthy condition", lambda: upgraded.condition() == ("True", "Healthy"))
        upgraded.says(notes={ANNOTATION: "true"})
        wait_for("the release", upgraded.is_released)
        upgraded.unload()
        sim.configure({"driver_release": {"max_duration": "1s"}})
        wait_for("unknown", lambda: upgraded.condition() == ("Unknown", "DriverReleased"))
        assert sim.metric("gpuhealth_agent_driver_released") == 1, "the request still stands"
        assert upgraded.taint() is None
        upgraded.says(notes={ANNOTATION: None})
        wait_for("the fault", lambda: upgraded.condition()[0] == "False")
        assert "driver.not_loaded" in sim.findings()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_an_agent_that_starts_in_mid_upgrade(upgraded: Upgraded, how: signal.Signals) -> None:
    """It takes up the release of the one before: it does not touch the driver, and still calls the node healthy."""
    with upgraded.sim as sim:
        wait_for("a healthy condition", lambda: upgraded.condition() == ("True", "Healthy"))
        upgraded.says(labels={UPGRADE: "pod-restart-required"})
        wait_for("the condition", upgraded.is_released)
        wait_for("the journal", lambda: ("agent", "release") in entries(sim))
        sim.stop(how)
        upgraded.unload()
        sim.start()
        upgraded.outlast(UNKNOWN_AFTER)
        assert sim.metric("gpuhealth_agent_nvml_process_starts_total") == 0
        assert sim.findings() == set()
        wait_for("the same condition", upgraded.is_released)
        upgraded.load()
        upgraded.says(labels={UPGRADE: "upgrade-done"})
        wait_for("a healthy condition", lambda: upgraded.condition() == ("True", "Healthy"))


def test_the_first_agent_of_a_node_starts_in_mid_upgrade(upgraded: Upgraded) -> None:
    """It asks its Node before it takes the driver, finds no fault, and does not call healthy what it never saw."""
    upgraded.says(labels={UPGRADE: "pod-restart-required"})
    upgraded.unload()
    with upgraded.sim as sim:
        wait_for("unknown", lambda: upgraded.condition() == ("Unknown", "DriverReleased"))
        assert sim.metric("gpuhealth_agent_nvml_process_starts_total") == 0
        assert sim.findings() == set()
        upgraded.load()
        upgraded.says(labels={UPGRADE: "uncordon-required"})
        wait_for("a healthy condition", lambda: upgraded.condition() == ("True", "Healthy"))
