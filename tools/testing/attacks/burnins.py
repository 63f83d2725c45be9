"""Attacks by pods that the controller's token creates."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

from kube import Document, documents

from gpuhealth.api.report import BurninReason
from gpuhealth.controller.burnin_plan import BurninCandidate
from gpuhealth.controller.duties.burnin_scheduler import burnin_pod
from testing.attacks.objects import PODS
from testing.attacks.row import RBAC, Row, Who, merge, post
from testing.paths import BASE

Change = Callable[[Document], Any]
(_TEMPLATE,) = [d["template"] for d in documents(BASE) if d["kind"] == "PodTemplate"]
BURNIN_IMAGE = _TEMPLATE["spec"]["containers"][0]["image"]


def honest(reason: str = BurninReason.PERIODIC, level: str = "standard") -> Document:
    """The burn-in pod that the controller creates for the node MINE."""
    candidate = BurninCandidate(node="MINE", pool="p", reason=reason)
    return {"apiVersion": "v1", "kind": "Pod", **burnin_pod(deepcopy(_TEMPLATE), candidate, 8, level)}


def plain(name: str) -> Document:
    """A pod of another client."""
    spec = {"containers": [{"name": "c", "image": "i"}], "automountServiceAccountToken": False}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


def _spec(**fields: Any) -> Change:
    """Change the pod's spec."""
    return lambda body: body["spec"].update(fields)


def _container(**fields: Any) -> Change:
    """Change the burn-in's container."""
    return lambda body: body["spec"]["containers"][0].update(fields)


def _security(**fields: Any) -> Change:
    """Change the container's security context."""
    return lambda body: body["spec"]["containers"][0]["securityContext"].update(fields)


def _metadata(**fields: Any) -> Change:
    """Add to the pod's metadata."""

    def change(body: Document) -> None:
        for key, value in fields.items():
            here = body["metadata"].get(key)
            body["metadata"][key] = here | value if isinstance(here, dict) else value

    return change


def _volume(**source: Any) -> Change:
    """Add a volume to the pod."""
    return lambda body: body["spec"]["volumes"].append({"name": "more", **source})


def _volume_with_token(body: Document) -> None:
    """Add a volume with a token of the usual account, which the API server takes only where the pod names it."""
    body["spec"]["serviceAccountName"] = "default"
    _volume(projected={"sources": [{"serviceAccountToken": {"path": "t"}}]})(body)


def _without(part: str, key: str) -> Change:
    """Leave out something that the template has."""
    return lambda body: body[part].pop(key, None)


def _resources(kind: str, **amounts: str) -> Change:
    """Add resources to the container."""
    return lambda body: body["spec"]["containers"][0]["resources"].setdefault(kind, {}).update(amounts)


def _entirely(body: Document) -> None:
    """Make it a pod that has nothing of a burn-in."""
    other = plain("x")["spec"]
    other["containers"][0]["securityContext"] = {"privileged": True}
    body["spec"] = other | {"hostPID": True, "volumes": [{"name": "root", "hostPath": {"path": "/"}}]}


def _named(node: str) -> Document:
    """A node selector term with the name of a node."""
    return {"key": "metadata.name", "operator": "In", "values": [node]}


