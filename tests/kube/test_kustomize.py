"""The policies as kubectl builds them: with other settings, in another namespace, with other images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import kubernetes_validate  # type: ignore[import-untyped] # ships no type information
import pytest
from kube import Document, MissingBinariesError, documents
from kube.policy_plugin import PolicyPlugin, problems
from testing.admission import NODE_CLAIM, POLICIES
from testing.kubectl import FOLLOW, built, shown_in
from testing.paths import BASE

LABELLED = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "other", "labels": {"gpuhealth.io/state": "x"}}}
UNLABELLED = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "other"}}


def policies_of(objects: list[Document]) -> dict[str, Document]:
    """The policies by name."""
    return {d["metadata"]["name"]: d for d in objects if d["kind"] == "ValidatingAdmissionPolicy"}


def literals(policy: Document) -> dict[str, str]:
    """The variables of an admission policy."""
    return {each["name"]: each["expression"] for each in policy["spec"]["variables"]}


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> list[Document]:
    """All that the component's comment shows: base and policies in the namespace gpu-ops, images of a registry."""
    return built(shown_in(FOLLOW, tmp_path_factory.mktemp("kustomizations")))


@pytest.fixture(scope="module")
def plugin(elsewhere: list[Document]) -> Iterator[PolicyPlugin]:
    """The policies of the namespace gpu-ops in force."""
    try:
        with PolicyPlugin() as made:
            made.put(d for d in elsewhere if d["kind"].startswith("ValidatingAdmissionPolicy"))
            yield made
    except MissingBinariesError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("folder", [BASE, BASE / "admission"], ids=["base", "admission"])
def test_kubectl_builds_what_the_tests_read(folder: Path) -> None:
    """The documents that the tests apply are those that kubectl would."""
    ours, theirs = (
        {(d["kind"], d["metadata"]["name"]): d for d in found} for found in (documents(folder), built(folder))
    )
    assert theirs == ours


def test_settings_are_patched(tmp_path: Path) -> None:
    """The patch in the kustomization's comment changes its literals, and no more."""
    patched = policies_of(built(shown_in(BASE / "admission" / "kustomization.yaml", tmp_path)))
    changed = literals(patched["gpuhealth-nodes"])
    before = policies_of(POLICIES)
    assert changed == literals(before["gpuhealth-nodes"]) | {
        "mode": "'cordon'",
        "preflightTaint": "'startup-taint.example.com/gpuhealth'",
        "cordonCodes": "['driver.', 'nvml.', 'fabric.', 'infiniband.']",
        "cordonReason": "'nodeset.slinky.slurm.net/node-cordon-reason'",
    }
    of_status = literals(patched["gpuhealth-node-status"])
    assert of_status["conditions"] == "['GPUHealthy', 'GPUProblem']"
    different = {name for name, policy in patched.items() if policy != before[name]}
    assert different == {"gpuhealth-nodes", "gpuhealth-node-status"}
    try:
        assert problems(patched.values()) == []
    except MissingBinariesError as error:
        pytest.skip(str(error))


def test_protection_follows_the_namespace(plugin: PolicyPlugin) -> None:
    """In another namespace the policies bind its accounts, and no longer those of the old one."""
    node = {"group": "", "version": "v1"}
    request = {
        "uid": "u",
        "kind": {**node, "kind": "Node"},
        "resource": {**node, "resource": "nodes"},
        "name": "other",
        "operation": "UPDATE",
        "object": LABELLED,
        "oldObject": UNLABELLED,
    }

    def may(namespace: str) -> bool:
        name = f"system:serviceaccount:{namespace}:gpuhealth-agent"
        user = {"username": name, "extra": {NODE_CLAIM: ["mine"]}}
        return bool(plugin.review(request | {"userInfo": user})["allowed"])

    assert not may("gpu-ops")
    assert may("gpuhealth")


def test_nothing_is_left_of_the_old_namespace(elsewhere: list[Document]) -> None:
    """Every policy, every binding of a right and the burn-ins' selector speak of the new namespace."""
    for name, policy in policies_of(elsewhere).items():
        assert ":gpu-ops:" in policy["spec"]["matchConditions"][0]["expression"], name
        assert "system:serviceaccount:gpuhealth:" not in str(policy)
    assert not [d for d in elsewhere if d["kind"].startswith("Validating") and "namespace" in d["metadata"]]
    constraints = policies_of(elsewhere)["gpuhealth-burnins"]["spec"]["matchConstraints"]
    assert constraints["namespaceSelector"] == {"matchLabels": {"kubernetes.io/metadata.name": "gpu-ops"}}
    bindings = [d for d in elsewhere if d["kind"] in {"RoleBinding", "ClusterRoleBinding"}]
    assert {subject["namespace"] for d in bindings for subject in d["subjects"]} == {"gpu-ops"}
    assert "namespace: gpuhealth" not in str([d.get("data") for d in elsewhere])


