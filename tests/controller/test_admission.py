"""The admission policies for the controller: its own requests are allowed, those of a stolen token are denied."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from kube import ControlPlane, Document, MissingBinariesError, find_binaries
from kube.control_plane import RequestError
from testing.admission import CONTROLLERS, OF_CONTROLLER, Admission, needed_rules, speaks_of
from testing.attacks import event
from testing.controller_steps import SILENT, ends, gone, healthy_node, runs, say_tested, stop_all
from testing.managed_cluster import Cluster, until

from gpuhealth.api.names import OVERRIDE, TAINT
from gpuhealth.api.report import BurninReason
from gpuhealth.controller.burnin_plan import BurninCandidate
from gpuhealth.controller.duties.burnin_scheduler import burnin_pod
from gpuhealth.kube.client import MERGE_PATCH, STRATEGIC_MERGE_PATCH, Client
from gpuhealth.kube.errors import ForbiddenError
from gpuhealth.kube.kinds import PODS

TEMPLATE = "/api/v1/namespaces/gpuhealth/podtemplates/gpuhealth-burnin"
Crime = Callable[[Document], Any]


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


def plain(name: str) -> Document:
    """A pod of another client."""
    spec = {"containers": [{"name": "c", "image": "i"}], "automountServiceAccountToken": False}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


def honest(cluster: Cluster, reason: str = BurninReason.PERIODIC, level: str = "standard") -> Document:
    """The burn-in pod that the controller creates."""
    template = cluster.plane.request("GET", TEMPLATE)["template"]
    return burnin_pod(template, BurninCandidate(node=f"{cluster.name}-n", pool="p", reason=reason), 8, level)


async def send(cluster: Cluster, body: Document, method: str = "POST", path: str = "", patch: str = "") -> None:
    """Send a request with the controller's token."""
    path = path or PODS.path(namespace="gpuhealth")
    body = body if patch else {"apiVersion": "v1", "kind": "Pod", **body}
    async with Client.from_kubeconfig(cluster.kubeconfig(), "controller", attempts=1) as client:
        await client.request(method, path, body=body, content_type=patch or "application/json")


def test_the_controller_is_not_denied(admission: Admission, cluster: Cluster) -> None:
    """A real controller tests an idle node, drains an unhealthy one and marks a silent one: no request is denied."""
    idle, sick = cluster.node(gpus=8), cluster.node()
    silent, agent = healthy_node(cluster)
    work = cluster.pod(sick)
    seen = len(admission.reviewed)

    async def run() -> None:
        async with cluster.controller(periodic={"enabled": True, "max_per_pool": 1}):
            await until(lambda: runs(cluster, idle))
            say_tested(cluster, idle)
            ends(cluster, idle, 0)
            await until(lambda: gone(cluster, idle))
        async with cluster.controller(agent_silent_after="300ms") as controller:
            await until(lambda: controller.fleet.ready)
            cluster.unready(agent)
            await until(lambda: cluster.health(silent) == SILENT)
            cluster.quarantine(sick)
            await stop_all(cluster, work)
            await until(lambda: cluster.drain(sick)["phase"] == "drained")
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


# --- what a stolen token could send -----------------------------------------------------------------------------------


def spec(**fields: Any) -> Crime:
    """Change the pod's spec."""
    return lambda body: body["spec"].update(fields)


def container(**fields: Any) -> Crime:
    """Change the burn-in's container."""
    return lambda body: body["spec"]["containers"][0].update(fields)


def security(**fields: Any) -> Crime:
    """Change the container's security context."""
    return lambda body: body["spec"]["containers"][0]["securityContext"].update(fields)


def metadata(**fields: Any) -> Crime:
    """Add to the pod's metadata."""

    def change(body: Document) -> None:
        for key, value in fields.items():
            here = body["metadata"].get(key)
            body["metadata"][key] = here | value if isinstance(here, dict) else value

    return change


def volume(**source: Any) -> Crime:
    """Add a volume to the pod."""
    return lambda body: body["spec"]["volumes"].append({"name": "more", **source})


def without(part: str, key: str) -> Crime:
    """Leave out something that the template has."""
    return lambda body: body[part].pop(key)


def resources(kind: str, **amounts: str) -> Crime:
    """Add resources to the container."""
    return lambda body: body["spec"]["containers"][0]["resources"].setdefault(kind, {}).update(amounts)


