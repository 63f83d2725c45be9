"""`gpuhealth uninstall` on a cluster with everything in it: nothing is left but what others added."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from kube import ControlPlane, Document
from testing.command import Node
from testing.paths import BASE
from testing.started_plane import started_plane
from testing.traces import traces
from testing.waiting import wait_for

from gpuhealth.installation.uninstall import Change, Removal, Uninstaller
from gpuhealth.kube.client import Client

LEASES = "/apis/coordination.k8s.io/v1/namespaces/gpuhealth/leases"
REPORTS = "/apis/gpuhealth.io/v1alpha1/gpuhealthreports"
RECORD = '{"code":"xid.79","since":"2026-03-01T12:00:00Z","cordoned":true}'
OURS = {"key": "gpuhealth.io/unhealthy", "value": "xid.79", "effect": "NoSchedule"}
PENDING = {"key": "gpuhealth.io/preflight", "value": "pending", "effect": "NoSchedule"}
THEIRS = {"key": "team", "value": "a", "effect": "NoSchedule"}
MERGE = "application/merge-patch+json"


@pytest.fixture(scope="module")
def own_plane() -> Iterator[ControlPlane]:
    """A control plane of this module's own, with the controllers that delete what belongs to deleted objects."""
    with started_plane(controller_manager=True) as plane:
        yield plane


