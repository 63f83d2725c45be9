"""`gpuhealth doctor` as an operator runs it, on a real API server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kube import ControlPlane
from testing.command import Node, Said
from testing.installation import Installation

from gpuhealth.installation.checks import CHECKS

GROUP = "rbac.authorization.k8s.io"


@pytest.fixture
def installation(plane: ControlPlane) -> Iterator[Installation]:
    """The installation of the manifests."""
    made = Installation(plane)
    yield made
    made.close()


def doctor(node: Node, kubeconfig: Path, *options: str, columns: int = 0) -> Said:
    """Runs the command; `columns`: width of the terminal, 0 for a pipe."""
    width = {"COLUMNS": str(columns)} if columns else {}
    return node.run("doctor", "--kubeconfig", kubeconfig, *options, **width)


def operator(installation: Installation, *roles: str) -> Path:
    """A kubeconfig of a user with these ClusterRoles."""
    plane, name = installation.plane, "doctor-" + "-".join(roles or ("nothing",))
    account = {"metadata": {"name": name, "namespace": "gpuhealth"}}
    installation.create("/api/v1/namespaces/gpuhealth/serviceaccounts", account)
    subject = {"kind": "ServiceAccount", "name": name, "namespace": "gpuhealth"}
    for role in roles:
        reference = {"apiGroup": GROUP, "kind": "ClusterRole", "name": role}
        body = {"metadata": {"name": f"{name}-{role}"}, "roleRef": reference, "subjects": [subject]}
        installation.create(f"/apis/{GROUP}/v1/clusterrolebindings", body)
    return plane.write_kubeconfig(name, plane.service_account_token("gpuhealth", name))


@pytest.mark.parametrize("columns", [0, 80, 120])
def test_output(installation: Installation, node: Node, columns: int) -> None:
    """The first line is the answer; in a pipe each problem is one line with what to do, on a terminal it is wrapped."""
    installation.gpu_node()
    said = doctor(node, operator(installation, "gpuhealth-doctor"), columns=columns)
    first, _, *rest = said.out.splitlines()
    assert said.code == 2
    assert first.startswith("ERROR: gpuhealth ")
    assert "error" in first
    assert "warning" in first
    assert all(len(line) <= (columns or 10_000) for line in rest)
    if not columns:
        (agents,) = [line for line in rest if line.split()[:2] == ["error", "agents"]]
        assert "has no working agent" in agents
        assert ". Fix: kubectl describe" in agents
        assert any(line.split()[0] == "fine" and "definitions" in line for line in rest)


def test_json(installation: Installation, node: Node) -> None:
    """The document names each check once: as fine, as not checked, or in problems."""
    found = doctor(node, operator(installation, "gpuhealth-doctor"), "--json").json
    assert found["answer"] == "error"
    bad = {problem["check"] for problem in found["problems"] if problem["level"] != "info"}
    skipped = {each["check"]: each for each in found["not_checked"]}
    assert sorted([*found["fine"], *bad, *skipped]) == sorted(CHECKS)
    assert [name for name, each in skipped.items() if each["supported"]] == []  # the role suffices
    assert not skipped or list(skipped) == ["admission"]


def test_without_rights(installation: Installation, node: Node) -> None:
    """What the rights of the user do not allow is not checked, never fine: the exit code is 3."""
    said = doctor(node, operator(installation), "--json")
    assert (said.code, said.json["answer"]) == (3, "incomplete")
    assert said.json["fine"] == ["server"]
    assert "could not be made" in said.err
    assert all(each["reason"].startswith("not permitted") for each in said.json["not_checked"] if each["supported"])


def test_no_cluster(node: Node) -> None:
    """A cluster that does not answer is one sentence and the exit code 3."""
    said = node.run("doctor", "--json", KUBECONFIG="/absent")
    assert said.code == 3
    assert "error" in said.json
