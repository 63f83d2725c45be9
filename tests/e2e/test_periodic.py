"""Burn-in of nodes in service in one chain: controller, scheduler, the Pod's own command, agent; we are the kubelet.

Two processors stand in for the two GPUs of a simulated node. Everything else runs as it does on a cluster.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from kube import ControlPlane, Document
from kube.control_plane import RequestError
from testing.controller_process import ControllerProcess
from testing.managed_cluster import Cluster
from testing.marked_node import Marked
from testing.processes import COMMAND
from testing.waiting import wait_for

from gpuhealth.monitors.settings import Settings

GPUS = 2
TEMPLATE = "/api/v1/namespaces/gpuhealth/podtemplates/gpuhealth-burnin"
PODS = "/api/v1/namespaces/gpuhealth/pods"
PATIENT = {"warn_after": "60s", "critical_after": "60s"}  # nothing hangs here, and the machine may be slow

until = partial(wait_for, seconds=300.0)


class Idle(Marked):
    """A node in service whose GPUs nobody uses, and its kubelet."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        super().__init__(cluster.plane, folder, gpus=GPUS)
        self.cluster = cluster
        self.burnin = f"{PODS}/burnin-{self.name}"
        self._container: subprocess.Popen[bytes] | None = None
        room = {"nvidia.com/gpu": str(GPUS), "cpu": "64", "memory": "512Gi", "pods": "110"}
        cluster.patch(f"/api/v1/nodes/{self.name}/status", {"status": {"capacity": room, "allocatable": room}})
        cluster.agent(self.name)
        self.budget(1)
        self.sim.configure({"burnin": {"devices": "cpu:0,1"}, "nvml": PATIENT})

    def pod(self) -> Document | None:
        """The Pod of its burn-in."""
        try:
            found: Document = self.plane.request("GET", self.burnin)
        except RequestError as error:
            if error.status == 404:
                return None
            raise
        return found

    def run_pod(self) -> None:
        """Waits for the Pod that the scheduler puts here, and starts what its container says."""
        pod = until("the burn-in on its node", lambda: (pod := self.pod()) and pod["spec"].get("nodeName") and pod)
        assert pod["spec"]["nodeName"] == self.name
        (container,) = pod["spec"]["containers"]
        environment = {"PATH": os.environ["PATH"], **self.sim.driver.env, **self._environment(pod, container)}
        with (self.sim.folder / "burnin.log").open("wb") as log:
            command = [COMMAND, *container["args"]]  # the image's ENTRYPOINT, and no command in the Pod
            assert "command" not in container
            self._container = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        self.cluster.patch(f"{self.burnin}/status", {"status": {"phase": "Running"}})

    def _environment(self, pod: Document, container: Document) -> dict[str, str]:
        """The container's variables; paths in it are those on the node that are mounted there."""
        host = {"results": self.sim.settings["burnin"]["results_dir"], "settings": str(self.sim.folder)}
        mounts = {each["mountPath"]: host[each["name"]] for each in container["volumeMounts"] if each["name"] in host}

        def on_node(path: str) -> str:
            folder, name = os.path.split(path)
            return mounts[path] if path in mounts else f"{mounts[folder]}/{name}" if folder in mounts else path

        def value(of: Document) -> str:
            if "value" in of:
                return on_node(of["value"])
            assert of["valueFrom"]["fieldRef"]["fieldPath"] == "spec.nodeName"
            return str(pod["spec"]["nodeName"])

        # Where the settings say nothing else, results go to the folder that is mounted, or are lost with the Pod.
        results = {"GPUHEALTH_BURNIN__RESULTS_DIR": mounts[str(Settings().burnin.results_dir)]}
        return {each["name"]: value(each) for each in container["env"]} | results

    def end_pod(self) -> int:
        """Waits for the container's end, says so, and waits until the Pod is taken away; the exit code."""
        assert self._container is not None
        code = self._container.wait(600)
        state = {"terminated": {"exitCode": code}}
        ended = [{"name": "burnin", "image": "i", "imageID": "", "ready": False, "restartCount": 0, "state": state}]
        phase = "Failed" if code else "Succeeded"
        self.cluster.patch(f"{self.burnin}/status", {"status": {"phase": phase, "containerStatuses": ended}})
        until("the Pod's deletion", lambda: self.pod() is None)  # one that has ended goes at once
        return code

    def made(self) -> list[Document]:
        """The Pods that were made to test it, all that there ever were."""
        creations = (e for e in self.plane.audit(self.name) if e["requestURI"] == PODS and e["verb"] == "create")
        bodies = (event["requestObject"] for event in creations)
        return [body for body in bodies if body["metadata"]["name"] == f"burnin-{self.name}"]

    def label(self) -> str:
        """The label of the state."""
        return str(self.node()["metadata"]["labels"].get("gpuhealth.io/state"))

    def tests(self) -> dict[str, dict[str, str]]:
        """GPU -> test -> status, as the report has it."""
        gpus: dict[str, Any] = self.report().get("burnin", {}).get("gpus", {})
        return {gpu: {test: said["status"] for test, said in each["tests"].items()} for gpu, each in gpus.items()}

    def end(self) -> None:
        """Ends everything that runs on it."""
        if self._container is not None:
            self._container.kill()
            self._container.wait()
        self.sim.driver.release()
        self.sim.stop()
        self.remove()


