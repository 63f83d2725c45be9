"""Has every GPU node a working agent, and if not, why?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping

from msgspec import structs

from gpuhealth.api.names import AGENT_LABEL, ConditionReason, Override
from gpuhealth.installation.cluster import Cluster, pod_spec
from gpuhealth.installation.manifests import AGENT, INSTALL
from gpuhealth.installation.pod_state import is_ready, node_of, selects_node, trouble, untolerated_taints
from gpuhealth.installation.problem import CannotCheckError, Problem, error, some_of
from gpuhealth.kube.client import Object
from gpuhealth.kube.kinds import EVENTS
from gpuhealth.quarantine.marks import condition, override

_FIXES = {
    "label": f"kubectl label node NODE {AGENT_LABEL}=true, or add its label to the affinity in daemonset/agent.yaml",
    "taint": "add a toleration for it to the DaemonSet",
    "refused": "allow the pods there: kubectl describe daemonset -n {namespace} shows all refusals",
    "unknown": "kubectl describe daemonset -n {namespace} shows why, unless it has just been made",
    "pod": "kubectl describe pod -n {namespace} and kubectl logs show more",
    "silent": "kubectl logs -n {namespace} of its pod shows why",
}
_MESSAGE_CHARACTERS = 240


async def check(cluster: Cluster) -> list[Problem]:
    """Every node with GPUs: an agent that is ready and has reported."""
    daemon_set = await cluster.workload(AGENT)
    nodes = await cluster.gpu_nodes()
    if daemon_set is None:
        names = [node["metadata"]["name"] for node in nodes]
        return [error("there is no DaemonSet of the agents", INSTALL, names)]
    pods = {node_of(pod): pod for pod in await cluster.pods(AGENT)}
    reports = await cluster.reports()
    found = judge(nodes, pods, reports, daemon_set, await _events(cluster))
    namespace = await cluster.namespace()
    return [structs.replace(problem, fix=problem.fix.format(namespace=namespace)) for problem in found]


async def _events(cluster: Cluster) -> list[Object]:
    try:
        return await cluster.objects(EVENTS, await cluster.namespace())
    except CannotCheckError:  # the reasons are less exact without them
        return []


def last_message(events: Iterable[Object], uid: str, reason: str = "") -> str:
    """The message of the last Event of type Warning about an object, or of those with a reason; empty without one."""
    about = [
        event
        for event in events
        if (event.get("involvedObject") or {}).get("uid") == uid
        and (event.get("reason") == reason if reason else event.get("type") == "Warning")
    ]
    if not about:
        return ""
    last = max(about, key=lambda event: str(event.get("lastTimestamp") or event.get("eventTime") or ""))
    return " ".join(str(last.get("message") or "").split())[:_MESSAGE_CHARACTERS]


def judge(
    nodes: Iterable[Object],
    pods: Mapping[str, Object],
    reports: Mapping[str, Object],
    daemon_set: Object,
    events: Collection[Object],
) -> list[Problem]:
    """GPU nodes without a working agent, together where the reason is the same; `{namespace}` stands in the fixes.

    `pods`: the agents' pods by node; `events`: of the namespace.
    """
    spec, refused = pod_spec(daemon_set), last_message(events, daemon_set["metadata"]["uid"], "FailedCreate")
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    total = 0
    for node in nodes:
        total += 1
        name = node["metadata"]["name"]
        pod = pods.get(name)
        if pod is None:
            kind, reason = _without_pod(node, spec, refused)
        else:
            kind, reason = _with_pod(node, pod, name in reports, events)
        if reason:
            found[kind, reason].append(name)
    return [
        error(f"{_count(names, total)} no working agent ({some_of(names)}): {reason}", _FIXES[kind], names)
        for (kind, reason), names in found.items()
    ]


def _count(names: list[str], total: int) -> str:
    return f"{len(names)} of {total} GPU node{'s' if total > 1 else ''} {'has' if len(names) == 1 else 'have'}"


def _without_pod(node: Object, spec: Object, refused: str) -> tuple[str, str]:
    if not selects_node(spec, node):
        return "label", "no label of the node matches the DaemonSet's affinity"
    if taints := untolerated_taints(spec, node):
        keys = ", ".join(f"{taint['key']}={taint.get('value', '')}:{taint['effect']}" for taint in taints)
        return "taint", f"the DaemonSet does not tolerate {keys}"
    if refused:
        return "refused", f"the API server refuses the pod: {refused}"
    return "unknown", "the DaemonSet has made no pod there"


def _with_pod(node: Object, pod: Object, has_report: bool, events: Collection[Object]) -> tuple[str, str]:
    if reason := trouble(pod):
        return "pod", reason
    ours = condition(node) or {}
    if ours.get("reason") == ConditionReason.AGENT_SILENT:
        return "silent", "its agent is silent: the controller has set the condition to Unknown"
    if not is_ready(pod):
        why = last_message(events, pod["metadata"]["uid"])
        return "pod", f"its pod is not ready: {why}" if why else "its pod is not ready yet"
    if override(node) is not Override.UNMANAGED and not (ours and has_report):
        return "silent", "its agent runs and has not reported to the API server"
    return "", ""