def _term(*fields: Document, **more: Any) -> Change:
    """Allow it to run on other nodes."""
    terms = {"nodeSelectorTerms": [{"matchFields": list(fields), **more}]}
    return _spec(affinity={"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}})


def _environment(name: str, value: str = "", **source: Any) -> Change:
    """Add an environment variable."""
    variable = {"name": name, **({"valueFrom": source} if source else {"value": value})}
    return lambda body: body["spec"]["containers"][0]["env"].append(variable)


def _mounted_root(body: Document) -> None:
    """Mount the node's root in place of a folder of the template."""
    next(each for each in body["spec"]["volumes"] if "hostPath" in each)["hostPath"] = {"path": "/"}


_SHELL = {"name": "shell", "image": "busybox", "securityContext": {"privileged": True}}
FIELDS, VOLUMES, TOKEN = (
    "no host namespaces, nodeName",
    "no volumes but the results folder",
    "service account default, and no",
)
RUNS, CONFINED, WHAT = "priority and the runtime class", "is not privileged", "image and the command"
ARGUMENTS, VARIABLES, DEVICES = "the arguments of", "no other environment", "no other device"
WHERE, MARKS, OWNED = "for one node", "no other labels and annotations", "finalizers nor owners"
_CRIMES: dict[str, tuple[Change, str]] = {
    "a pod that has nothing of a burn-in": (_entirely, FIELDS),
    "a burn-in with the node's root": (_volume(hostPath={"path": "/"}), VOLUMES),
    "a burn-in with the node's root for its results": (_mounted_root, VOLUMES),
    "a burn-in with the agent's journal": (_volume(hostPath={"path": "/var/lib/gpuhealth"}), VOLUMES),
    "a burn-in with a Secret": (_volume(secret={"secretName": "s"}), VOLUMES),
    "a burn-in with a token in a volume": (_volume_with_token, VOLUMES),
    "a burn-in with settings of others": (_volume(configMap={"name": "x"}), VOLUMES),
    "a burn-in with a volume of a driver": (_volume(csi={"driver": "x.y"}), VOLUMES),
    "a burn-in with a token": (_spec(automountServiceAccountToken=True), f"{TOKEN}|{VOLUMES}"),
    "a burn-in with the usual token": (_without("spec", "automountServiceAccountToken"), f"{TOKEN}|{VOLUMES}"),
    "a burn-in of the agent's account": (_spec(serviceAccountName="gpuhealth-agent"), TOKEN),
    "a burn-in with hostPID": (_spec(hostPID=True), FIELDS),
    "a burn-in with hostNetwork": (_spec(hostNetwork=True), FIELDS),
    "a burn-in with hostIPC": (_spec(hostIPC=True), FIELDS),
    "a burn-in past the scheduler": (_spec(nodeName="n"), FIELDS),
    "a burn-in with an init container": (_spec(initContainers=[_SHELL]), FIELDS),
    "a burn-in with other name servers": (_spec(dnsConfig={"nameservers": ["192.0.2.1"]}), FIELDS),
    "a burn-in without seccomp": (_spec(securityContext={"seccompProfile": {"type": "Unconfined"}}), CONFINED),
    "a burn-in whose container has no seccomp": (_security(seccompProfile={"type": "Unconfined"}), CONFINED),
    "a burn-in with a type of SELinux": (_spec(securityContext={"seLinuxOptions": {"type": "spc_t"}}), CONFINED),
    "a burn-in whose container has a type of SELinux": (_security(seLinuxOptions={"type": "spc_t"}), CONFINED),
    "a burn-in with sysctls": (_spec(securityContext={"sysctls": [{"name": "a", "value": "b"}]}), CONFINED),
    "a privileged burn-in": (_security(privileged=True, allowPrivilegeEscalation=True), CONFINED),
    "a burn-in that may gain privileges": (_security(allowPrivilegeEscalation=True), CONFINED),
    "a burn-in that writes to its image": (_security(readOnlyRootFilesystem=False), CONFINED),
    "a burn-in with a capability": (_security(capabilities={"add": ["SYS_ADMIN"], "drop": ["ALL"]}), CONFINED),
    "a burn-in with the usual capabilities": (_security(capabilities={}), CONFINED),
    "a burn-in without a security context": (
        lambda body: body["spec"]["containers"][0].pop("securityContext"),
        CONFINED,
    ),
    "a burn-in of another runtime class": (_spec(runtimeClassName="other"), RUNS),
    "a burn-in with a priority above others": (_spec(priorityClassName="system-node-critical"), RUNS),
    "a burn-in without a deadline": (_without("spec", "activeDeadlineSeconds"), RUNS),
    "a burn-in with a deadline of a month": (_spec(activeDeadlineSeconds=30 * 86400), RUNS),
    "a burn-in that runs again and again": (_spec(restartPolicy="Always"), RUNS),
    "a burn-in with another container": (lambda body: body["spec"]["containers"].append(_SHELL), f"{CONFINED}|{WHAT}"),
    "a burn-in with a container of another name": (_container(name="x"), WHAT),
    "a burn-in with another image": (_container(image="busybox"), WHAT),
    "a burn-in with an image of the same name": (_container(image="example.net/gpuhealth-burnin:0.1.0"), WHAT),
    "a burn-in with a shell": (_container(command=["sh", "-c", "id"]), WHAT),
    "a burn-in with a hook": (_container(lifecycle={"postStart": {"exec": {"command": ["id"]}}}), WHAT),
    "a burn-in with a probe": (_container(livenessProbe={"exec": {"command": ["id"]}}), WHAT),
    "a burn-in with a port of the host": (_container(ports=[{"containerPort": 22, "hostPort": 22}]), WHAT),
    "a burn-in with all variables of a Secret": (_container(envFrom=[{"secretRef": {"name": "s"}}]), WHAT),
    "a burn-in with a block device": (
        _container(volumeDevices=[{"name": "x", "devicePath": "/dev/x"}]),
        "Not found|Invalid|must",
    ),
    "a burn-in with other arguments": (
        _container(args=["burnin", "--report", "/var/lib/gpuhealth/burnin/x"]),
        ARGUMENTS,
    ),
    "a burn-in with more arguments": (lambda body: body["spec"]["containers"][0]["args"].append("--save"), ARGUMENTS),
    "a burn-in with other code": (_environment("LD_PRELOAD", "x"), VARIABLES),
    "a burn-in with all GPUs of the node": (_environment("NVIDIA_VISIBLE_DEVICES", "all"), VARIABLES),
    "a burn-in with a variable of a Secret": (
        _environment("GPUHEALTH_CONFIG", secretKeyRef={"name": "s", "key": "k"}),
        VARIABLES,
    ),
    "a burn-in with another device": (_resources("limits", **{"example.com/disk": "1"}), DEVICES),
    "a burn-in for any node": (_without("spec", "affinity"), WHERE),
    "a burn-in for another node than it names": (_term(_named("x")), WHERE),
    "a burn-in for all nodes but one": (_term(_named("MINE") | {"operator": "NotIn"}), WHERE),
    "a burn-in for nodes with a label": (_term(matchExpressions=[{"key": "a", "operator": "Exists"}]), WHERE),
    "a burn-in beside other pods": (
        lambda body: body["spec"]["affinity"].update(
            podAffinity={"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "a"}]}
        ),
        WHERE,
    ),
    "a burn-in with a device by annotation": (_metadata(annotations={"cdi.k8s.io/x": "vendor.com/device=all"}), MARKS),
    "a burn-in with another label": (_metadata(labels={"app": "x"}), MARKS),
    "a burn-in with finalizers": (_metadata(finalizers=["x/y"]), OWNED),
    "a burn-in with an owner": (
        _metadata(ownerReferences=[{"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "u"}]),
        OWNED,
    ),
}
_ELSEWHERE: dict[str, Change] = {
    "a pod with the labels of an agent": _metadata(labels={"app.kubernetes.io/component": "agent"}),
    "a pod without labels": _without("metadata", "labels"),
}
_HARMLESS: dict[str, tuple[Change, str]] = {
    "a burn-in with more tolerations": (
        _spec(tolerations=[{"operator": "Exists"}]),
        "the same image, with the lowest priority, on another node",
    ),
    "a burn-in with other memory": (_resources("requests", memory="1Gi"), "every other pod preempts it"),
    "a burn-in with a variable of another value": (
        _environment("NVIDIA_DRIVER_CAPABILITIES", "all"),
        "the same image reads it",
    ),
}


def _row(what: str, refused_by: str, why: str, change: Change = lambda _body: None, **options: str) -> Row:
    body = honest(**options)
    change(body)
    return Row(Who.CONTROLLER, what, refused_by, why, (post(PODS, body),))


def _policy_of(what: str) -> str:
    return "API server" if what == "a burn-in with a block device" else "gpuhealth-burnins"


ROWS = [
    *(_row(what, _policy_of(what), why, change) for what, (change, why) in _CRIMES.items()),
    *(_row(what, "gpuhealth-pods", "only pods with the label", change) for what, change in _ELSEWHERE.items()),
    *(_row(what, "", why, change) for what, (change, why) in _HARMLESS.items()),
    _row("a burn-in", "", "what the controller does"),
    Row(
        Who.CONTROLLER,
        "a pod of another namespace",
        RBAC,
        "cannot create",
        (post(PODS.replace("gpuhealth", "default"), plain("p")),),
    ),
    Row(
        Who.CONTROLLER,
        "change a pod",
        RBAC,
        "cannot patch",
        (merge(f"{PODS}/p", {"spec": {"activeDeadlineSeconds": 1}}),),
    ),
    Row(
        Who.CONTROLLER, "add a container to a pod", RBAC, "cannot patch", (merge(f"{PODS}/p/ephemeralcontainers", {}),)
    ),
]
