"""`gpuhealth controller` as it runs in a cluster: two processes, of which one leads."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from testing.command import COMMAND
from testing.managed_cluster import Cluster


def wait_for(condition: Callable[[], Any], seconds: float = 180.0) -> Any:
    """What the condition returns once it is true."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return value


class Process:
    """A controller's process and what it logs."""

    def __init__(self, config: Path, log: Path) -> None:
        self._log = log
        with log.open("wb") as stream:
            environment = {name: value for name, value in os.environ.items() if not name.startswith("GPUHEALTH_")}
            self.process = subprocess.Popen([COMMAND, "controller", "--config", config], stderr=stream, env=environment)

    def said(self, event: str) -> bool:
        """Whether it has logged that; every line is a JSON object."""
        lines = self._log.read_text(encoding="utf-8").splitlines(keepends=True)
        return any(json.loads(line)["event"] == event for line in lines if line.endswith("\n"))

    def end(self, number: signal.Signals) -> int:
        """Its exit code after the signal."""
        self.process.send_signal(number)
        return self.process.wait(timeout=120)


@contextmanager
def controllers(cluster: Cluster, folder: Path) -> Iterator[Callable[[str], Process]]:
    """Starts controllers; at the end none is left."""
    # A leader on a slow machine must not lose its Lease in passing, and a killed one not keep it for long.
    election = {"lease": cluster.name, "duration": 12, "renew_within": 10, "retry": 0.1}
    http = {"host": "127.0.0.1", "port": 0}
    settings = {
        "kubernetes": {"kubeconfig": str(cluster.kubeconfig()), "context": "controller"},
        "controller": {"election": election, "http": http, "drain_retry": "200ms"},
    }
    config = folder / "gpuhealth.yaml"
    config.write_text(yaml.safe_dump(settings))
    started: list[Process] = []

    def start(name: str) -> Process:
        started.append(Process(config, folder / f"{name}.log"))
        return started[-1]

    try:
        yield start
    finally:
        for each in started:
            each.process.kill()
            each.process.wait()


def test_killed_during_a_drain(cluster: Cluster, tmp_path: Path) -> None:
    """After SIGKILL of the leader the standby finishes the drain; on SIGTERM it exits with 0 and releases the Lease."""
    node = cluster.node()
    first, guarded = cluster.pod(node), cluster.pod(node, labels={"app": "one"})
    guard = cluster.guard({"app": "one"}, 1)
    wait_for(lambda: cluster.is_guarding(guard, 1))
    with controllers(cluster, tmp_path) as start:
        leader = start("leader")
        wait_for(lambda: leader.said("became leader"))
        standby = start("standby")
        wait_for(lambda: standby.said("serving"))
        cluster.quarantine(node)
        wait_for(lambda: cluster.evictions(guarded)[429] > 1 and cluster.terminating(first))
        assert not standby.said("became leader")
        wait_for(lambda: cluster.drain(node).get("evicted") == 1)
        before = cluster.drain(node)
        leader.end(signal.SIGKILL)
        wait_for(lambda: standby.said("drain resumed"))
        cluster.plane.request("DELETE", guard)
        for pod in (first, guarded):
            wait_for(lambda pod=pod: cluster.terminating(pod))  # type: ignore[misc]
            cluster.stop(pod)
        wait_for(lambda: cluster.drain(node)["phase"] == "drained")
        assert standby.end(signal.SIGTERM) == 0
        assert standby.said("controller stopped")
    after = cluster.drain(node)
    assert (after["startedAt"], after["deadline"]) == (before["startedAt"], before["deadline"])
    assert (after["evicted"], after["deleted"]) == (2, 0)
    assert [cluster.evictions(pod)[201] for pod in (first, guarded)] == [1, 1]
    path = f"/apis/coordination.k8s.io/v1/namespaces/gpuhealth/leases/{cluster.name}"
    assert not cluster.plane.request("GET", path)["spec"].get("holderIdentity")  # given back
    cluster.plane.request("DELETE", path)


def replace(file: Path, text: str) -> None:
    """Replace a file atomically, as the kubelet does: a half-written file would be another configuration."""
    part = file.with_suffix(".part")
    part.write_text(text)
    part.replace(file)


def test_changed_settings(cluster: Cluster, tmp_path: Path) -> None:
    """The running controller applies a changed file: mode observe stops a drain at once. A file that cannot be used is
    logged and changes nothing."""
    node = cluster.node()
    pod = cluster.pod(node, labels={"app": "one"})
    guard = cluster.guard({"app": "one"}, 1)
    wait_for(lambda: cluster.is_guarding(guard, 1))
    with controllers(cluster, tmp_path) as start:
        controller = start("controller")
        cluster.quarantine(node)
        wait_for(lambda: cluster.evictions(pod)[429])
        config = tmp_path / "gpuhealth.yaml"
        before = config.read_text()
        replace(config, "mode: maybe\n")
        wait_for(lambda: controller.said("configuration rejected"))
        assert not controller.said("restarting controller: settings changed")
        assert cluster.drain(node)["phase"] == "draining"
        replace(config, f"mode: observe\n{before}")
        wait_for(lambda: cluster.drain(node)["phase"] == "cancelled")
        assert controller.said("restarting controller: settings changed")
        assert controller.end(signal.SIGTERM) == 0
    assert not cluster.terminating(pod)
    cluster.plane.request("DELETE", f"/apis/coordination.k8s.io/v1/namespaces/gpuhealth/leases/{cluster.name}")


def test_without_a_cluster(tmp_path: Path) -> None:
    """A controller without a cluster exits with a one-sentence error."""
    config = tmp_path / "gpuhealth.yaml"
    config.write_text(yaml.safe_dump({"kubernetes": {"kubeconfig": "/nowhere"}, "controller": {"http": {"port": 0}}}))
    done = subprocess.run([COMMAND, "controller", "--config", config], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1].startswith("gpuhealth: no service account, and no kubeconfig at /nowhere")
