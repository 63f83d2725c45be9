"""The Helm chart: the same objects as the kustomization, whatever is enabled, and taken by a real API server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chart
import kubernetes_validate  # type: ignore[import-untyped] # ships no type information
import pytest
import yaml
from kube import ControlPlane, Document, MissingBinariesError
from kube.policy_plugin import problems
from testing.applying import stored
from testing.helm import CHART, MISSING, Helm, HelmError, is_installed
from testing.kubectl import built
from testing.paths import BASE
from testing.started_plane import started_plane

from gpuhealth import __version__
from gpuhealth.kube.kinds import BUDGETS, REPORTS
from gpuhealth.monitors.settings import load

Objects = dict[tuple[str, str, str], Document]
BOTH = ["daemonset", "daemonset/admission"]
SECURE, PROMETHEUS, GKE, AKS, OPENSHIFT, RUNTIME_CLASS, UNPRIVILEGED = (
    f"daemonset/components/{name}"
    for name in ("secure-metrics", "prometheus", "gke", "aks", "openshift", "runtime-class", "unprivileged")
)
NOT_OURS = {"PodMonitor", "PrometheusRule"}
"""Kinds of other projects, which no control plane of the tests has."""
POLICIES = {"ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"}
EVERYTHING = {
    "secureMetrics": {"enabled": True},
    "prometheus": {"enabled": True, "labels": {"release": "monitoring"}},
    "imagePullPolicy": "Always",
    "imagePullSecrets": [{"name": "registry"}],
    "agent": {"nodeLabels": {"example.com/gpu": ["yes"], "example.com/accelerator": []}},
    "controller": {
        "nodeSelector": {"node-role.kubernetes.io/infra": ""},
        "tolerations": [{"key": "infra", "operator": "Exists"}],
    },
    "preflight": {"tolerations": [{"key": "team", "operator": "Equal", "value": "a", "effect": "NoSchedule"}]},
    "burnin": {"tolerations": [{"key": "team", "operator": "Exists"}]},
}


def without(*files: str) -> Document:
    """A patch that takes the objects of some files out of the kustomization."""
    objects = [d for file in files for d in yaml.safe_load_all((BASE / file).read_text(encoding="utf-8"))]
    delete = [
        {"$patch": "delete", **{key: d[key] for key in ("apiVersion", "kind")}, "metadata": _name(d)} for d in objects
    ]
    return {"patches": [{"patch": yaml.safe_dump(each)} for each in delete]}


def _name(document: Document) -> Document:
    return {key: value for key, value in document["metadata"].items() if key in {"name", "namespace"}}


CASES: dict[str, tuple[Document, Document]] = {
    "defaults": ({}, {"resources": BOTH}),
    "no policies": ({"admissionPolicies": {"enabled": False}}, {"resources": ["daemonset"]}),
    "secure metrics": ({"secureMetrics": {"enabled": True}}, {"resources": BOTH, "components": [SECURE]}),
    "prometheus": ({"prometheus": {"enabled": True}}, {"resources": BOTH, "components": [PROMETHEUS]}),
    "gke": ({"platform": "gke"}, {"resources": BOTH, "components": [GKE]}),
    "aks": ({"platform": "aks"}, {"resources": BOTH, "components": [AKS]}),
    "openshift": ({"platform": "openshift"}, {"resources": BOTH, "components": [OPENSHIFT]}),
    "no preflight": ({"preflight": {"enabled": False}}, {"resources": BOTH, **without("preflight.yaml")}),
    "no burn-in": ({"burnin": {"enabled": False}}, {"resources": BOTH, **without("burnin.yaml")}),
    "no definitions": (
        {"crds": {"enabled": False}},
        {"resources": BOTH, **without("crds/gpuhealthreports.yaml", "crds/quarantinebudgets.yaml")},
    ),
    "runtime class": ({"runtimeClass": {"enabled": True}}, {"resources": BOTH, "components": [RUNTIME_CLASS]}),
    "unprivileged": ({"unprivileged": {"enabled": True}}, {"resources": BOTH, "components": [UNPRIVILEGED]}),
    "aks with secure metrics": (
        {"platform": "aks", "secureMetrics": {"enabled": True}, "prometheus": {"enabled": True}},
        {"resources": BOTH, "components": [AKS, SECURE, PROMETHEUS]},
    ),
}


@pytest.fixture(scope="module")
def helm() -> Iterator[Helm]:
    """Helm with the chart."""
    if not is_installed():
        pytest.skip(MISSING)
    with Helm() as made:
        yield made


@pytest.fixture(scope="module")
def cluster() -> Iterator[ControlPlane]:
    """A control plane with nothing on it."""
    with started_plane() as made:
        yield made


def kustomized(folder: Path, content: Document) -> list[Document]:
    """What kubectl builds from a kustomization next to the folder daemonset."""
    (folder / "daemonset").symlink_to(BASE)
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return built(folder)


def comparable(documents: list[Document]) -> Objects:
    """Objects by kind, namespace and name, without what differs by intention between Helm and kustomize."""
    found: Objects = {}
    for document in documents:
        if document["kind"] == "Namespace":  # Helm makes it, with --create-namespace
            continue
        metadata = document["metadata"]
        if document["kind"] == "CustomResourceDefinition":
            metadata.get("annotations", {}).pop("helm.sh/resource-policy", None)
        if not metadata.get("annotations", True):
            del metadata["annotations"]
        if document["kind"] == "ConfigMap":  # other comments, and another order
            document["data"] = {key: yaml.safe_load(text) for key, text in document["data"].items()}
        key = (document["kind"], metadata.get("namespace", ""), metadata["name"])
        assert key not in found, f"two objects are {key}"
        found[key] = _sorted(document)
    return found


def _sorted(part: Any) -> Any:
    """Lists of named items in the order of their names: kustomize puts what a patch adds first."""
    if isinstance(part, dict):
        return {key: _sorted(value) for key, value in part.items()}
    if not isinstance(part, list):
        return part
    items = [_sorted(each) for each in part]
    named = all(isinstance(each, dict) and "name" in each for each in items)
    return sorted(items, key=lambda each: each["name"]) if named else items


@pytest.mark.parametrize("case", CASES)
def test_the_same_objects_as_kustomize(helm: Helm, tmp_path: Path, case: str) -> None:
    """With default values, and with each part enabled or left out, both make the same objects."""
    values, kustomization = CASES[case]
    ours, theirs = comparable(helm.render(values)), comparable(kustomized(tmp_path, kustomization))
    assert ours.keys() == theirs.keys()
    for key, document in ours.items():
        assert document == theirs[key], key


def test_every_component_is_compared() -> None:
    """Each component is a part of the chart and has a case above; of eks the chart has the settings."""
    used = {Path(name).name for _, content in CASES.values() for name in content.get("components", ())}
    assert used == chart.COMPONENTS.keys()
    assert used | {"eks"} == {path.name for path in (BASE / "components").iterdir()}


def test_eks(helm: Helm, tmp_path: Path) -> None:
    """The component sets the setting by a variable, the chart in the file; the policies are the same."""
    theirs = comparable(kustomized(tmp_path, {"resources": BOTH, "components": ["daemonset/components/eks"]}))
    agent = theirs["DaemonSet", "gpuhealth", "gpuhealth-agent"]["spec"]["template"]["spec"]["containers"][0]
    (text,) = [each["value"] for each in agent["env"] if each["name"] == "GPUHEALTH_CONDITIONS"]
    ours = comparable(helm.render({"settings": {"conditions": yaml.safe_load(text)}}))
    assert {key: d for key, d in ours.items() if key[0] in POLICIES} == {
        key: d for key, d in theirs.items() if key[0] in POLICIES
    }
    settings = ours["ConfigMap", "gpuhealth", "gpuhealth"]["data"]["gpuhealth.yaml"]
    assert settings["conditions"] == [{"type": "AcceleratedHardwareReady"}]


def test_the_files_are_fresh() -> None:
    """What is checked in is what the tool makes; else run python tools/chart.py."""
    stale = [path for path, text in chart.files().items() if path.read_text(encoding="utf-8") != text]
    assert stale == []
    assert set((CHART / "templates").rglob("*.yaml")) <= chart.files().keys()


def test_versions(helm: Helm) -> None:
    """Chart and images have the version of the package, which gpuhealth/__init__.py sets."""
    metadata = helm.call("metadata")
    assert (metadata["version"], metadata["appVersion"]) == (__version__, __version__)


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["defaults", "everything"])
def test_lint(helm: Helm, values: Document) -> None:
    """`helm lint --strict` has nothing to say, but that there is no icon."""
    report = helm.call("lint", values=values)
    assert [m for m in report["messages"] if m["error"] != "icon is recommended"] == []
    assert report["errors"] == []


def test_another_namespace(helm: Helm, tmp_path: Path) -> None:
    """Objects, subjects of bindings and policies follow the namespace of the release, as with kustomize."""
    ours = helm.render(namespace="gpu-ops")
    inner = tmp_path / "inner"
    inner.mkdir()
    kustomized(inner, {"resources": BOTH, "namespace": "gpu-ops"})
    theirs = kustomized(tmp_path, {"resources": ["inner"], "components": ["daemonset/admission/follow"]})
    assert comparable(ours) == comparable(theirs)
    text = yaml.safe_dump_all(ours)
    assert not re.search(r"serviceaccount:gpuhealth:|namespace: gpuhealth\b", text)


def test_the_policies_compile(helm: Helm) -> None:
    """The API server takes the expressions of the policies also when values are in them."""
    values = {
        "settings": {
            "mode": "cordon",
            "preflight": {"taint": "startup-taint.example.com/gpuhealth"},
            "conditions": [{"type": "GPUProblem", "status_when_unhealthy": True}],
        },
        "burninImage": {"repository": "r.example/b", "digest": f"sha256:{'a' * 64}"},
    }
    policies = [d for d in helm.render(values, namespace="gpu-ops") if d["kind"] in POLICIES]
    assert policies
    try:
        assert problems(policies) == []
    except MissingBinariesError as error:
        pytest.skip(str(error))


def test_values_reach_policies_and_pods(helm: Helm) -> None:
    """Mode, preflight taint and image are the same in settings, pods and policies."""
    values = {
        "settings": {
            "mode": "cordon",
            "preflight": {"taint": "example.com/new"},
            "conditions": [{"type": "GPUProblem"}],
            "quarantine": {"cordon_reason": "example.com/reason"},
        },
        "burninImage": {"repository": "r.example/b", "tag": "7"},
    }
    objects = comparable(helm.render(values))
    nodes = objects["ValidatingAdmissionPolicy", "", "gpuhealth-nodes"]["spec"]["variables"]
    literals = {each["name"]: each["expression"] for each in nodes}
    assert (literals["mode"], literals["preflightTaint"]) == ("'cordon'", "'example.com/new'")
    assert literals["cordonReason"] == "'example.com/reason'"
    status = objects["ValidatingAdmissionPolicy", "", "gpuhealth-node-status"]["spec"]["variables"]
    assert {each["name"]: each["expression"] for each in status}["conditions"] == "['GPUHealthy', 'GPUProblem']"
    burnins = objects["ValidatingAdmissionPolicy", "", "gpuhealth-burnins"]["spec"]["variables"]
    assert {each["name"]: each["expression"] for each in burnins}["image"] == "'r.example/b:7'"
    template = objects["PodTemplate", "gpuhealth", "gpuhealth-burnin"]["template"]["spec"]
    preflight = objects["DaemonSet", "gpuhealth", "gpuhealth-preflight"]["spec"]["template"]["spec"]
    assert [pod["containers"][0]["image"] for pod in (template, preflight)] == ["r.example/b:7"] * 2
    assert {"key": "example.com/new", "operator": "Exists"} in preflight["tolerations"]


def test_a_setting_is_taken_out(helm: Helm) -> None:
    """Null takes a setting out of the file, and the policies have the agent's default."""
    objects = comparable(helm.render({"settings": {"mode": None, "interval": None}}))
    assert (
        objects["ConfigMap", "gpuhealth", "gpuhealth"]["data"]["gpuhealth.yaml"]
        .keys()
        .isdisjoint({"mode", "interval", "preflight"})
    )
    nodes = objects["ValidatingAdmissionPolicy", "", "gpuhealth-nodes"]["spec"]["variables"]
    literals = {each["name"]: each["expression"] for each in nodes}
    assert (literals["mode"], literals["preflightTaint"]) == ("'taint'", "'gpuhealth.io/preflight'")


