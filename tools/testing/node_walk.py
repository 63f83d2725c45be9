"""The life of gpuhealth on a real node, from installation to removal: for a test, and for `tools/demo --cluster`.

Each step is a method with what it shows as its docstring. It runs commands that a person would type, and waits for what
they show.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from kube.single_node.cluster import SingleNodeCluster
from kube.single_node.init import DRIVER

from testing.paths import BASE
from testing.waiting import wait_for

CODE = "xid.79"
_SETTINGS: dict[str, Any] = {
    "interval": "1s",
    "kernel_log": {"accept_user_records": True},  # only the kernel itself writes records that count otherwise
    "kmsg": {"since_boot": False, "lookback": "1s"},  # the kernel log has lines of other tests
    "findings": {"*": {"clear_after": "1s"}},
    "burnin": {"devices": "cpu:0", "limits": {"floor_percent": 0}},
    "preflight": {"level": "quick", "tests": ["exact"], "duration": "3s", "retry": "1s"},
}
_MOUNTS = {  # on the node, and in the pods that run burn-ins
    "torch": ("/run/torch", "/opt/torch"),
    "driver": (str(DRIVER), "/opt/driver"),  # which NVIDIA's container runtime would mount
    "driver-state": ("/dev/nvmlsim.state", "/opt/nvmlsim.state"),
}
_DRIVER_VARIABLES = {"LD_LIBRARY_PATH": "/opt/driver", "NVMLSIM_STATE": "/opt/nvmlsim.state"}
_WORK = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: work, namespace: default}
spec:
  selector: {matchLabels: {app: work}}
  template:
    metadata: {labels: {app: work}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: work, image: "localhost/busybox:1"}]
"""
_RUNTIME_CLASS = "apiVersion: node.k8s.io/v1\nkind: RuntimeClass\nmetadata: {name: nvidia}\nhandler: nvidia\n"

Show = Callable[[str, str], None]
"""Gets each command line that a person would type, and its output."""


