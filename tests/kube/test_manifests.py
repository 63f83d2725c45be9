"""The manifests: valid for today's Kubernetes, taken by a real API server, and consistent with the code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kube import ControlPlane, Document, documents
from kube.control_plane import RequestError
from testing.cluster_objects import Pool
from testing.paths import BASE

from gpuhealth import __version__
from gpuhealth.api.names import GPU_NODE_LABELS
from gpuhealth.kube.kinds import BUDGETS, REPORTS
from gpuhealth.monitors.settings import load

BUDGET = {"apiVersion": "gpuhealth.io/v1alpha1", "kind": "QuarantineBudget", "metadata": {"name": "valid"}}
ALL = documents(BASE)
_IMAGE_TAG = re.compile(r"\bgpuhealth(?:-\w+)?(?::|, newTag: )(\d[\w.+-]*)")
BAD_SELECTORS = [
    *(
        {"matchExpressions": [term]}
        for term in (
            {"key": "a", "operator": "Gt"},
            {"key": "a", "operator": "In"},
            {"key": "a", "operator": "NotIn", "values": []},
            {"key": "a", "operator": "Exists", "values": ["b"]},
            {"key": "a", "operator": "DoesNotExist", "values": ["b"]},
            {"key": "", "operator": "Exists"},
            {"key": "a b", "operator": "Exists"},
            {"key": "-a", "operator": "Exists"},
            {"key": "A.b/c", "operator": "Exists"},
            {"key": "a/b/c", "operator": "Exists"},
            {"key": "k" * 64, "operator": "Exists"},
            {"key": "a", "operator": "In", "values": ["b c"]},
            {"key": "a", "operator": "In", "values": ["v" * 64]},
            {"operator": "Exists"},
            {"key": "a"},
        )
    ),
    {"matchLabels": {"a": "b c"}},
    {"matchLabels": {"a": 5}},
    {"matchLabels": "a=b"},
]
GOOD_TERMS = [
    {"key": "a", "operator": "In", "values": ["", "b"]},
    {"key": "cloud.google.com/gke-accelerator", "operator": "Exists"},
    {"key": "A_b.c", "operator": "DoesNotExist", "values": []},
    {"key": "x.y/" + "k" * 63, "operator": "NotIn", "values": ["v" * 63]},
]


def identity(document: Document) -> str:
    """A document's name in a test report."""
    return f"{document['kind']}/{document['metadata']['name']}"


def agent() -> Any:
    """Spec of the agent's pod."""
    (daemon_set,) = [d for d in ALL if d["kind"] == "DaemonSet" and d["metadata"]["name"] == "gpuhealth-agent"]
    return daemon_set["spec"]["template"]["spec"]


def pods(document: Any) -> Iterator[Any]:
    """Every pod's spec in a document, however deep: of DaemonSets, Deployments, PodTemplates and kinds to come."""
    if isinstance(document, dict):
        if "containers" in document:
            yield document
        for value in document.values():
            yield from pods(value)


@pytest.mark.parametrize("document", [d for d in ALL if any(pods(d))], ids=identity)
def test_no_pod_has_variables_of_services(document: Document) -> None:
    """No pod gets variables of the namespace's Services: those of one named gpuhealth… would look like settings."""
    assert [pod.get("enableServiceLinks") for pod in pods(document)] == [False]


def test_pods_of_all_kinds_are_looked_at() -> None:
    """The test above finds the pods of both DaemonSets, the Deployment and the PodTemplate."""
    kinds = sorted(d["kind"] for d in ALL if any(pods(d)))
    assert kinds == ["DaemonSet", "DaemonSet", "Deployment", "PodTemplate"]


def test_agents_get_to_every_node_that_needs_one() -> None:
    """The DaemonSet selects the labels by which controller and commands expect an agent on a node, and no others."""
    (affinity,) = agent()["affinity"].values()
    terms = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    expressions = [expression for term in terms for expression in term["matchExpressions"]]
    selected = {each["key"]: (each["operator"], tuple(each.get("values", ()))) for each in expressions}
    assert selected == {key: ("In" if values else "Exists", values) for key, values in GPU_NODE_LABELS.items()}
    assert len(expressions) == len(terms), "each term selects by one label"


def test_the_agent_s_memory_is_enough_for_commands() -> None:
    """The limit leaves room for two manual checks in addition to the agent: 220 MiB, measured with 8 GPUs."""
    assert agent()["containers"][0]["resources"]["limits"] == {"memory": "400Mi"}