def entirely(body: Document) -> None:
    """Make it a pod that has nothing of a burn-in."""
    other = plain("x")["spec"]
    other["containers"][0]["securityContext"] = {"privileged": True}
    body["spec"] = other | {"hostPID": True, "volumes": [{"name": "root", "hostPath": {"path": "/"}}]}


def named(node: str) -> Document:
    """A node selector term with the name of a node."""
    return {"key": "metadata.name", "operator": "In", "values": [node]}


def term(*fields: Document, **more: Any) -> Crime:
    """Allow it to run on other nodes."""
    terms = {"nodeSelectorTerms": [{"matchFields": list(fields), **more}]}
    return spec(affinity={"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}})


def environment(name: str, value: str = "", **source: Any) -> Crime:
    """Add an environment variable."""
    variable = {"name": name, **({"valueFrom": source} if source else {"value": value})}
    return lambda body: body["spec"]["containers"][0]["env"].append(variable)


def mounted_root(body: Document) -> None:
    """Mount the node's root in place of the results folder."""
    body["spec"]["volumes"][0].update(hostPath={"path": "/"})


SHELL = {"name": "shell", "image": "busybox", "securityContext": {"privileged": True}}
PODS_POLICY = "gpuhealth-pods' .*may make only pods with the label"
FIELDS, VOLUMES, TOKEN = (
    "no host namespaces, nodeName",
    "no volumes but the results folder",
    "service account default, and no",
)
RUNS, CONFINED, WHAT = "priority and the runtime class", "is not privileged", "image and the command"
ARGUMENTS, VARIABLES, DEVICES = "the arguments of", "no other environment", "no other device"
WHERE, MARKS, OWNED = "for one node", "no other labels and annotations", "finalizers nor owners"
FORBIDDEN: dict[str, tuple[Crime, str]] = {
    "a pod of its own": (entirely, FIELDS),
    "the node's root": (volume(hostPath={"path": "/"}), VOLUMES),
    "the node's root, for the results": (mounted_root, VOLUMES),
    "the agent's journal": (volume(hostPath={"path": "/var/lib/gpuhealth"}), VOLUMES),
    "a secret": (volume(secret={"secretName": "s"}), VOLUMES),
    "a token by a volume": (volume(projected={"sources": [{"serviceAccountToken": {"path": "t"}}]}), VOLUMES),
    "settings of others": (volume(configMap={"name": "x"}), VOLUMES),
    "a token": (spec(automountServiceAccountToken=True), f"{TOKEN}|{VOLUMES}"),
    "the usual token": (without("spec", "automountServiceAccountToken"), f"{TOKEN}|{VOLUMES}"),
    "another service account": (spec(serviceAccountName="gpuhealth-agent"), TOKEN),
    "hostPID": (spec(hostPID=True), FIELDS),
    "hostNetwork": (spec(hostNetwork=True), FIELDS),
    "hostIPC": (spec(hostIPC=True), FIELDS),
    "past the scheduler": (spec(nodeName="n"), FIELDS),
    "an init container": (spec(initContainers=[SHELL]), FIELDS),
    "no seccomp": (spec(securityContext={"seccompProfile": {"type": "Unconfined"}}), CONFINED),
    "no seccomp of its container": (security(seccompProfile={"type": "Unconfined"}), CONFINED),
    "a type of SELinux": (spec(securityContext={"seLinuxOptions": {"type": "spc_t"}}), CONFINED),
    "a type of SELinux of its container": (security(seLinuxOptions={"type": "spc_t"}), CONFINED),
    "privileged": (security(privileged=True, allowPrivilegeEscalation=True), CONFINED),
    "a way to privileges": (security(allowPrivilegeEscalation=True), CONFINED),
    "a root to write to": (security(readOnlyRootFilesystem=False), CONFINED),
    "a capability": (security(capabilities={"add": ["SYS_ADMIN"], "drop": ["ALL"]}), CONFINED),
    "the usual capabilities": (security(capabilities={}), CONFINED),
    "without a security context": (lambda body: body["spec"]["containers"][0].pop("securityContext"), CONFINED),
    "the default runtime": (without("spec", "runtimeClassName"), RUNS),
    "a priority above others": (spec(priorityClassName="system-node-critical"), RUNS),
    "without a deadline": (without("spec", "activeDeadlineSeconds"), RUNS),
    "a deadline of a month": (spec(activeDeadlineSeconds=30 * 86400), RUNS),
    "again and again": (spec(restartPolicy="Always"), RUNS),
    "another container": (lambda body: body["spec"]["containers"].append(SHELL), f"{CONFINED}|{WHAT}"),
    "another name": (container(name="x"), WHAT),
    "another image": (container(image="busybox"), WHAT),
    "an image of the same name": (container(image="gpuhealth-burnin:0.1.0"), WHAT),
    "a shell": (container(command=["sh", "-c", "id"]), WHAT),
    "a hook": (container(lifecycle={"postStart": {"exec": {"command": ["id"]}}}), WHAT),
    "a port of the host": (container(ports=[{"containerPort": 22, "hostPort": 22}]), WHAT),
    "all variables of a secret": (container(envFrom=[{"secretRef": {"name": "s"}}]), WHAT),
    "other arguments": (container(args=["burnin", "--report", "/var/lib/gpuhealth/burnin/x"]), ARGUMENTS),
    "more arguments": (lambda body: body["spec"]["containers"][0]["args"].append("--save"), ARGUMENTS),
    "other code": (environment("LD_PRELOAD", "x"), VARIABLES),
    "all GPUs": (environment("NVIDIA_VISIBLE_DEVICES", "all"), VARIABLES),
    "a variable of a secret": (
        environment("GPUHEALTH_CONFIG", secretKeyRef={"name": "s", "key": "k"}),
        VARIABLES,
    ),
    "another device": (resources("limits", **{"example.com/disk": "1"}), DEVICES),
    "any node": (without("spec", "affinity"), WHERE),
    "another node": (term(named("x")), WHERE),
    "one of many nodes": (term(named("n") | {"operator": "NotIn"}), WHERE),
    "a node by its labels": (term(matchExpressions=[{"key": "a", "operator": "Exists"}]), WHERE),
    "beside other pods": (
        lambda body: body["spec"]["affinity"].update(
            podAffinity={"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "a"}]}
        ),
        WHERE,
    ),
    "a device by annotation": (metadata(annotations={"cdi.k8s.io/x": "vendor.com/device=all"}), MARKS),
    "another label": (metadata(labels={"app": "x"}), MARKS),
    "the labels of an agent": (metadata(labels={"app.kubernetes.io/component": "agent"}), PODS_POLICY),
    "without labels": (without("metadata", "labels"), PODS_POLICY),
    "finalizers": (metadata(finalizers=["x/y"]), OWNED),
    "owners": (metadata(ownerReferences=[{"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "u"}]), OWNED),
}


@pytest.mark.parametrize("crime", FORBIDDEN)
def test_a_stolen_token_makes_no_other_pod(admission: Admission, cluster: Cluster, crime: str) -> None:
    """The policy denies what RBAC allows, with the reason."""
    change, why = FORBIDDEN[crime]
    body = honest(cluster)
    change(body)
    with pytest.raises(ForbiddenError, match=f"denied the request: .*({why})"):
        asyncio.run(send(cluster, body))


FINDINGS = "gpuhealth.io/fleet-findings"
OF_A_NODE: dict[str, tuple[str, Document, str]] = {
    "our taint": ("", {"spec": {"taints": [{"key": TAINT, "effect": "NoExecute"}]}}, "taints, cordon"),
    "no taints": ("", {"spec": {"taints": None}}, "taints, cordon"),
    "a cordon": ("", {"spec": {"unschedulable": True}}, "taints, cordon"),
    "a label": ("", {"metadata": {"labels": {"node-role.kubernetes.io/control-plane": ""}}}, "labels and annotations"),
    "one label less": ("", {"metadata": {"labels": {"gpuhealth.io/pool": None}}}, "labels and annotations"),
    "a person's word": ("", {"metadata": {"annotations": {OVERRIDE: "healthy"}}}, "labels and annotations"),
    "no person's word": ("", {"metadata": {"annotations": {"c": None}}}, "labels and annotations"),
    "a label for an annotation": ("", {"metadata": {"labels": {FINDINGS: "x"}}}, "labels and annotations"),
    "ownership forgotten": ("", {"metadata": {"managedFields": [{}]}}, "stays theirs"),
    "a finalizer": ("", {"metadata": {"finalizers": ["x/y"]}}, "finalizers and owners"),
    "another condition": ("/status", {"status": {"conditions": [{"type": "Ready", "status": "False"}]}}, "status"),
    "fewer GPUs": ("/status", {"status": {"allocatable": {"nvidia.com/gpu": "0"}}}, "status"),
    "a label by way of the status": ("/status", {"metadata": {"labels": {"a": "b"}}}, "labels and annotations"),
}


@pytest.fixture
def node(cluster: Cluster) -> str:
    """A node with marks of other clients."""
    name = cluster.node(gpus=8)
    body = {"metadata": {"annotations": {"c": "d"}}, "spec": {"taints": [{"key": "theirs", "effect": "NoSchedule"}]}}
    cluster.patch(f"/api/v1/nodes/{name}", body)
    applied = {"metadata": {"name": name, "labels": {"feature": "x"}}}
    cluster.plane.apply([{"apiVersion": "v1", "kind": "Node", **applied}])
    return name


async def change(cluster: Cluster, node: str, subresource: str, body: Document) -> None:
    """Send a request with the controller's token."""
    await send(
        cluster,
        body,
        "PATCH",
        f"/api/v1/nodes/{node}{subresource}",
        STRATEGIC_MERGE_PATCH if subresource else MERGE_PATCH,
    )


@pytest.mark.parametrize("crime", OF_A_NODE)
def test_a_stolen_token_takes_no_node_out(admission: Admission, cluster: Cluster, node: str, crime: str) -> None:
    """RBAC allows the controller to change every Node; the policy allows only our label, annotation and condition."""
    subresource, body, why = OF_A_NODE[crime]
    with pytest.raises(ForbiddenError, match=f"denied the request: .*{why}"):
        asyncio.run(change(cluster, node, subresource, body))
    asyncio.run(change(cluster, node, "", {"metadata": {"annotations": {FINDINGS: "[]"}}}))
    asyncio.run(change(cluster, node, "", {"metadata": {"annotations": {FINDINGS: None}}}))
    assert admission.reviewed


EVENTS = "/api/v1/namespaces/default/events"
NODE = {"kind": "Node", "name": "n", "uid": "n"}
OURS = "gpuhealth-controller"
OF_EVENTS: dict[str, tuple[Document, str]] = {
    "as the kubelet": (event("e", NODE, "kubelet"), "only in its own name"),
    "as an agent": (event("e", NODE, "gpuhealth-agent"), "only in its own name"),
    "from a host": (event("e", NODE, OURS, source={"host": "n"}), "only in its own name"),
    "about a Secret": (
        event("e", {"kind": "Secret", "name": "s", "namespace": "default"}, OURS),
        "about Nodes and pods",
    ),
    "about two": (event("e", NODE, OURS, related={"kind": "Node", "name": "n"}), "about Nodes and pods"),
    "with finalizers": (event("e", NODE, OURS, metadata={"finalizers": ["x/y"]}), OWNED),
}


@pytest.mark.parametrize("crime", OF_EVENTS)
def test_a_stolen_token_creates_no_events_of_others(admission: Admission, cluster: Cluster, crime: str) -> None:
    """RBAC allows the controller to create any Event; the policy allows only its own, about Nodes and pods."""
    body, why = OF_EVENTS[crime]
    with pytest.raises(ForbiddenError, match=f"denied the request: .*{why}"):
        asyncio.run(send(cluster, body, path=EVENTS))
    assert admission.reviewed


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


def test_every_rule_is_needed(admission: Admission, cluster: Cluster, node: str) -> None:
    """For each rule there is a request that only this rule denies."""
    seen = len(admission.reviewed)
    for crime, _ in FORBIDDEN.values():
        body = honest(cluster)
        crime(body)
        with suppress(ForbiddenError):
            asyncio.run(send(cluster, body))
    for subresource, body, _ in OF_A_NODE.values():
        with suppress(ForbiddenError):
            asyncio.run(change(cluster, node, subresource, body))
    for body, _ in OF_EVENTS.values():
        with suppress(ForbiddenError):
            asyncio.run(send(cluster, body, path=EVENTS))
    needed = needed_rules(admission.policies, admission.reviewed[seen:])
    assert needed == {rule["message"] for policy in admission.policies for rule in policy["spec"]["validations"]}