class Walk:
    """The steps, in their order, on one cluster; `figures` has what was measured, in seconds or MiB."""

    def __init__(self, cluster: SingleNodeCluster, folder: Path, show: Show | None = None) -> None:
        self.cluster = cluster
        self.figures: dict[str, float] = {}
        self._folder = folder
        self._show = show or (lambda _line, _output: None)
        (folder / "daemonset").symlink_to(BASE)

    def steps(self) -> list[Callable[[], None]]:
        """What is done, one after another."""
        return [
            self.install, self.quarantine, self.restore, self.preflight, self.burnin, self.upgrade,
            self.commands_beside_the_agent, self.driver_upgrade, self.uninstall,
        ]  # fmt: skip

    # -- the steps -----------------------------------------------------------------------------------------------------

    def install(self) -> None:
        """Installation: the manifests are applied, the pods become Ready, and the node is healthy."""
        self._run("kubectl", "label", "node", self.cluster.name, "nvidia.com/gpu.present=true")
        self._write("runtimeclass.yaml", _RUNTIME_CLASS)
        self._run("kubectl", "apply", "-f", self._folder / "runtimeclass.yaml", show=False)
        self._kustomize({})
        began = time.monotonic()
        self._run("kubectl", "apply", "-k", self._folder, show=False)
        self._show("kubectl apply -k daemonset", "")
        self._run("kubectl", "apply", "-f", BASE / "examples" / "quarantinebudget.yaml")
        wait_for("the agent to be Ready", lambda: self._ready("agent") == 1)
        self.figures["apply to agent Ready, s"] = time.monotonic() - began
        wait_for("the controllers to be Ready", lambda: self._ready("controller") == 2)
        self.figures["apply to all Ready, s"] = time.monotonic() - began
        self._wait_for_state("healthy")
        self._run("kubectl", "get", "ghr,qb")
        self._run("kubectl", "get", "pods", "-n", "gpuhealth")

    def quarantine(self) -> None:
        """XID 79 in the kernel log: the node is tainted at once, and the pod of a Deployment is evicted."""
        self._write("work.yaml", _WORK)
        self._run("kubectl", "apply", "-f", self._folder / "work.yaml")
        wait_for("the pod of the Deployment", lambda: self._running("default", "app=work"))
        (pod,) = self._running("default", "app=work")
        domain, bus = self.cluster.driver.get("gpu3.pci.domain"), self.cluster.driver.get("gpu3.pci.bus")
        line = f"NVRM: Xid (PCI:{domain:04x}:{bus:02x}:00): 79, pid=7194, name=python, GPU has fallen off the bus."
        with subprocess.Popen(
            [*self.cluster.inside("net"), "kubectl", "get", "node", self.cluster.name, "--watch", "-o",
             "jsonpath={.metadata.resourceVersion} {.spec.taints[*].value}{'\\n'}"],
            env=self.cluster.env, stdout=subprocess.PIPE, text=True,
        ) as watch:  # fmt: skip
            try:
                assert watch.stdout is not None
                watch.stdout.readline()
                began = time.monotonic()
                self._show(f"echo '<3>{line}' > /dev/kmsg", "")
                self.cluster.write_kernel_log(line)
                while CODE not in watch.stdout.readline():
                    assert watch.poll() is None
                self.figures["kernel line to taint, ms"] = 1000 * (time.monotonic() - began)
            finally:
                watch.kill()
        wait_for("the eviction", lambda: pod not in self._running("default", "app=work"))
        wait_for("the end of the drain", lambda: self._state() == "drained")
        self._run("kubectl", "get", "ghr,qb")
        self._run("gpuhealth", "node", self.cluster.name)

    def restore(self) -> None:
        """A person declares the node healthy: the taint goes, and work comes back."""
        self._run("gpuhealth", "restore", self.cluster.name)
        wait_for("the end of the taint", lambda: "gpuhealth.io/unhealthy" not in self._taints())
        self._wait_for_state("healthy")
        wait_for("the pod of the Deployment", lambda: self._running("default", "app=work"))
        wait_for("the controllers to be Ready", lambda: self._ready("controller") == 2)
        self._run("kubectl", "delete", "deployment", "work")

    def preflight(self) -> None:
        """A new node's preflight: with this taint it gets no work until its tests have passed."""
        self._run(
            "kubectl", "taint", "node", self.cluster.name, "gpuhealth.io/preflight=pending:NoSchedule", "--overwrite"
        )
        self._wait_for_state("preflight")
        wait_for("the preflight to open the node", lambda: "gpuhealth.io/preflight" not in self._taints())
        self._wait_for_state("healthy")
        self._run("kubectl", "get", "events", "--field-selector", "involvedObject.kind=Node")

    def burnin(self) -> None:
        """A burn-in of the idle node: the controller makes a Pod, and the agent reads its result."""
        capacity = {"status": {"capacity": {"nvidia.com/gpu": "8"}}}  # a device plugin does this
        self._run(
            "kubectl", "patch", "node", self.cluster.name, "--subresource=status", "--patch", json.dumps(capacity),
            show=False,
        )  # fmt: skip
        before = self._report().get("burnin")
        self._kustomize({"controller": {"periodic": {"enabled": True, "level": "quick", "every": "1h"}}})
        self._run("kubectl", "apply", "-k", self._folder, show=False)
        self._run("kubectl", "-n", "gpuhealth", "rollout", "restart", "deployment/gpuhealth-controller")
        wait_for("the burn-in's result in the report", lambda: self._report().get("burnin") not in (None, before))
        self._run("gpuhealth", "node", self.cluster.name)

    def upgrade(self) -> None:
        """An upgrade: new pods, and the journal of the node is still there."""
        self._kustomize({})
        self._run("kubectl", "apply", "-k", self._folder, show=False)
        self._run("kubectl", "-n", "gpuhealth", "rollout", "restart", "daemonset/gpuhealth-agent")
        self._run("kubectl", "-n", "gpuhealth", "rollout", "status", "daemonset/gpuhealth-agent", "--timeout=120s")
        events = self._in_agent("gpuhealth", "events", "--since", "1h").stdout
        assert CODE in events, f"the journal of before the upgrade is gone:\n{events}"

    def commands_beside_the_agent(self) -> None:
        """Two commands at once in the agent's pod: the agent goes on."""
        words = ["kubectl", "-n", "gpuhealth", "exec", "daemonset/gpuhealth-agent", "--", "gpuhealth", "check"]
        checks = [
            subprocess.Popen([*self.cluster.inside("net"), *words], env=self.cluster.env, stdout=subprocess.DEVNULL)
            for _ in range(2)
        ]
        assert [check.wait(180) for check in checks] == [0, 0]
        self._show(" ".join(words), self._in_agent("gpuhealth", "check").stdout)
        (pod,) = self._pods("gpuhealth", "app.kubernetes.io/component=agent")
        assert pod["status"]["containerStatuses"][0]["restartCount"] == 0
        self.figures["memory of the agent's pod, MiB"] = self.cluster.pod_memory(pod["metadata"]["uid"]) / 2**20

    def driver_upgrade(self) -> None:
        """A driver container is replaced under the running agent: its next NVML process loads the new library."""
        wait_for(
            "the agent to read the GPUs", lambda: self._in_agent("gpuhealth", "check", check=False).returncode == 0
        )
        self.cluster.remove_driver()
        assert self._in_agent("gpuhealth", "check", check=False).returncode != 0
        self.cluster.install_driver()
        wait_for("the GPUs again", lambda: self._in_agent("gpuhealth", "check", check=False).returncode == 0)

    def uninstall(self) -> None:
        """Removal: every mark is taken off the node, and nothing is left in the cluster."""
        self._run("gpuhealth", "uninstall", "--yes")
        self._run("kubectl", "delete", "-k", self._folder, "--ignore-not-found", show=False)
        self._show("kubectl delete -k daemonset", "")
        wait_for("the namespace to go", lambda: "gpuhealth" not in self.cluster.kubectl("get", "namespaces"))
        assert self.traces() == []

    # -- what is looked at ---------------------------------------------------------------------------------------------

    def traces(self) -> list[str]:
        """What is left of gpuhealth in the cluster."""
        node = self._node()
        marks = [*node["metadata"]["labels"], *node["metadata"]["annotations"], *self._taints()]
        found = [mark for mark in marks if mark.startswith("gpuhealth.io/")]
        found += [each["type"] for each in node["status"]["conditions"] if each["type"] == "GPUHealthy"]
        kinds = "crd,namespace,clusterrole,clusterrolebinding,priorityclass,lease,role,rolebinding,serviceaccount"
        listed = self.cluster.kubectl("get", kinds, "--all-namespaces", "-o", "name")
        return found + [name for name in listed.splitlines() if "gpuhealth" in name]

    def explain(self) -> str:
        """Pods, events and logs, for the report of a step that has failed."""
        parts = []
        for words in (
            ["get", "nodes,pods,ghr,qb", "-A", "-o", "wide"], ["get", "events", "-A"],
            ["describe", "pods", "-n", "gpuhealth"], ["describe", "node"],
            *(["logs", "-n", "gpuhealth", "-l", f"app.kubernetes.io/component={name}", "--tail=40", "--prefix"]
              for name in ("agent", "controller", "preflight", "burnin")),
        ):  # fmt: skip
            done = self.cluster.command("kubectl", *words)
            parts.append(f"$ kubectl {' '.join(words)}\n{(done.stdout + done.stderr)[-12000:]}")
        return "\n".join(parts)

    def _node(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.cluster.kubectl("get", "node", self.cluster.name, "-o", "json"))
        return found

    def _taints(self) -> list[str]:
        return [taint["key"] for taint in self._node()["spec"].get("taints", ())]

    def _state(self) -> str:
        return str(self._node()["metadata"]["labels"].get("gpuhealth.io/state"))

    def _wait_for_state(self, state: str) -> None:
        wait_for(f"the state {state}", lambda: self._state() == state)

    def _report(self) -> dict[str, Any]:
        done = self.cluster.command("kubectl", "get", "ghr", self.cluster.name, "-o", "json")
        found: dict[str, Any] = json.loads(done.stdout)["status"] if done.returncode == 0 else {}
        return found

    def _pods(self, namespace: str, selector: str) -> list[dict[str, Any]]:
        text = self.cluster.kubectl("get", "pods", "-n", namespace, "-l", selector, "-o", "json")
        found: list[dict[str, Any]] = json.loads(text)["items"]
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def _running(self, namespace: str, selector: str) -> list[str]:
        pods = self._pods(namespace, selector)
        return [pod["metadata"]["name"] for pod in pods if pod["status"]["phase"] == "Running"]

    def _ready(self, component: str) -> int:
        pods = self._pods("gpuhealth", f"app.kubernetes.io/component={component}")
        conditions = [each for pod in pods for each in pod["status"].get("conditions", ())]
        return sum(each["type"] == "Ready" and each["status"] == "True" for each in conditions)

    # -- what is done --------------------------------------------------------------------------------------------------

    def _run(self, *words: str | Path, show: bool = True) -> str:
        done = self.cluster.command(*words)
        if done.returncode and words[:2] != ("gpuhealth", "node"):  # whose exit code is the node's state
            raise RuntimeError(f"{' '.join(map(str, words))} failed: {done.stdout}{done.stderr}")
        if show:
            self._show(" ".join(map(str, words)), done.stdout)
        return done.stdout

    def _in_agent(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = ["kubectl", "-n", "gpuhealth", "exec", "daemonset/gpuhealth-agent", "--", *words]
        done = self.cluster.command(*command)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed: {done.stdout}{done.stderr}")
        return done

    def _write(self, name: str, text: str) -> None:
        (self._folder / name).write_text(text)

    def _kustomize(self, changes: dict[str, Any]) -> None:
        """The manifests as they are, with settings for a short test, and PyTorch from the node's disk."""
        (settings,) = yaml.safe_load_all((BASE / "settings.yaml").read_text())
        data = yaml.safe_load(settings["data"]["gpuhealth.yaml"])
        for key, value in {**_SETTINGS, **changes}.items():
            data[key] = {**data[key], **value} if isinstance(data.get(key), dict) else value
        settings["data"]["gpuhealth.yaml"] = yaml.safe_dump(data)
        patches = [{"patch": yaml.safe_dump(settings)}]
        for kind, name in (("PodTemplate", "burnin"), ("DaemonSet", "preflight")):
            container = {
                "name": name,
                "resources": {"requests": {"cpu": "100m", "memory": "512Mi"}},
                "env": [{"name": key, "value": value} for key, value in _DRIVER_VARIABLES.items()],
                "volumeMounts": [{"name": key, "mountPath": path} for key, (_, path) in _MOUNTS.items()],
            }
            volumes = [{"name": key, "hostPath": {"path": path}} for key, (path, _) in _MOUNTS.items()]
            pod = {"containers": [container], "volumes": volumes}
            change: dict[str, Any] = {"template": {"spec": pod}}
            metadata = {"name": f"gpuhealth-{name}", "namespace": "gpuhealth"}
            if kind == "PodTemplate":
                patch = {"apiVersion": "v1", "kind": kind, "metadata": metadata, **change}
            else:
                patch = {"apiVersion": "apps/v1", "kind": kind, "metadata": metadata, "spec": change}
            patches.append({"patch": yaml.safe_dump(patch)})
        self._write("kustomization.yaml", yaml.safe_dump({"resources": ["daemonset"], "patches": patches}))
