"""The admission policies for the controller: its own requests are allowed.

What a stolen token could send is in tests/quarantine/test_attacks.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress

import pytest
from kube import ControlPlane, Document, MissingBinariesError, find_binaries
from kube.control_plane import RequestError
from testing.admission import CONTROLLERS, OF_CONTROLLER, Admission, speaks_of
from testing.attacks.burnins import plain
from testing.controller_steps import SILENT, ends, gone, healthy_node, runs, say_tested, stop_all
from testing.managed_cluster import Cluster, until

from gpuhealth.api.names import RESERVED_SLOT_PREFIX
from gpuhealth.api.report import BurninReason
from gpuhealth.controller.burnin_plan import BurninCandidate
from gpuhealth.controller.duties.burnin_scheduler import burnin_pod
from gpuhealth.kube.client import MERGE_PATCH, Client
from gpuhealth.kube.errors import ForbiddenError
from gpuhealth.kube.kinds import PODS

TEMPLATE = "/api/v1/namespaces/gpuhealth/podtemplates/gpuhealth-burnin"


@pytest.fixture(scope="module")
def admission(managed: ControlPlane) -> Iterator[Admission]:
    """The policies in front of the control plane."""
    try:
        find_binaries(["policy-plugin"])
    except MissingBinariesError as error:
        pytest.skip(str(error))
    with Admission(managed, OF_CONTROLLER) as made:

        def reviews() -> bool:
            with suppress(RequestError):  # it may only be tried, and the namespace may be new
                managed.request("POST", "/api/v1/namespaces/default/pods?dryRun=All", plain("is-it-there"))
            managed.create_node("is-it-there", {})
            managed.request("DELETE", "/api/v1/nodes/is-it-there")
            return {r["resource"]["resource"] for r in made.reviewed} >= {"pods", "nodes"}

        asyncio.run(until(reviews))
        yield made


def honest(cluster: Cluster, reason: str = BurninReason.PERIODIC, level: str = "standard") -> Document:
    """The burn-in pod that the controller creates."""
    template = cluster.plane.request("GET", TEMPLATE)["template"]
    return burnin_pod(template, BurninCandidate(node=f"{cluster.name}-n", pool="p", reason=reason), 8, level)


def reserved(cluster: Cluster) -> bool:
    """Whether the controller has reserved a slot for an unavailable node."""
    path = f"/apis/coordination.k8s.io/v1/namespaces/gpuhealth/leases?labelSelector=gpuhealth.io/budget={cluster.name}"
    holders = [lease["spec"]["holderIdentity"] for lease in cluster.plane.request("GET", path)["items"]]
    return any(holder.startswith(RESERVED_SLOT_PREFIX) for holder in holders)


async def send(cluster: Cluster, body: Document, method: str = "POST", path: str = "", patch: str = "") -> None:
    """Send a request with the controller's token."""
    path = path or PODS.path(namespace="gpuhealth")
    body = body if patch else {"apiVersion": "v1", "kind": "Pod", **body}
    async with Client.from_kubeconfig(cluster.kubeconfig(), "controller", attempts=1) as client:
        await client.request(method, path, body=body, content_type=patch or "application/json")