@pytest.mark.parametrize("name", ["gpuhealth-agent", "gpuhealth-controller"])
def test_probes_follow_a_start_closely(name: str) -> None:
    """A start has two minutes, and is noticed within a second; a process that answers is Ready two seconds later, and a
    running one that stops answering is killed after a minute as before."""
    ((container,),) = [pod["containers"] for d in ALL if d["metadata"]["name"] == name for pod in pods(d)]
    startup, live, ready = (container[f"{kind}Probe"] for kind in ("startup", "liveness", "readiness"))
    assert startup["periodSeconds"] * startup["failureThreshold"] == 120
    assert startup["periodSeconds"] + ready["periodSeconds"] <= 3
    assert "initialDelaySeconds" not in startup | ready
    assert ready["periodSeconds"] * ready["failureThreshold"] == 30
    assert live["periodSeconds"] * live["failureThreshold"] == 60
    assert (startup["httpGet"], ready["httpGet"]["path"]) == (live["httpGet"], "/readyz")


def test_images_have_the_version_and_a_name_that_no_registry_serves() -> None:
    """Each pod has an image of this version, which gpuhealth/__init__.py sets, in a registry that cannot exist.

    A name without a registry would mean one of Docker Hub's, which anybody could publish.
    """
    images = sorted({c["image"] for document in ALL for pod in pods(document) for c in pod["containers"]})
    assert images == [f"registry.example.com/{name}:{__version__}" for name in ("gpuhealth-burnin", "gpuhealth")]


def test_image_tags_are_the_version() -> None:
    """No file of the manifests names an image of another version, and the tag stands in two places only."""
    tags = [
        (f"{path.relative_to(BASE)}:{number}", tag)
        for path in sorted(path for path in BASE.rglob("*") if path.is_file())
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        for tag in _IMAGE_TAG.findall(line)
    ]
    stale = [f"{place} has {tag}" for place, tag in tags if tag != __version__]
    assert not stale, f"the version is {__version__}: change the image tag where {', '.join(stale)}"
    files = {place.partition(":")[0] for place, _ in tags}
    assert files == {"kustomization.yaml", "admission/burnins.yaml"}


def test_applied_twice_changes_nothing(plane: ControlPlane) -> None:
    """Applying again is idempotent: the objects keep their version."""
    first = plane.apply(BASE)
    second = plane.apply(BASE)
    versions = [[item["metadata"]["resourceVersion"] for item in items] for items in (first, second)]
    assert versions[0] == versions[1]


def test_definitions_are_structural(plane: ControlPlane) -> None:
    """No condition of the API server complains about the schemas, and names and short names are served."""
    for kind, short in ((REPORTS, "ghr"), (BUDGETS, "qb")):
        path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{kind.plural}.gpuhealth.io"
        conditions = {c["type"]: c["status"] for c in plane.request("GET", path)["status"]["conditions"]}
        assert conditions.get("NonStructuralSchema", "False") == "False"
        resources = plane.request("GET", f"/apis/{kind.api_version}")["resources"]
        (resource,) = [r for r in resources if r["name"] == kind.plural]
        assert (resource["kind"], resource["namespaced"], resource["shortNames"]) == (kind.kind, False, [short])


@pytest.mark.parametrize(
    "spec",
    [
        {"nodeSelector": {}},
        {"maxUnavailable": 1},
        {"nodeSelector": {}, "maxUnavailable": -1},
        {"nodeSelector": {}, "maxUnavailable": "5"},
        {"nodeSelector": {}, "maxUnavailable": "101%"},
        {"nodeSelector": {}, "maxUnavailable": "150%"},
        {"nodeSelector": {}, "maxUnavailable": "100.5%"},
        {"nodeSelector": {}, "maxUnavailable": "-5%"},
        {"nodeSelector": {}, "maxUnavailable": 1.5},
        {"nodeSelector": {}, "maxUnavailable": True},
        {"nodeSelector": {}, "maxUnavailable": 10**9},
        {"nodeSelector": None, "maxUnavailable": 1},
        {"nodeSelector": {}, "maxUnavailable": 1, "maxPerFault": -1},
        {"nodeSelector": {}, "maxUnavailable": 1, "window": 3600},
        {"nodeSelector": {}, "maxUnavailable": 1, "maxPerWindow": "x%"},
        {"nodeSelector": {}, "maxUnavailable": 1, "window": "soon"},
        *({"nodeSelector": selector, "maxUnavailable": 1} for selector in BAD_SELECTORS),
    ],
)
def test_bad_budgets_are_refused(plane: ControlPlane, spec: Document) -> None:
    """The API server refuses a budget that cannot be computed."""
    with pytest.raises(RequestError, match=r"Invalid value|Unsupported value|Required value|must be of type"):
        plane.apply([{**BUDGET, "spec": spec}])


