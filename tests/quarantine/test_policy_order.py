"""Nobody else is stopped, in whatever order policies and base come and go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kube import ControlPlane, Document, documents
from kube.control_plane import RequestError
from testing.admission import ALL, Admission
from testing.kubectl import FOLLOW, built, kubectl, shown_in
from testing.paths import BASE
from testing.started_plane import started_plane

MERGE = "application/strategic-merge-patch+json"
UNREACHABLE = {"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"}
POD = {"containers": [{"name": "c", "image": "i"}], "automountServiceAccountToken": False}
BURNIN = {"app.kubernetes.io/component": "burnin"}


class Innocents:
    """What others do in a cluster: they neither know nor use gpuhealth."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane = plane
        plane.create_node("n", {})
        account = {"name": "node-controller", "namespace": "kube-system"}
        plane.apply([{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account}])
        self.token = plane.service_account_token("kube-system", "node-controller")

    def all(self) -> list[Callable[[], object]]:
        """Each as one function."""
        return [
            self.make_a_pod,
            self.make_a_pod_that_looks_like_a_burn_in,
            self.cordon,
            self.label,
            self.say_that_a_node_is_unreachable,
            self.renew_a_lease,
            self.write_an_event,
        ]

    def make_a_pod(self, **labels: str) -> None:
        """Somebody's work in the namespace default."""
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "innocent", "labels": labels}, "spec": POD}
        self.plane.request("POST", "/api/v1/namespaces/default/pods", body)
        self.plane.request("DELETE", "/api/v1/namespaces/default/pods/innocent?gracePeriodSeconds=0")

    def make_a_pod_that_looks_like_a_burn_in(self) -> None:
        """By its label, and in another namespace."""
        self.make_a_pod(**BURNIN)

    def cordon(self) -> None:
        """A person takes a node out of service and puts it back."""
        kubectl("cordon", "n", kubeconfig=self.plane.kubeconfig)
        kubectl("uncordon", "n", kubeconfig=self.plane.kubeconfig)

    def label(self) -> None:
        """A person labels a node, also with our label, and takes both off."""
        kubectl("label", "node", "n", "a=b", "gpuhealth.io/state=x", kubeconfig=self.plane.kubeconfig)
        kubectl("label", "node", "n", "a-", "gpuhealth.io/state-", kubeconfig=self.plane.kubeconfig)

    def say_that_a_node_is_unreachable(self) -> None:
        """kube-controller-manager's node controller, with its own service account."""
        for taints in ([UNREACHABLE], None):
            body = {"spec": {"taints": taints}}
            self.plane.request("PATCH", "/api/v1/nodes/n", body, content_type=MERGE, token=self.token)
        status = {"conditions": [{"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown"}]}
        self.plane.request("PATCH", "/api/v1/nodes/n/status", {"status": status}, content_type=MERGE, token=self.token)

    def renew_a_lease(self) -> None:
        """Renew a Lease, as a kubelet does for its heartbeat."""
        metadata = {"name": "n", "namespace": "kube-system"}
        body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata}
        self.plane.apply([{**body, "spec": {"holderIdentity": "n", "renewTime": "2030-01-01T00:00:00.000000Z"}}])
        self.plane.request("DELETE", "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/n")

    def write_an_event(self) -> None:
        """Write an Event, as a kubelet does."""
        about = {"kind": "Node", "name": "n"}
        body = {"metadata": {"name": "n.1"}, "involvedObject": about, "reason": "R", "source": {"component": "kubelet"}}
        self.plane.request("POST", "/api/v1/namespaces/default/events", body)
        self.plane.request("DELETE", "/api/v1/namespaces/default/events/n.1")


def without_base(plane: ControlPlane) -> None:
    """Base and policies are two kustomizations: one may be deleted, and the other stay."""
    for document in reversed(documents(BASE)):
        try:
            plane.request("DELETE", plane.path_of(document))
        except RequestError as error:  # with its namespace, or with its kind
            if error.status != 404:
                raise


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    """A control plane without gpuhealth."""
    with started_plane("policy-plugin") as made:
        yield made


def test_nobody_else_is_stopped(plane: ControlPlane, tmp_path: Path) -> None:
    """Policies before the base, with it, deleted and made again, after the base has gone, and in another namespace."""
    innocents = Innocents(plane)
    elsewhere: list[Document] = [
        d for d in built(shown_in(FOLLOW, tmp_path)) if d["kind"].startswith("ValidatingAdmissionPolicy")
    ]
    with Admission(plane, ALL) as admission:
        stages: dict[str, Callable[[], object]] = {
            "policies alone": lambda: None,
            "then the base": lambda: plane.apply(BASE),
            "policies deleted and made again": admission.renew,
            "base deleted": lambda: without_base(plane),
            "policies deleted and made again without a base": admission.renew,
            "policies of another namespace": lambda: admission.plugin.put(elsewhere),
        }
        for stage, begin in stages.items():
            begin()
            seen = len(admission.reviewed)
            for each in innocents.all():
                try:
                    each()
                except Exception as error:
                    error.add_note(f"{stage}: {each.__name__}")
                    raise
            judged = {r["resource"]["resource"] for r in admission.reviewed[seen:]}
            assert judged >= {"pods", "nodes", "leases", "events"}, stage