def test_the_controller_is_not_denied(admission: Admission, cluster: Cluster) -> None:
    """A real controller tests an idle node, drains an unhealthy one, marks a silent one, reserves a slot: no request is
    denied."""
    idle, sick = cluster.node(gpus=8), cluster.node()
    silent, agent = healthy_node(cluster)
    work = cluster.pod(sick)
    cluster.budget(3, countUnavailable=True)
    seen = len(admission.reviewed)

    async def run() -> None:
        async with cluster.controller(periodic={"enabled": True, "max_per_pool": 1}):
            await until(lambda: runs(cluster, idle))
            say_tested(cluster, idle)
            ends(cluster, idle, 0)
            await until(lambda: gone(cluster, idle))
        lease = {"enabled": True, "lease": f"leader-{cluster.name}"}
        async with cluster.controller(agent_silent_after="300ms", election=lease) as controller:
            await until(lambda: controller.fleet.ready)
            cluster.unready(agent)
            await until(lambda: cluster.health(silent) == SILENT)
            cluster.quarantine(sick)
            await stop_all(cluster, work)
            await until(lambda: cluster.drain(sick)["phase"] == "drained")
            cluster.patch(f"/api/v1/nodes/{idle}", {"spec": {"unschedulable": True}})
            await until(lambda: reserved(cluster))
            assert not [call for call in controller.api_calls if call[1] == 403]

    asyncio.run(run())
    ours = "system:serviceaccount:gpuhealth:gpuhealth-controller"
    sent = [r for r in admission.reviewed[seen:] if r["userInfo"]["username"] == ours]
    judged = {p["metadata"]["name"] for p in admission.policies if any(speaks_of(p, r) for r in sent)}
    assert judged == CONTROLLERS


@pytest.mark.parametrize("reason", [BurninReason.PERIODIC, BurninReason.RETURN])
@pytest.mark.parametrize("level", ["quick", "standard", "long"])
def test_every_burn_in_is_allowed(admission: Admission, cluster: Cluster, reason: str, level: str) -> None:
    """Every level and reason is allowed, also with the defaults that the API server adds for GPUs and priorities."""
    body = honest(cluster, reason, level)
    path = f"/api/v1/namespaces/gpuhealth/pods/{body['metadata']['name']}"
    asyncio.run(send(cluster, body))
    try:
        assert cluster.plane.request("GET", path)["spec"]["priority"] == -1_000_000_000
        assert admission.reviewed
    finally:
        cluster.stop(path)


def test_other_clients_are_not_affected(admission: Admission, cluster: Cluster) -> None:
    """Pods of other clients are not matched."""
    seen = len(admission.reviewed)
    assert cluster.pod(cluster.node())
    assert len(admission.reviewed) > seen


# --- with more rights than the manifests grant ------------------------------------------------------------------------

PODS_POLICY = "gpuhealth-pods' .*may make only pods with the label"


@pytest.fixture
def more_rights(cluster: Cluster) -> Iterator[None]:
    """Give the controller permission to create and change pods everywhere."""
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "more-rights"}
    kind = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "more-rights"}}
    rules = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["create", "patch"]}]
    subject = {"kind": "ServiceAccount", "name": "gpuhealth-controller", "namespace": "gpuhealth"}
    made = [
        {**kind, "kind": "ClusterRole", "rules": rules},
        {**kind, "kind": "ClusterRoleBinding", "roleRef": role, "subjects": [subject]},
    ]
    cluster.plane.apply(made)
    yield
    for each in made:
        cluster.plane.request("DELETE", cluster.plane.path_of(each))


def test_more_rights_make_no_other_pods(admission: Admission, cluster: Cluster, more_rights: None) -> None:
    """It creates none in another namespace, and cannot turn a pod into a burn-in or back by its label."""
    label = {"app.kubernetes.io/component": "burnin"}
    default = PODS.path(namespace="default")
    labelled = plain("labelled") | {"metadata": {"name": "labelled", "labels": label}}
    work = cluster.pod(cluster.node())
    burn_in = honest(cluster)
    mine = PODS.path(burn_in["metadata"]["name"], "gpuhealth")

    async def refused(body: Document, method: str, path: str, patch: str = "") -> None:
        with pytest.raises(ForbiddenError, match=PODS_POLICY):
            await send(cluster, body, method, path, patch)

    async def run() -> None:
        await refused(plain("plain"), "POST", default)
        await refused(labelled, "POST", default)
        await refused({"metadata": {"labels": label}}, "PATCH", work, MERGE_PATCH)
        await send(cluster, burn_in)
        await refused({"metadata": {"labels": dict.fromkeys(label)}}, "PATCH", mine, MERGE_PATCH)
        await refused({"spec": {"activeDeadlineSeconds": 1}}, "PATCH", mine, MERGE_PATCH)

    try:
        asyncio.run(run())
    finally:
        cluster.stop(mine)