def test_good_budgets_are_taken(plane: ControlPlane) -> None:
    """Selectors with every operator, and percentages up to all."""
    spec = {"nodeSelector": {"matchLabels": {"a": "", "b/c": "d"}, "matchExpressions": GOOD_TERMS}}
    for amount in (0, 100_000, "0%", "0.5%", "100%", "100.0%"):
        plane.apply([{**BUDGET, "spec": spec | {"maxUnavailable": amount}}])
    plane.request("DELETE", BUDGETS.path("valid"))


def test_budget_names_have_no_dots(plane: ControlPlane) -> None:
    """The names of slots are made of the budget's, so it must not look like one of them."""
    spec = {"nodeSelector": {}, "maxUnavailable": 1}
    with pytest.raises(RequestError, match=r"metadata\.name"):
        plane.apply([{**BUDGET, "metadata": {"name": "a.window"}, "spec": spec}])


def test_example_budget(plane: ControlPlane, pool: Pool) -> None:
    """The example is taken as it stands, and the window has a default where it says none."""
    (example,) = plane.apply(BASE / "examples" / "quarantinebudget.yaml")
    assert example["spec"]["maxUnavailable"] == "5%"
    plane.request("DELETE", plane.path_of(example))
    name = pool.budget("1%")
    assert plane.request("GET", BUDGETS.path(name))["spec"]["window"] == "1h"


def test_columns(plane: ControlPlane) -> None:
    """What kubectl prints of both kinds has columns, and each finds its value."""
    for kind in (REPORTS, BUDGETS):
        path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{kind.plural}.gpuhealth.io"
        (version,) = plane.request("GET", path)["spec"]["versions"]
        for column in version["additionalPrinterColumns"]:
            schema = version["schema"]["openAPIV3Schema"]
            for part in re.sub(r"\[\?.*\]", "", column["jsonPath"]).strip(".").split("."):
                if part == "metadata":
                    break
                schema = schema["properties"][part]
                schema = schema.get("items", schema)


def test_settings_are_valid(tmp_path: Path) -> None:
    """The settings file of the ConfigMap is one that the agent takes."""
    (config_map,) = [d for d in ALL if d["kind"] == "ConfigMap" and d["metadata"]["name"] == "gpuhealth"]
    path = tmp_path / "gpuhealth.yaml"
    path.write_text(config_map["data"]["gpuhealth.yaml"])
    settings = load(path)
    mounts = {mount["mountPath"] for mount in agent()["containers"][0]["volumeMounts"]}
    roots = settings.roots
    assert {roots.dev, roots.sys, roots.proc} == {Path("/host/dev"), Path("/host/sys"), Path("/host/proc")}
    assert {"/host", str(roots.kmsg.parent), str(settings.journal.path.parent)} <= mounts
    assert settings.http.port == agent()["containers"][0]["ports"][0]["containerPort"]


def test_the_agent_needs_no_container_runtime_of_nvidia() -> None:
    """The agent starts without driver: no runtime class, no variable or resource of NVIDIA's. It sees later mounts."""
    (container,) = agent()["containers"]
    assert "runtimeClassName" not in agent()
    assert not [each["name"] for each in container["env"] if each["name"].startswith("NVIDIA_")]
    assert set(container["resources"]["requests"]) == {"cpu", "memory"}
    paths = {volume["name"]: volume.get("hostPath", {}).get("path") for volume in agent()["volumes"]}
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert (paths[mounts["/host"]["name"]], paths[mounts["/dev"]["name"]]) == ("/", "/dev")
    assert mounts["/host"]["mountPropagation"] == "HostToContainer"
    assert mounts["/host"]["readOnly"]
    assert not container["terminationMessagePath"].startswith("/dev/"), "the kubelet would make a file in the node's"


def test_agents_environment_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every variable that the pod sets for the agent names a setting."""
    for variable in agent()["containers"][0]["env"]:
        if variable["name"] != "GPUHEALTH_CONFIG":
            monkeypatch.setenv(variable["name"], variable.get("value", "a-node"))
    assert load().node_name == "a-node"


@pytest.mark.parametrize("file", ["rbac.yaml", "preflight.yaml"])
def test_every_right_has_a_reason(file: str) -> None:
    """Each rule of every role is preceded by a comment."""
    text = (BASE / file).read_text(encoding="utf-8")
    rules = re.findall(r"^.*\n  - apiGroups", text, flags=re.MULTILINE)
    assert len(rules) == sum(len(d["rules"]) for d in yaml.safe_load_all(text) if "rules" in d)
    assert all(rule.lstrip().startswith("#") for rule in rules)


def test_kustomizations_are_plain(tmp_path: Path) -> None:
    """What the tool does not understand it refuses, rather than apply something else than kubectl would."""
    (tmp_path / "kustomization.yaml").write_text("resources: []\nnamePrefix: x-\n")
    with pytest.raises(ValueError, match="namePrefix"):
        documents(tmp_path)
