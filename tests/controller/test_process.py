"""`gpuhealth controller` as it runs in a cluster: two processes, of which one leads."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import yaml
from testing.controller_process import controllers
from testing.managed_cluster import Cluster
from testing.processes import COMMAND
from testing.waiting import wait_for


def test_killed_during_a_drain(cluster: Cluster, tmp_path: Path) -> None:
    """After SIGKILL of the leader the standby finishes the drain; on SIGTERM it exits with 0 and releases the Lease."""
    node = cluster.node()
    first, guarded = cluster.pod(node), cluster.pod(node, labels={"app": "one"})
    guard = cluster.guard({"app": "one"}, 1)
    wait_for("the guard's status", lambda: cluster.is_guarding(guard, 1))
    with controllers(cluster, tmp_path) as start:
        leader = start("leader")
        wait_for("a leader", lambda: leader.logged("became leader"))
        standby = start("standby")
        wait_for("the standby's server", lambda: standby.logged("serving"))
        cluster.quarantine(node)
        wait_for("the first eviction", lambda: cluster.evictions(guarded)[429] > 1 and cluster.terminating(first))
        assert not standby.logged("became leader")
        wait_for("the eviction in the report", lambda: cluster.drain(node).get("evicted") == 1)
        before = cluster.drain(node)
        leader.end(signal.SIGKILL)
        wait_for("the drain of the next leader", lambda: standby.logged("drain resumed"))
        cluster.plane.request("DELETE", guard)
        for pod in (first, guarded):
            wait_for("the eviction", lambda pod=pod: cluster.terminating(pod))  # type: ignore[misc]
            cluster.stop(pod)
        wait_for("the end of the drain", lambda: cluster.drain(node)["phase"] == "drained")
        assert standby.end(signal.SIGTERM) == 0
        assert standby.logged("controller stopped")
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
    wait_for("the guard's status", lambda: cluster.is_guarding(guard, 1))
    with controllers(cluster, tmp_path) as start:
        controller = start("controller")
        cluster.quarantine(node)
        wait_for("a refused eviction", lambda: cluster.evictions(pod)[429])
        config = tmp_path / "gpuhealth.yaml"
        before = config.read_text()
        replace(config, "mode: maybe\n")
        wait_for("the rejection in the log", lambda: controller.logged("configuration rejected"))
        assert not controller.logged("restarting controller: settings changed")
        assert cluster.drain(node)["phase"] == "draining"
        replace(config, f"mode: observe\n{before}")
        wait_for("the cancelled drain", lambda: cluster.drain(node)["phase"] == "cancelled")
        assert controller.logged("restarting controller: settings changed")
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