@pytest.fixture
def cluster(managed: ControlPlane) -> Iterator[Cluster]:
    """A cluster whose burn-ins are short, as a deployment may have them."""
    made = Cluster(managed)
    template = managed.request("GET", TEMPLATE)
    args = template["template"]["spec"]["containers"][0]["args"]
    path = "/template/spec/containers/0/args"
    patch = [{"op": "replace", "path": path, "value": [*args, "--tests", "memory", "--duration", "1s"]}]
    managed.request("PATCH", TEMPLATE, patch, content_type="application/json-patch+json")
    yield made
    managed.request("PATCH", TEMPLATE, [{**patch[0], "value": args}], content_type="application/json-patch+json")
    made.remove()


@pytest.fixture
def idle(cluster: Cluster, tmp_path: Path) -> Iterator[Callable[[], Idle]]:
    """Makes idle nodes; at the end nothing of them runs."""
    with ExitStack() as stack:

        def make() -> Idle:
            node = Idle(cluster, tmp_path / f"node-{len(list(tmp_path.iterdir()))}")
            stack.callback(node.end)
            return node

        yield make


@pytest.fixture
def controller(cluster: Cluster, tmp_path: Path) -> Iterator[ControllerProcess]:
    """`gpuhealth controller` with periodic tests."""
    config = tmp_path / "controller.yaml"
    periodic = {"enabled": True, "level": "quick", "max_per_pool": 2}
    settings = {
        "kubernetes": {"kubeconfig": str(cluster.kubeconfig()), "context": "controller"},
        "controller": {"http": {"host": "127.0.0.1", "port": 0}, "periodic": periodic},
    }
    config.write_text(yaml.safe_dump(settings))
    process = ControllerProcess(config, tmp_path / "controller.log")
    yield process
    assert process.end(signal.SIGTERM) == 0


@pytest.mark.timeout(900)
def test_idle_nodes_are_tested_in_turn(
    cluster: Cluster, idle: Callable[[], Idle], controller: ControllerProcess
) -> None:
    """A sound node goes on as before and is left alone from then on; a sick one is out, in the budget's place."""
    sound, sick = idle(), idle()
    sick_gpu = sick.sim.driver.text("gpu1.uuid")
    sick.sim.configure({"burnin": {"faults": [{"kind": "memory_bits", "test": "memory", "gpu": sick_gpu}]}})

    sound.sim.start()
    sound.run_pod()
    until("the label of a test", lambda: sound.label() == "testing")
    assert sound.end_pod() == 0, (sound.sim.folder / "burnin.log").read_text()
    gpus = [sound.sim.driver.text(f"gpu{index}.uuid") for index in range(GPUS)]
    until("the results in the report", lambda: sound.tests() == {gpu: {"memory": "passed"} for gpu in gpus})
    until("the label", lambda: sound.label() == "healthy")
    until("the Event", lambda: "BurninPassed" in cluster.reasons(sound.name, "default"))

    sick.sim.start()  # only now is it a candidate: who picks it has passed over the other one
    sick.run_pod()
    assert sick.end_pod() == 2
    until("the taint", lambda: sick.taint() == "burnin.memory")
    until("the condition", lambda: sick.condition() == ("False", "BurninMemory"))
    until("the Event", lambda: "BurninFailed" in cluster.reasons(sick.name, "default"))
    until("the report", lambda: sick.tests().get(sick_gpu) == {"memory": "failed"})
    (finding,) = sick.report()["findings"]
    assert (finding["code"], finding["severity"]) == ("burnin.memory", "critical")
    assert finding["component"] == {"kind": "gpu", "id": sick_gpu}
    lease = f"/apis/coordination.k8s.io/v1/namespaces/gpuhealth/leases/{sick.name}.0"
    assert cluster.plane.request("GET", lease)["spec"]["holderIdentity"] == sick.name
    path = f"/apis/gpuhealth.io/v1alpha1/quarantinebudgets/{sick.name}"
    until("the budget's status", lambda: cluster.plane.request("GET", path).get("status", {}).get("used") == 1)
    until("the drain", lambda: sick.label() == "drained")

    assert sound.condition() == ("True", "Healthy")
    assert sound.taint() is None
    for node in (sound, sick):
        (pod,) = node.made()
        assert pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == str(GPUS)
