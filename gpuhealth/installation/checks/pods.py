"""Do the pods of controller, preflight and burn-in run?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from gpuhealth.installation.cluster import Cluster
from gpuhealth.installation.manifests import BURNIN, CONTROLLER, PREFLIGHT
from gpuhealth.installation.pod_state import trouble
from gpuhealth.installation.problem import Problem, error, some_of
from gpuhealth.kube.client import Object


async def check(cluster: Cluster) -> list[Problem]:
    """Pods that wait, crash or have failed; those of the agents are in the check agents."""
    problems = []
    for component in (CONTROLLER, PREFLIGHT, BURNIN):
        problems += judge(component, await cluster.pods(component))
    return problems


def judge(component: str, pods: Iterable[Object]) -> list[Problem]:
    """The pods of one component that do not run, together where the reason is the same."""
    names = defaultdict(list)
    for pod in pods:
        ended = component == BURNIN and (pod.get("status") or {}).get("phase") == "Failed"
        if not ended and (reason := trouble(pod)):  # a burn-in that fails has found a fault
            names[reason].append(pod["metadata"]["name"])
    return [
        error(
            f"the {component} does not run ({some_of(pods)}): {reason}",
            "kubectl describe pod and kubectl logs show more",
            pods,
        )
        for reason, pods in names.items()
    ]
