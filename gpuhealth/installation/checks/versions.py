"""Are agents, controller and this command of one version?"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping

from gpuhealth import __version__
from gpuhealth.installation.cluster import Cluster, pod_spec
from gpuhealth.installation.manifests import AGENT, CONTROLLER
from gpuhealth.installation.problem import Problem, info, some_of, warning
from gpuhealth.kube.client import Object

_TAG = re.compile(r"[^/]*:([\w.+-]+)(?:@sha256:\w+)?")


async def check(cluster: Cluster) -> list[Problem]:
    """The versions that agents report, the controller's image, and this command."""
    agents = {name: str(status.get("agentVersion") or "") for name, status in (await cluster.reports()).items()}
    workloads = await cluster.workloads()
    return [*rollouts(workloads), *judge(agents, tag_of(workloads.get(CONTROLLER)), in_rollout(workloads.get(AGENT)))]


def tag_of(workload: Object | None) -> str:
    """The tag of the first container's image; empty without one."""
    containers = pod_spec(workload).get("containers") or [{}]
    found = _TAG.fullmatch(str(containers[0].get("image") or "").rpartition("/")[2])
    return found[1] if found else ""


def in_rollout(daemon_set: Object | None) -> bool:
    """Whether some pods of a DaemonSet do not have its present template yet."""
    status = (daemon_set or {}).get("status") or {}
    desired = status.get("desiredNumberScheduled") or 0
    return bool(desired) and (status.get("updatedNumberScheduled") or 0) < desired


def rollouts(workloads: Mapping[str, Object]) -> list[Problem]:
    """A rollout that is in progress."""
    daemon_set = workloads.get(AGENT)
    if daemon_set is None or not in_rollout(daemon_set):
        return []
    status = daemon_set["status"]
    updated, desired = status.get("updatedNumberScheduled") or 0, status["desiredNumberScheduled"]
    return [info(f"a rollout of the agents is in progress: {updated} of {desired} pods have the present template")]


def judge(agents: Mapping[str, str], controller: str, rolling: bool) -> list[Problem]:
    """The problems with the agents' versions by node, and the tag of the controller's image."""
    problems = []
    nodes: dict[str, list[str]] = defaultdict(list)
    for node, version in sorted(agents.items()):
        if version and version != __version__:
            nodes[version].append(node)
    for version, names in sorted(nodes.items()):
        text = f"the agents of {some_of(names)} are version {version}, this command is {__version__}"
        advice = f"wait for the rollout, or install the command {version}" if rolling else "upgrade the older one"
        problems.append((info if rolling else warning)(text, advice, names))
    if controller and re.match(r"\d", controller) and controller != __version__:
        text = f"the controller's image has version {controller}, this command is {__version__}"
        problems.append(warning(text, "upgrade the older one"))
    return problems
