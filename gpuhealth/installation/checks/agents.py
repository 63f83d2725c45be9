"""Has every GPU node a working agent, and if not, why?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

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
    found = judge(nodes, pods, reports, pod_spec(daemon_set), await refusal(cluster, daemon_set))
    namespace = await cluster.namespace()
    return [structs.replace(problem, fix=problem.fix.format(namespace=namespace)) for problem in found]


async def refusal(cluster: Cluster, daemon_set: Object) -> str:
    """Why the API server refused the last pod of a DaemonSet; empty where it did not, or where that is unknown."""
    metadata = daemon_set["metadata"]
    try:
        events = await cluster.objects(EVENTS, metadata["namespace"])
    except CannotCheckError:
        return ""
    about = [
        event
        for event in events
        if event.get("reason") == "FailedCreate" and (event.get("involvedObject") or {}).get("uid") == metadata["uid"]
    ]
    if not about:
        return ""
    last = max(about, key=lambda event: str(event.get("lastTimestamp") or event.get("eventTime") or ""))
    return " ".join(str(last.get("message") or "").split())[:_MESSAGE_CHARACTERS]


def judge(
    nodes: Iterable[Object], pods: Mapping[str, Object], reports: Mapping[str, Object], spec: Object, refused: str
) -> list[Problem]:
    """GPU nodes without a working agent, together where the reason is the same; `{namespace}` stands in the fixes.

    `pods`: the agents' pods by node; `spec`: of the DaemonSet's pods; `refused`: message of the last refusal.
    """
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    total = 0
    for node in nodes:
        total += 1
        name = node["metadata"]["name"]
        pod = pods.get(name)
        kind, reason = _without_pod(node, spec, refused) if pod is None else _with_pod(node, pod, name in reports)
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


def _with_pod(node: Object, pod: Object, has_report: bool) -> tuple[str, str]:
    if reason := trouble(pod):
        return "pod", reason
    ours = condition(node) or {}
    if ours.get("reason") == ConditionReason.AGENT_SILENT:
        return "silent", "its agent is silent: the controller has set the condition to Unknown"
    if not is_ready(pod):
        return "pod", "its pod is not ready yet"
    if override(node) is not Override.UNMANAGED and not (ours and has_report):
        return "silent", "its agent runs and has not reported to the API server"
    return "", ""
