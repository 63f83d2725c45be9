"""Why a pod does not run, and whether a pod could be placed on a node. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gpuhealth.api.names import UNSCHEDULABLE_TAINT
from gpuhealth.kube.client import Object
from gpuhealth.kube.selectors import matches
from gpuhealth.quarantine.marks import labels, taints

_IMAGE = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable")
_MESSAGE_CHARACTERS = 200
_TOLERATED_BY_ALL = (  # tolerations that the DaemonSet controller adds to each pod
    "node.kubernetes.io/not-ready",
    "node.kubernetes.io/unreachable",
    "node.kubernetes.io/disk-pressure",
    "node.kubernetes.io/memory-pressure",
    "node.kubernetes.io/pid-pressure",
    UNSCHEDULABLE_TAINT,
)


def node_of(pod: Object) -> str:
    """The node of a pod; for one of a DaemonSet that is not scheduled yet, the node that it is for."""
    spec = pod.get("spec") or {}
    if spec.get("nodeName"):
        return str(spec["nodeName"])
    required = ((spec.get("affinity") or {}).get("nodeAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    ) or {}
    for term in required.get("nodeSelectorTerms") or []:
        for field in term.get("matchFields") or []:
            if field.get("key") == "metadata.name" and field.get("values"):
                return str(field["values"][0])
    return ""


def is_ready(pod: Object) -> bool:
    """Whether the pod's condition Ready is True."""
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def trouble(pod: Object) -> str:
    """Why the pod does not run, in words that name no pod; empty where it is ready or has only just started."""
    status = pod.get("status") or {}
    if is_ready(pod) or status.get("phase") == "Succeeded":
        return ""
    if text := _waiting(status):
        return text
    for each in status.get("conditions") or []:
        if each["type"] == "PodScheduled" and each["status"] == "False" and each.get("message"):
            return f"the scheduler finds no place: {_short(each['message'])}"
    if status.get("phase") == "Failed":
        return f"the pod failed: {_short(status.get('message') or status.get('reason') or 'no reason given')}"
    return ""


def _waiting(status: Object) -> str:
    for container in _container_statuses(status):
        waiting = (container.get("state") or {}).get("waiting") or {}
        reason, message = waiting.get("reason", ""), waiting.get("message", "")
        if reason in _IMAGE:
            return f"the image {container.get('image')} cannot be pulled: {_short(message or reason)}"
        if reason == "CrashLoopBackOff":
            return f"the container {container.get('name')} ends again and again: {_last_end(container)}"
        if reason and reason not in {"ContainerCreating", "PodInitializing"}:
            return f"the container {container.get('name')} does not start: {reason}: {_short(message)}".rstrip(": ")
    return ""


def _container_statuses(status: Object) -> Iterator[Object]:
    yield from status.get("initContainerStatuses") or []
    yield from status.get("containerStatuses") or []


def _last_end(container: Object) -> str:
    ended = (container.get("lastState") or {}).get("terminated") or {}
    code = f"exit code {ended['exitCode']}" if "exitCode" in ended else "exit code unknown"
    reason = ended.get("reason", "")
    described = f"{code}, {reason}" if reason not in {"", "Error", "Completed"} else code
    message = _short(ended.get("message") or "")
    return f"{described}: {message}" if message else described


def _short(text: str) -> str:
    """The end of a text of several lines, which is where programs write their reason, or the text on one line."""
    lines = [line.strip() for line in str(text).splitlines() if line.strip()]
    return (lines[-1] if lines else "")[:_MESSAGE_CHARACTERS]


# --- placement --------------------------------------------------------------------------------------------------------


def tolerates(tolerations: Any, taint: Object) -> bool:
    """Whether one of these tolerations tolerates the taint, as Kubernetes defines it."""
    return any(_tolerates(each, taint) for each in tolerations or [])


def _tolerates(toleration: Object, taint: Object) -> bool:
    if toleration.get("effect") not in (None, "", taint.get("effect")):
        return False
    key, operator = toleration.get("key") or "", toleration.get("operator") or "Equal"
    if not key:
        return bool(operator == "Exists")
    if key != taint["key"]:
        return False
    return bool(operator == "Exists" or (toleration.get("value") or "") == (taint.get("value") or ""))


def untolerated_taints(spec: Object, node: Object) -> list[Object]:
    """The taints of a node that keep away a DaemonSet's pod with this spec."""
    return [
        taint
        for taint in taints(node)
        if taint.get("effect") in {"NoSchedule", "NoExecute"}
        and taint["key"] not in _TOLERATED_BY_ALL
        and not tolerates(spec.get("tolerations"), taint)
    ]


def selects_node(spec: Object, node: Object) -> bool:
    """Whether nodeSelector and required node affinity of a pod's spec match a node."""
    known = labels(node)
    if any(known.get(key) != value for key, value in (spec.get("nodeSelector") or {}).items()):
        return False
    affinity = ((spec.get("affinity") or {}).get("nodeAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    )
    if affinity is None:
        return True
    return any(_term_matches(term, node) for term in affinity.get("nodeSelectorTerms") or [])


def _term_matches(term: Object, node: Object) -> bool:
    expressions, fields = term.get("matchExpressions") or [], term.get("matchFields") or []
    if not (expressions or fields):
        return False  # as in Kubernetes: an empty term matches nothing
    name = {"metadata.name": node["metadata"]["name"]}
    return all(_matches(each, labels(node)) for each in expressions) and all(_matches(each, name) for each in fields)


def _matches(expression: Object, values: Any) -> bool:
    """Whether one requirement holds; Gt and Lt are those of node affinity alone."""
    key, operator = expression["key"], expression["operator"]
    if operator not in {"Gt", "Lt"}:
        return matches({"matchExpressions": [expression]}, values)
    try:
        value, limit = int(values[key]), int(expression["values"][0])
    except (KeyError, ValueError, IndexError):
        return False
    return value > limit if operator == "Gt" else value < limit