def test_settings_are_valid(helm: Helm, tmp_path: Path) -> None:
    """The agent takes the settings of the ConfigMap, those of the values among them."""
    values = {"settings": {"interval": 5, "xid": {"coalesce": "1m30s"}, "findings": {"pcie.*": {"severity": "info"}}}}
    (data,) = [d["data"] for d in helm.render(values) if d["kind"] == "ConfigMap"]
    path = tmp_path / "gpuhealth.yaml"
    path.write_text(data["gpuhealth.yaml"], encoding="utf-8")
    settings = load(path)
    assert (settings.interval, settings.xid.coalesce, str(settings.roots.proc)) == (5, 90, "/host/proc")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"agent": {"resourses": {}}}, "at '/agent': additional properties 'resourses' not allowed"),
        ({"settings": {"intervall": "10s"}}, "at '/settings': additional properties 'intervall' not allowed"),
        ({"settings": {"mode": "tain"}}, "at '/settings/mode': value must be one of 'observe', 'taint', 'cordon'"),
        ({"settings": {"interval": "soon"}}, "at '/settings/interval': 'soon' does not match pattern"),
        ({"settings": {"kmsg": {"lookback": -1}}}, "at '/settings/kmsg/lookback': minimum: got -1, want 0"),
        ({"controller": {"replicas": "two"}}, "at '/controller/replicas': got string, want integer"),
        ({"imagePullSecrets": ["registry"]}, "at '/imagePullSecrets/0': got string, want object"),
        ({"image": {"tag": "a tag"}}, "at '/image/tag': 'a tag' does not match pattern"),
        ({"image": {"repository": "it's"}}, "at '/image/repository': 'it\\'s' does not match pattern"),
        ({"settings": {"preflight": {"taint": "it's"}}}, "at '/settings/preflight/taint': 'it\\'s' does not match"),
        ({"platform": "GKE"}, "at '/platform': value must be one of '', 'aks', 'gke', 'openshift'"),
        ({"quarantineBudget": {"spec": {"maxUnavailable": "5"}}}, "at '/quarantineBudget/spec/maxUnavailable'"),
        ({"quarantineBudget": {"spec": {"maxUnavailible": 5}}}, "additional properties 'maxUnavailible' not allowed"),
        ({"preflight": {"tolerations": [{"operator": "exists"}]}}, "at '/preflight/tolerations/0/operator'"),
        ({"agent": {"resources": {"limits": {"memory": ["1Gi"]}}}}, "at '/agent/resources/limits/memory'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_nonsense_is_refused(helm: Helm, values: Document, words: str) -> None:
    """The schema refuses unknown names and values of a wrong type, and the message names the place."""
    with pytest.raises(HelmError, match=re.escape(words)):
        helm.render(values)


@pytest.mark.parametrize("version", ["1.25", "1.31", "1.37"])
def test_schemas_of_kubernetes(helm: Helm, version: str) -> None:
    """Every object, with all there is to enable, is valid for an old, a current and the newest Kubernetes."""
    for document in helm.render(EVERYTHING):
        if document["kind"] in NOT_OURS or (version == "1.25" and document["kind"] in POLICIES):
            continue
        kubernetes_validate.validate(document, version, strict=True)


def test_notes(helm: Helm) -> None:
    """The notes name what is missing: a budget, or an API server that knows the policies."""
    path = "gpuhealth/templates/NOTES.txt"
    assert "No node is taken out of service before" in helm.files()[path]
    with_budget = helm.files({"quarantineBudget": {"enabled": True}})[path]
    assert "is not made yet" in with_budget
    assert "No node is taken" not in with_budget


@pytest.mark.parametrize("flags", [(), ("--server-side", "--force-conflicts")], ids=["client", "server"])
def test_kubectl_applies_it_twice(helm: Helm, cluster: ControlPlane, tmp_path: Path, flags: tuple[str, ...]) -> None:
    """kubectl applies what Helm renders, and a second time nothing changes."""
    namespace = f"applied-{len(flags)}"
    cluster.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}])
    objects = [d for d in helm.render(EVERYTHING, namespace) if d["kind"] not in NOT_OURS | POLICIES]
    file = tmp_path / "release.yaml"
    file.write_text(yaml.safe_dump_all(objects), encoding="utf-8")
    assert stored(cluster, file, *flags) == stored(cluster, file, *flags)