class Marked:
    """An installation with marks on its nodes, and what others put there."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane = plane
        plane.apply(BASE)
        plane.apply(BASE / "examples" / "quarantinebudget.yaml")
        self._node("out", {"gpuhealth.io/state": "quarantined"}, {"gpuhealth.io/quarantine": RECORD}, [THEIRS, OURS])
        self._node("new", {"gpuhealth.io/state": "preflight"}, {}, [PENDING], cordoned=False)
        others = {"gpuhealth.io/agent": "true", "pool": "a"}
        self._node("theirs", others, {"gpuhealth.io/override": "unmanaged", "note": "n"}, [THEIRS])
        self._node("tainted", {}, {}, [OURS], cordoned=False)  # by a person: there is no record
        for node in ("out", "new", "theirs"):
            self._report(node)
        for name, labels in (("gpus.0", {"gpuhealth.io/budget": "gpus"}), ("gpuhealth-controller", {})):
            now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
            spec = {"holderIdentity": "out", "renewTime": now}
            plane.request("POST", LEASES, {"metadata": {"name": name, "labels": labels}, "spec": spec})

    def _node(
        self, name: str, labels: dict[str, str], notes: dict[str, str], taints: list[Document], *, cordoned: bool = True
    ) -> None:
        # All at once: the controllers of Kubernetes replace the whole list of taints when the node becomes ready.
        metadata = {"name": name, "labels": {"kubernetes.io/hostname": name, **labels}, "annotations": notes}
        spec = {"taints": taints, "unschedulable": cordoned or None}
        self.plane.request("POST", "/api/v1/nodes", {"metadata": metadata, "spec": spec})
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "as a kubelet"}
        healthy = {"type": "GPUHealthy", "status": "True", "reason": "Healthy", "message": "as an agent"}
        content, path = "application/strategic-merge-patch+json", f"/api/v1/nodes/{name}/status"
        self.plane.request("PATCH", path, {"status": {"conditions": [ready, healthy]}}, content_type=content)
        wait_for("the node to be ready", lambda: not self._taints_of_kubernetes(name))

    def _taints_of_kubernetes(self, name: str) -> list[str]:
        keys = [taint["key"] for taint in self.node(name)["spec"].get("taints", ())]
        return [key for key in keys if key in {f"node.kubernetes.io/{state}" for state in ("not-ready", "unreachable")}]

    def _report(self, node: str) -> None:
        uid = self.node(node)["metadata"]["uid"]
        owner = {"apiVersion": "v1", "kind": "Node", "name": node, "uid": uid}
        body = {"apiVersion": "gpuhealth.io/v1alpha1", "kind": "GPUHealthReport"}
        self.plane.request("POST", REPORTS, body | {"metadata": {"name": node, "ownerReferences": [owner]}})

    def node(self, name: str) -> Document:
        """A Node as it is now."""
        found: Document = self.plane.request("GET", f"/api/v1/nodes/{name}")
        return found

    def remains(self) -> list[str]:
        """The traces, once the controllers of Kubernetes have ended what was deleted."""
        wait_for("the end of the namespace", lambda: not any("namespaces" in line for line in traces(self.plane)))
        return traces(self.plane)

    def remove(self) -> None:
        """Deletes the nodes of this test."""
        for name in ("out", "new", "theirs", "tainted"):
            self.plane.request("DELETE", f"/api/v1/nodes/{name}")


@pytest.fixture
def marked(own_plane: ControlPlane) -> Iterator[Marked]:
    """An installation with marks; its nodes are deleted at the end."""
    assert traces(own_plane) == []
    made = Marked(own_plane)
    yield made
    made.remove()


def test_doctor_where_nothing_is_installed(own_plane: ControlPlane, node: Node) -> None:
    """An empty cluster: the first line says so, with the command that installs it; uninstall finds nothing."""
    where = ("--kubeconfig", str(own_plane.kubeconfig))
    said = node.run("doctor", *where)
    line = "NOT INSTALLED: there is no gpuhealth in this cluster. To install it: kubectl apply -k daemonset/"
    assert (said.code, said.out.splitlines()) == (2, [line])
    assert node.run("doctor", "--json", *where).json["answer"] == "not_installed"
    assert node.run("uninstall", "--dry-run", *where).out.startswith("Nothing of gpuhealth is in this cluster.")


LEFT = [
    "nodes tainted: spec.taints[].key = gpuhealth.io/unhealthy",
    'nodes theirs: metadata.labels.gpuhealth.io/agent = "true"',
]
"""What people have set stays: a taint without a record of an agent, and a label."""


def test_uninstall(marked: Marked, node: Node) -> None:
    """The dry run removes nothing and prints each change; the removal leaves only marks of others, and says which."""
    plane, kubeconfig = marked.plane, str(marked.plane.kubeconfig)
    before = traces(plane)
    planned = node.run("uninstall", "--dry-run", "--kubeconfig", kubeconfig)
    assert planned.code == 0
    assert set(before) <= set(traces(plane))  # the controllers of Kubernetes may still add some
    assert "delete DaemonSet gpuhealth/gpuhealth-agent" in planned.out
    refused = node.run("uninstall", "--kubeconfig", kubeconfig)
    assert (refused.code, refused.out) == (3, "")
    assert "1 node out of service returns to service: add --yes" in refused.err
    done = node.run("uninstall", "--yes", "--kubeconfig", kubeconfig, "--json")
    assert done.code == 0
    assert done.json["returned"] == {"out": "xid.79"}
    assert marked.remains() == LEFT
    for mark in ("label gpuhealth.io/agent of theirs", "taint gpuhealth.io/unhealthy of tainted", "/var/lib/gpuhealth"):
        assert any(mark in line for line in done.json["left"])
    changes = [f"{change['action']} {change['kind']} {change['name']}" for change in done.json["changes"]]
    assert all(change in planned.out for change in changes if "Pod" not in change)
    assert marked.node("out")["spec"] == {"taints": [THEIRS]}
    assert marked.node("theirs")["spec"]["unschedulable"]
    assert marked.node("theirs")["metadata"]["annotations"].get("note") == "n"
    again = node.run("uninstall", "--yes", "--kubeconfig", kubeconfig)
    assert (again.code, again.out.splitlines()[0]) == (0, "Nothing of gpuhealth is in this cluster.")


class _InterruptedError(Exception):
    pass


def test_interrupted(marked: Marked) -> None:
    """A removal that is interrupted after every third change, and started again each time, ends with nothing left."""

    async def attempt() -> Removal:
        changes: list[Change] = []

        def interrupt(change: Change) -> None:
            changes.append(change)
            if len(changes) == 3:
                raise _InterruptedError

        async with Client.from_kubeconfig(marked.plane.kubeconfig) as client:
            return await Uninstaller(client, dry_run=False, on_change=interrupt).run()

    interruptions = 0
    while True:
        try:
            asyncio.run(attempt())
        except _InterruptedError:
            interruptions += 1
        else:
            break
    assert interruptions > 5
    assert marked.remains() == LEFT


def test_a_namespace_with_objects_of_others(marked: Marked, node: Node) -> None:
    """A namespace that holds anything else stays, and what that is is printed."""
    plane = marked.plane
    config = "/api/v1/namespaces/gpuhealth/configmaps"
    plane.request("POST", config, {"metadata": {"name": "of-a-person"}})
    done = node.run("uninstall", "--yes", "--kubeconfig", str(plane.kubeconfig), "--json")
    assert any("ConfigMap of-a-person" in line for line in json.loads(done.out)["left"])
    assert plane.request("GET", f"{config}/of-a-person")["metadata"]["name"] == "of-a-person"
    plane.request("DELETE", f"{config}/of-a-person")
    plane.request("DELETE", "/api/v1/namespaces/gpuhealth")
    marked.remains()