def test_events_stay_where_those_of_nodes_are(elsewhere: list[Document]) -> None:
    """The rights to write Events about Nodes are in the namespace default, whatever the others' is."""
    of_events = [d for d in elsewhere if d["kind"] in {"Role", "RoleBinding"} and "events" in d["metadata"]["name"]]
    assert len(of_events) == 4
    assert {d["metadata"]["namespace"] for d in of_events} == {"default"}


def test_the_image_follows(elsewhere: list[Document]) -> None:
    """A burn-in may have the image that its PodTemplate has got."""
    (template,) = [d["template"] for d in elsewhere if d["kind"] == "PodTemplate"]
    image = template["spec"]["containers"][0]["image"]
    assert image.startswith("registry.corp.example/gpuhealth-burnin:")
    assert literals(policies_of(elsewhere)["gpuhealth-burnins"])["image"] == f"'{image}'"


def test_the_pods_know_their_namespace(elsewhere: list[Document]) -> None:
    """Agent and controller use the Leases of the namespace that they run in."""
    found = [d for d in elsewhere if d["metadata"]["name"] in {"gpuhealth-agent", "gpuhealth-controller"}]
    for each in [d for d in found if d["kind"] in {"DaemonSet", "Deployment"}]:
        variables = each["spec"]["template"]["spec"]["containers"][0]["env"]
        (own,) = [v for v in variables if v["name"] == "GPUHEALTH_KUBERNETES__NAMESPACE"]
        assert own["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.namespace"


def test_the_runtime_class_component(tmp_path: Path) -> None:
    """With the component the container runtime provides driver and devices, and the node's root is not mounted."""
    shown = shown_in(BASE / "components" / "runtime-class" / "kustomization.yaml", tmp_path)
    (pod,) = [
        d["spec"]["template"]["spec"]
        for d in built(shown)
        if d["kind"] == "DaemonSet" and d["metadata"]["name"] == "gpuhealth-agent"
    ]
    (container,) = pod["containers"]
    assert pod["runtimeClassName"] == "nvidia"
    assert {"NVIDIA_VISIBLE_DEVICES": "all"}.items() <= {e["name"]: e.get("value") for e in container["env"]}.items()
    host_paths = {volume["hostPath"]["path"] for volume in pod["volumes"] if "hostPath" in volume}
    assert host_paths == {"/sys", "/proc", "/var/lib/gpuhealth"}
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    kubernetes_validate.validate({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": pod}, "1.37")


def test_an_agent_that_is_not_privileged(tmp_path: Path) -> None:
    """The component takes the container's privileges and its mount of the kernel log, which a device plugin provides;
    everything else stays, and the result is valid."""
    objects = built(shown_in(BASE / "components" / "unprivileged" / "kustomization.yaml", tmp_path))
    changed, before = ({(d["kind"], d["metadata"]["name"]): d for d in found} for found in (objects, built(BASE)))
    ours = ("DaemonSet", "gpuhealth-agent")
    assert {key for key in changed if changed[key] != before[key]} == {ours}
    kubernetes_validate.validate(changed[ours], "1.37", strict=True)
    (container,) = changed[ours]["spec"]["template"]["spec"]["containers"]
    security = container["securityContext"]
    assert security["capabilities"] == {"drop": ["ALL"], "add": ["SYSLOG"]}
    assert (security["privileged"], security["allowPrivilegeEscalation"]) == (False, False)
    assert container["resources"]["limits"].keys() == {"memory", "squat.ai/kmsg"}
    assert "/dev/kmsg" not in {mount["mountPath"] for mount in container["volumeMounts"]}


def test_events_stay_there_without_the_policies(tmp_path: Path) -> None:
    """The component also keeps these Roles in the namespace default where only the base is installed."""
    outer = shown_in(FOLLOW, tmp_path)
    inner = outer / "installed" / "kustomization.yaml"
    inner.write_text(inner.read_text(encoding="utf-8").replace(", ../../daemonset/admission", ""), encoding="utf-8")
    objects = built(outer)
    assert not [d for d in objects if d["kind"].startswith("Validating")]
    of_events = [d for d in objects if d["kind"] in {"Role", "RoleBinding"} and "events" in d["metadata"]["name"]]
    assert {d["metadata"]["namespace"] for d in of_events} == {"default"}
    assert {s["namespace"] for d in of_events for s in d.get("subjects", ())} == {"gpu-ops"}
