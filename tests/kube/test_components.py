"""The components: what the comment of each shows is built by kubectl, valid, and applied to a real API server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import kubernetes_validate  # type: ignore[import-untyped] # ships no type information
import pytest
import yaml
from kube import ControlPlane, Document
from testing.applying import stored
from testing.kubectl import built, shown_in
from testing.paths import BASE
from testing.started_plane import started_plane

from gpuhealth.api.names import PREFLIGHT_TAINT, TAINT

COMPONENTS = sorted(path.name for path in (BASE / "components").iterdir())
NOT_ON_THE_SERVER = {
    "PodMonitor",  # of another project
    "PrometheusRule",
    "ValidatingAdmissionPolicy",  # 1.20 does not have it
    "ValidatingAdmissionPolicyBinding",
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[ControlPlane]:
    """A control plane with nothing on it."""
    with started_plane() as made:
        yield made


def shown(component: str, folder: Path) -> list[Document]:
    """What kubectl builds from the kustomization in the comment of a component."""
    return built(shown_in(BASE / "components" / component / "kustomization.yaml", folder))


@pytest.mark.parametrize("component", COMPONENTS)
def test_valid(tmp_path: Path, component: str) -> None:
    """What the comment shows can be built, and each object is valid for an old and the newest Kubernetes."""
    for document in shown(component, tmp_path):
        if document["apiVersion"].startswith("monitoring.coreos.com/"):
            continue
        for version in ("1.25", "1.37"):
            if version == "1.37" or not document["kind"].startswith("ValidatingAdmission"):
                kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("flags", [(), ("--server-side", "--force-conflicts")], ids=["client", "server"])
def test_applied_twice(cluster: ControlPlane, tmp_path: Path, flags: tuple[str, ...]) -> None:
    """kubectl applies the base with all components at once, and a second time nothing changes."""
    components = [f"daemonset/components/{name}" for name in COMPONENTS]
    content = {"resources": ["daemonset", "daemonset/admission"], "components": components}
    (tmp_path / "daemonset").symlink_to(BASE)
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    objects = [d for d in built(tmp_path) if d["kind"] not in NOT_ON_THE_SERVER]
    file = tmp_path / "objects.yaml"
    file.write_text(yaml.safe_dump_all(objects), encoding="utf-8")
    assert stored(cluster, file, *flags) == stored(cluster, file, *flags)


def test_aks(tmp_path: Path) -> None:
    """Preflight and burn-in get to nodes with the taint of AKS, and keep the tolerations that they had."""
    objects = {(d["kind"], d["metadata"]["name"]): d for d in shown("aks", tmp_path)}
    preflight = objects["DaemonSet", "gpuhealth-preflight"]["spec"]["template"]["spec"]["tolerations"]
    burnin = objects["PodTemplate", "gpuhealth-burnin"]["template"]["spec"]["tolerations"]
    for tolerations in (preflight, burnin):
        assert {"key": "sku", "operator": "Equal", "value": "gpu", "effect": "NoSchedule"} in tolerations
        assert {"key": "nvidia.com/gpu", "operator": "Exists"} in tolerations


def test_tolerations_for_the_gpu_operator() -> None:
    """Its pods tolerate our taints and NVIDIA's."""
    values = yaml.safe_load((BASE / "examples/gpu-operator-values.yaml").read_text(encoding="utf-8"))
    for tolerations in (values["daemonsets"]["tolerations"], values["node-feature-discovery"]["worker"]["tolerations"]):
        keys = {each["key"] for each in tolerations if (each["operator"], each["effect"]) == ("Exists", "NoSchedule")}
        assert {"nvidia.com/gpu", TAINT, PREFLIGHT_TAINT} <= keys


def test_gke(tmp_path: Path) -> None:
    """The quota is for the priority classes that our pods have."""
    objects = shown("gke", tmp_path)
    (quota,) = [d for d in objects if d["kind"] == "ResourceQuota"]
    (scope,) = quota["spec"]["scopeSelector"]["matchExpressions"]
    workloads = [d for d in objects if d["kind"] in {"DaemonSet", "Deployment"}]
    assert set(scope["values"]) == {d["spec"]["template"]["spec"]["priorityClassName"] for d in workloads}
    assert {d["metadata"]["namespace"] for d in workloads} == {quota["metadata"]["namespace"]}


def test_openshift(tmp_path: Path) -> None:
    """Every service account whose pods are not restricted may use the constraints that allow them."""
    objects = shown("openshift", tmp_path)
    bound = {
        subject["name"]: d["roleRef"]["name"].removeprefix("system:openshift:scc:")
        for d in objects
        if d["kind"] == "RoleBinding" and d["roleRef"]["name"].startswith("system:openshift:scc:")
        for subject in d["subjects"]
    }
    pods = [d.get("spec", d)["template"]["spec"] for d in objects if "template" in d.get("spec", d)]
    assert bound.keys() == {pod.get("serviceAccountName", "default") for pod in pods}
    assert {name for name, scc in bound.items() if scc == "nonroot-v2"} == {"gpuhealth-controller"}


def test_prometheus_has_all_rules() -> None:
    """The PrometheusRule holds the alerts of the file for a plain Prometheus."""
    rules = yaml.safe_load((BASE.parent / "dashboards/prometheus/rules.yaml").read_text(encoding="utf-8"))
    (rule,) = [d for d in built_files("prometheus") if d["kind"] == "PrometheusRule"]
    assert rule["spec"] == rules


def built_files(component: str) -> list[Document]:
    """The documents of a component's own files."""
    folder = BASE / "components" / component
    names = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))["resources"]
    return [d for name in names for d in yaml.safe_load_all((folder / name).read_text(encoding="utf-8"))]
