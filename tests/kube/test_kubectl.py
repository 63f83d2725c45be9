"""Everything that kubectl can apply, through kubectl: valid for every Kubernetes, and idempotent without a warning."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped] # ships no type information
import pytest
import yaml
from kube import ControlPlane, Document, MissingBinariesError
from kube.control_plane import RequestError
from kube.policy_plugin import problems
from testing.kubectl import applied, built, kubectl
from testing.paths import BASE
from testing.started_plane import started_plane
from testing.waiting import until

FOLDERS = sorted(path.parent for path in BASE.rglob("kustomization.yaml"))
VERSIONS = [f"1.{minor}" for minor in range(25, 38)]
POLICIES_SINCE = 30
"""The minor version of Kubernetes from which on it has admission policies."""
FOLLOW = BASE / "admission" / "follow"
MORE_THAN_THE_BASE = {FOLLOW: "admission", BASE / "components" / "eks": "admission"}
"""Components for more than the base, and that."""


def name_of(folder: Path) -> str:
    """A folder in a test report."""
    return str(folder.relative_to(BASE.parent))


@pytest.fixture(scope="module")
def buildable(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, list[Document]]:
    """The documents of every kustomization; a component is applied to the base."""
    found = {}
    root = tmp_path_factory.mktemp("kustomizations")
    (root / "daemonset").symlink_to(BASE)
    for number, folder in enumerate(FOLDERS):
        kind = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))["kind"]
        if kind == "Component":
            inside = Path("../daemonset") / folder.relative_to(BASE)
            resources = ["../daemonset"] + [
                f"../daemonset/{more}" for more in filter(None, [MORE_THAN_THE_BASE.get(folder)])
            ]
            made = root / f"component-{number}"
            made.mkdir()
            text = yaml.safe_dump({"resources": resources, "components": [str(inside)]})
            (made / "kustomization.yaml").write_text(text, encoding="utf-8")
            found[folder] = built(made)
        else:
            found[folder] = built(folder)
    return found


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    """A control plane without anything of gpuhealth."""
    with started_plane() as made:
        yield made


@pytest.mark.parametrize("version", VERSIONS)
def test_schema(buildable: dict[Path, list[Document]], version: str) -> None:
    """Every document is valid, strictly, for every version of Kubernetes from 1.25 on."""
    seen: list[Document] = []
    for folder, objects in buildable.items():
        for document in objects:
            # By its definition the API server checks it, or that of the Prometheus operator.
            ours = document["apiVersion"].startswith(("gpuhealth.io/", "monitoring.coreos.com/"))
            newer = document["kind"].startswith("ValidatingAdmissionPolicy")
            if ours or document in seen or (newer and int(version[2:]) < POLICIES_SINCE):
                continue
            seen.append(document)
            try:
                kubernetes_validate.validate(document, version, strict=True)
            except Exception as error:  # the note says which document
                error.add_note(f"{name_of(folder)}: {document['kind']}/{document['metadata']['name']}")
                raise
    assert len(seen) > len(FOLDERS)


def test_all_policies_compile(buildable: dict[Path, list[Document]]) -> None:
    """Those of every kustomization, also after its replacements."""
    policies = [d for objects in buildable.values() for d in objects if d["kind"] == "ValidatingAdmissionPolicy"]
    assert policies
    try:
        assert problems(policies) == []
    except MissingBinariesError as error:
        pytest.skip(str(error))


def served(plane: ControlPlane, objects: list[Document]) -> list[Document]:
    """The documents of the kinds that this server has; admission policies are newer than some servers."""
    known: dict[str, set[str]] = {"gpuhealth.io/v1alpha1": {"GPUHealthReport", "QuarantineBudget"}}
    for version in {d["apiVersion"] for d in objects} - known.keys():
        root = f"/apis/{version}" if "/" in version else f"/api/{version}"
        try:
            known[version] = {each["kind"] for each in plane.request("GET", root)["resources"]}
        except RequestError:
            known[version] = set()
    absent = {d["kind"] for d in objects if d["kind"] not in known[d["apiVersion"]]}
    assert absent <= {
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
        "PodMonitor",
        "PrometheusRule",
    }
    return [d for d in objects if d["kind"] not in absent]


def versions(plane: ControlPlane, objects: list[Document]) -> list[Any]:
    """The versions of the objects; of definitions, whose status changes by itself, those of their specs."""
    found = [plane.request("GET", plane.path_of(d)) for d in objects]
    by_itself = "CustomResourceDefinition"
    return [d["metadata"]["generation" if d["kind"] == by_itself else "resourceVersion"] for d in found]


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_applied_by_kubectl(
    plane: ControlPlane, buildable: dict[Path, list[Document]], folder: Path, tmp_path: Path
) -> None:
    """Client-side, then server-side, each twice: the second time changes nothing; no conflict and no warning."""
    objects = served(plane, buildable[folder])
    if not objects:
        pytest.skip("this server has none of its kinds")
    file = tmp_path / "objects.yaml"
    file.write_text(yaml.safe_dump_all(objects), encoding="utf-8")
    try:
        for flags in ([], ["--server-side"]):
            said = applied(file, *flags, kubeconfig=plane.kubeconfig)
            assert said.warnings == ""
            before = versions(plane, objects)
            said = applied(file, *flags, kubeconfig=plane.kubeconfig)
            assert said.warnings == ""
            assert flags or {line.rpartition(" ")[2] for line in said.lines} == {"unchanged"}
            assert versions(plane, objects) == before
    finally:
        kubectl("delete", "--ignore-not-found", "--wait=false", "-f", file, kubeconfig=plane.kubeconfig)
        finished(plane)


def finished(plane: ControlPlane) -> None:
    """Ends the deletion of the namespace, which a controller manager would do."""
    try:
        found: Any = plane.request("GET", "/api/v1/namespaces/gpuhealth")
    except RequestError:
        return
    found["spec"]["finalizers"] = []
    plane.request("PUT", "/api/v1/namespaces/gpuhealth/finalize", found)


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_references_to_fields_are_complete(buildable: dict[Path, list[Document]], folder: Path) -> None:
    """A fieldRef is one value for server-side apply: without the default that the API server adds it is another one,
    and conflicts with a client-side apply before it."""

    def look(part: Any) -> Iterator[Any]:
        if isinstance(part, dict):
            yield from [part["fieldRef"]] if "fieldRef" in part else []
        for inner in part.values() if isinstance(part, dict) else part if isinstance(part, list) else []:
            yield from look(inner)

    assert all(reference["apiVersion"] == "v1" for reference in look(buildable[folder]))


EXPLAINED = {
    "qb.spec.window": "A duration of more than 0",
    "qb.spec.nodeSelector.matchExpressions.operator": "In and NotIn need values",
    "ghr.status.drain.deadline": "After this time pods are deleted",
    "ghr.status.findings.evidence": "complete enough to judge it",
}


def test_explained(plane: ControlPlane, tmp_path: Path) -> None:
    """kubectl explain has a text for the fields of our kinds, and a list of all of them."""
    definitions = BASE / "crds"
    kubectl("apply", "-k", definitions, kubeconfig=plane.kubeconfig)
    try:
        plane.apply(definitions)  # until they are served

        def said(*words: str) -> str:
            asyncio.run(until(lambda: explains(plane, *words), in_thread=True))
            return kubectl("explain", "--output=plaintext-openapiv2", *words, kubeconfig=plane.kubeconfig)

        for field, text in EXPLAINED.items():
            assert text in " ".join(said(field).split()), field
        assert "quarantineSince" in said("ghr", "--recursive")
        assert "maxPerFault" in said("qb", "--recursive")
    finally:
        kubectl("delete", "-k", definitions, kubeconfig=plane.kubeconfig)


def explains(plane: ControlPlane, *words: str) -> bool:
    """Whether the API server has published the schema, which takes it a moment for each kind."""
    try:
        return bool(kubectl("explain", "--output=plaintext-openapiv2", *words, kubeconfig=plane.kubeconfig))
    except RuntimeError:
        return False
