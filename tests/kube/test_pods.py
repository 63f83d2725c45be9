"""Every pod of the manifests runs with no more than it needs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped] # ships no type information
import pytest
import yaml
from kube import ControlPlane, Document, documents
from testing.paths import BASE

from gpuhealth.kube.client import STRATEGIC_MERGE_PATCH
from gpuhealth.monitors.settings import load

EXCEPTIONS = {
    ("gpuhealth-agent", "hostPID"): "gpu.leaked_memory, gpu.zombie_process: NVML shows no processes from elsewhere",
    ("gpuhealth-agent", "privileged"): "/dev/kmsg: Kubernetes has no field for a device",
    ("gpuhealth-agent", "escalation"): "follows from privileged",
    ("gpuhealth-agent", "capabilities"): "follows from privileged",
    ("gpuhealth-agent", "root"): "/dev/kmsg is root's",
    ("gpuhealth-agent", "hostPath host"): "processes, sysfs, disks, and the driver's library wherever it is installed",
    ("gpuhealth-agent", "hostPath dev"): "GPUs that appear later, and the kernel log",
    ("gpuhealth-agent", "writable dev"): "libnvidia-ml makes nodes that are missing",
    ("gpuhealth-agent", "hostPath journal"): "what was seen must survive the pod",
    ("gpuhealth-agent", "writable journal"): "the same",
    ("gpuhealth-preflight", "hostPID"): "the agent's checks, and processes that use the GPUs",
    ("gpuhealth-preflight", "privileged"): "/dev/kmsg: Kubernetes has no field for a device",
    ("gpuhealth-preflight", "escalation"): "follows from privileged",
    ("gpuhealth-preflight", "capabilities"): "follows from privileged",
    ("gpuhealth-preflight", "root"): "/dev/kmsg is root's",
    ("gpuhealth-preflight", "hostPath host"): "the same",
    ("gpuhealth-preflight", "hostPath journal"): "how many GPUs the node had before a reboot",
    ("gpuhealth-preflight", "hostPath results"): "its results are left on the node for the agent",
    ("gpuhealth-preflight", "writable results"): "the same",
    ("gpuhealth-preflight", "memory"): "what is staged on the host grows with the node's GPUs",
    ("gpuhealth-burnin", "root"): "it writes where root's agent reads",
    ("gpuhealth-burnin", "hostPath results"): "its results are left on the node: it has no rights on the API server",
    ("gpuhealth-burnin", "writable results"): "the same",
    ("gpuhealth-burnin", "memory"): "what is staged on the host grows with the node's GPUs",
}
"""What a pod has beyond the Pod Security Standard "restricted", and why. The manifests say more."""
PLAIN_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}


def pods() -> Iterator[tuple[str, Document]]:
    """Name and spec of every pod that some file below daemonset/ makes."""
    for file in sorted(BASE.rglob("*.yaml")):
        if {"chart", "components"} & set(file.relative_to(BASE).parts):  # the same pods, or changes of them
            continue
        for document in yaml.safe_load_all(file.read_text(encoding="utf-8")):
            yield from _pods(document["metadata"]["name"] if document and "metadata" in document else "", document)


def _pods(name: str, found: Any) -> Iterator[tuple[str, Document]]:
    if isinstance(found, dict):
        if isinstance(found.get("containers"), list):
            yield name, found
        for value in found.values():
            yield from _pods(name, value)


def excesses(pod: Document) -> Iterator[str]:
    """What the pod has that "restricted" forbids, and what we ask for beyond that."""
    yield from (field for field in ("hostPID", "hostNetwork", "hostIPC") if pod.get(field))
    if "automountServiceAccountToken" not in pod:
        yield "token"
    whole = pod.get("securityContext", {})
    if whole.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "seccomp"
    for volume in pod.get("volumes", []):
        (kind,) = volume.keys() - {"name"}
        if kind not in PLAIN_VOLUMES:
            yield f"{kind} {volume['name']}"
    host = {volume["name"] for volume in pod.get("volumes", []) if "hostPath" in volume}
    for container in pod["containers"] + pod.get("initContainers", []):
        own = container.get("securityContext", {})
        if own.get("privileged"):
            yield "privileged"
        if own.get("allowPrivilegeEscalation") is not False:
            yield "escalation"
        if own.get("capabilities", {}).get("drop") != ["ALL"] or own.get("capabilities", {}).get("add"):
            yield "capabilities"
        if not own.get("readOnlyRootFilesystem"):
            yield "writable root"
        if (whole | own).get("runAsNonRoot") is not True or (whole | own).get("runAsUser", 1) == 0:
            yield "root"
        if "memory" not in container.get("resources", {}).get("limits", {}):
            yield "memory"
        yield from (f"writable {m['name']}" for m in container.get("volumeMounts", []) if _writes(m, host))
        yield from (f"hostPort {port['hostPort']}" for port in container.get("ports", []) if "hostPort" in port)


def _writes(mount: Document, host: set[str]) -> bool:
    return mount["name"] in host and not mount.get("readOnly")


def test_pods_have_no_more_than_they_need() -> None:
    """Each is restricted but for the exceptions that are named, and each exception is needed."""
    found = {(name, excess) for name, pod in pods() for excess in excesses(pod)}
    assert found == EXCEPTIONS.keys()
    assert {"gpuhealth-agent", "gpuhealth-controller"} <= {name for name, _ in pods()}


@pytest.mark.parametrize(
    ("change", "excess"),
    [
        ({"hostNetwork": True}, "hostNetwork"),
        ({"securityContext": {"runAsNonRoot": True}}, "seccomp"),
        ({"securityContext": {"seccompProfile": {"type": "RuntimeDefault"}}}, "root"),
        ({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}, "hostPath v"),
    ],
)
def test_excesses_are_found(change: Document, excess: str) -> None:
    """The controller's pod has none, and one that has one is found out."""
    (pod,) = [pod for name, pod in pods() if name == "gpuhealth-controller"]
    assert list(excesses(pod)) == []
    assert list(excesses(pod | change)) == [excess]