def test_install_upgrade_uninstall(helm: Helm, tmp_path: Path) -> None:
    """A release is installed, gets its budget with the next upgrade, and leaves the definitions when it goes."""
    try:
        with ControlPlane() as plane:
            _life(helm, plane)
    except MissingBinariesError as error:
        pytest.skip(str(error))


def _life(helm: Helm, plane: ControlPlane) -> None:
    plane.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "gpu-ops"}}])

    def run(action: str, values: Document) -> Any:
        return helm.call(action, values=values, kubeconfig=str(plane.kubeconfig), namespace="gpu-ops")

    def budgets() -> list[str]:
        return [each["metadata"]["name"] for each in plane.request("GET", BUDGETS.path())["items"]]

    values = {"quarantineBudget": {"enabled": True, "name": "all", "spec": {"maxUnavailable": 3}}}
    run("install", values)
    agents = plane.request("GET", "/apis/apps/v1/namespaces/gpu-ops/daemonsets/gpuhealth-agent")
    assert agents["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "Helm"
    assert budgets() == []
    run("upgrade", values)
    assert budgets() == ["all"]
    spec = plane.request("GET", BUDGETS.path("all"))["spec"]
    assert (spec["maxUnavailable"], spec["maxPerFault"]) == (3, "1%")
    run("upgrade", {**values, "settings": {"mode": "observe"}})
    settings = plane.request("GET", "/api/v1/namespaces/gpu-ops/configmaps/gpuhealth")["data"]["gpuhealth.yaml"]
    assert yaml.safe_load(settings)["mode"] == "observe"
    run("uninstall", {})
    definitions = plane.request("GET", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions")["items"]
    assert {each["spec"]["names"]["plural"] for each in definitions} == {REPORTS.plural, BUDGETS.plural}
    assert plane.request("GET", "/apis/apps/v1/namespaces/gpu-ops/daemonsets")["items"] == []
    run("install", {})
    run("uninstall", {})
