"""The tool that the other tests stand on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from kube import ControlPlane, MissingBinariesError, documents, find_binaries
from kube.control_plane import RequestError


def test_missing_binaries_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The error says what is missing and what to do."""
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingBinariesError, match="etcd, kube-apiserver not found: set KUBEBUILDER_ASSETS"):
        find_binaries()


def test_binaries_on_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without KUBEBUILDER_ASSETS they are found on PATH."""
    for name in ("etcd", "kube-apiserver"):
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_binaries()["etcd"] == tmp_path / "etcd"


def test_whole_control_plane_comes_and_goes(plane: ControlPlane) -> None:
    """With controller manager and scheduler; the API server away and back; nothing is left when it is stopped."""
    with ControlPlane(controller_manager=True, scheduler=True) as own:
        own.create_node("n")
        own.stop_api_server()
        with pytest.raises(OSError, match="refused"):
            own.request("GET", "/readyz")
        own.start_api_server()
        assert own.request("GET", "/api/v1/nodes/n")["metadata"]["name"] == "n"
        pids = [own.pid(name) for name in ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")]
        folder = own.folder
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert not folder.exists()


def test_pause(plane: ControlPlane) -> None:
    """A frozen API server is another failure than one that is gone: it goes on where it was."""
    plane.pause()
    state = Path(f"/proc/{plane.pid('kube-apiserver')}/stat").read_text(encoding="utf-8").split()[2]
    plane.resume()
    assert state == "T"
    assert plane.request("GET", "/readyz") == "ok"


def test_audit_tells_who_did_what(plane: ControlPlane) -> None:
    """A request is in the audit log with its verb and user."""
    name = f"audited-{os.getpid()}"
    with pytest.raises(RequestError):
        plane.request("GET", f"/api/v1/nodes/{name}")
    (event,) = [event for event in plane.audit(name) if name in event["requestURI"]]
    assert (event["verb"], event["user"]["username"], event["responseStatus"]["code"]) == ("get", "admin", 404)


def test_documents_in_order(tmp_path: Path) -> None:
    """Resources are resolved through folders, and definitions come before what they define."""
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / "kustomization.yaml").write_text("resources: [object.yaml, inner]")
    (inner / "kustomization.yaml").write_text("resources: [crd.yaml]")
    (tmp_path / "object.yaml").write_text("kind: Thing\n---\n---\nkind: Namespace\n")
    (inner / "crd.yaml").write_text("kind: CustomResourceDefinition")
    assert [document["kind"] for document in documents(tmp_path)] == ["CustomResourceDefinition", "Namespace", "Thing"]