def test_tokens_are_not_mounted_by_default() -> None:
    """A service account's token goes only into a pod that asks for it."""
    for file in sorted(BASE.glob("*.yaml")):
        for document in yaml.safe_load_all(file.read_text(encoding="utf-8")):
            if document["kind"] == "ServiceAccount":
                assert document["automountServiceAccountToken"] is False, document["metadata"]["name"]


@pytest.mark.parametrize(
    "document", documents(BASE / "components" / "secure-metrics" / "access.yaml"), ids=lambda d: d["kind"]
)
def test_schema(document: Document) -> None:
    """The component's own objects are valid, strictly, for the newest Kubernetes."""
    kubernetes_validate.validate(document, "1.37", strict=True)


@pytest.mark.parametrize("name", ["agent", "controller"])
def test_secure_metrics(plane: ControlPlane, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The component fits the pods: probes over TLS, files where the settings look for them, nothing else changed."""
    component = yaml.safe_load(
        (BASE / "components" / "secure-metrics" / "kustomization.yaml").read_text(encoding="utf-8")
    )
    assert component["patches"] == [{"path": "agent.yaml"}, {"path": "controller.yaml"}]
    text = (BASE / "components" / "secure-metrics" / f"{name}.yaml").read_text(encoding="utf-8")
    workload, service = yaml.safe_load_all(text)
    before = plane.request("GET", plane.path_of(workload))["spec"]["template"]["spec"]
    patched = plane.request(
        "PATCH", f"{plane.path_of(workload)}?dryRun=All", workload, content_type=STRATEGIC_MERGE_PATCH
    )
    pod = patched["spec"]["template"]["spec"]
    assert list(excesses(pod)) == list(excesses(before))
    (container,), (old,) = pod["containers"], before["containers"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        new_get, old_get = container[probe]["httpGet"], old[probe]["httpGet"]
        assert new_get == old_get | {"scheme": "HTTPS"}
    monkeypatch.delenv("GPUHEALTH_CONFIG", raising=False)
    for variable in container["env"]:
        if variable["name"] != "GPUHEALTH_CONFIG":
            monkeypatch.setenv(variable["name"], variable.get("value", "a-node"))
    settings = load()
    http = settings.http if name == "agent" else settings.controller.http
    assert http.tls is not None
    assert http.authorization == "kubernetes"
    (mount,) = [m["mountPath"] for m in container["volumeMounts"] if m["name"] == "tls"]
    assert {str(http.tls.cert.parent), str(http.tls.key.parent)} == {mount}
    (secret,) = [volume["secret"]["secretName"] for volume in pod["volumes"] if volume["name"] == "tls"]
    assert secret == f"gpuhealth-{name}-tls"
    annotations = plane.request(
        "PATCH", f"{plane.path_of(service)}?dryRun=All", service, content_type=STRATEGIC_MERGE_PATCH
    )["metadata"]["annotations"]
    assert annotations["prometheus.io/scheme"] == "https"
    assert annotations["prometheus.io/scrape"] == "true"
