"""Have agent, controller and preflight every right that they need?"""

from __future__ import annotations

import asyncio
from collections import defaultdict

from gpuhealth.api.names import BURNIN_TEMPLATE
from gpuhealth.installation.cluster import Cluster, pod_spec
from gpuhealth.installation.kinds import SERVICE_ACCOUNTS, SUBJECT_ACCESS_REVIEWS
from gpuhealth.installation.manifests import OWN, RIGHTS, Right
from gpuhealth.installation.problem import CannotCheckError, Problem, error, some_of
from gpuhealth.kube.errors import ForbiddenError

_AT_ONCE = 10  # requests
_FIX = "kubectl apply -k daemonset/ restores the roles; if they are your own, add these rights"


async def check(cluster: Cluster) -> list[Problem]:
    """Asks the API server whether it would allow each request of each service account."""
    namespace, problems = await cluster.namespace(), []
    at_once = asyncio.Semaphore(_AT_ONCE)
    for component, workload in (await cluster.workloads()).items():
        account = str(pod_spec(workload).get("serviceAccountName") or "default")
        if await cluster.get(SERVICE_ACCOUNTS, account, namespace) is None:
            text = f"the service account {account} of the {component} is missing in namespace {namespace}"
            problems.append(error(text, _FIX, [account]))
            continue

        async def allowed(right: Right, account: str = account) -> bool:
            async with at_once:
                return await _allowed(cluster, namespace, account, right)

        needed = sorted(RIGHTS[component])
        answers = await asyncio.gather(*(allowed(right) for right in needed))
        refused: dict[str, list[str]] = defaultdict(list)
        for right, answer in zip(needed, answers, strict=True):
            if not answer:
                refused[_where(right, namespace)].append(str(right))
        for where, names in refused.items():
            text = f"the {component} ({account}) has no right to {some_of(names)}{where}"
            problems.append(error(text, _FIX, names))
    return problems


def _where(right: Right, namespace: str) -> str:
    if not right.namespace:
        return ""
    return f" in namespace {namespace if right.namespace == OWN else right.namespace}"


async def _allowed(cluster: Cluster, namespace: str, account: str, right: Right) -> bool:
    resource, _, subresource = right.resource.partition("/")
    attributes = {
        "group": right.group,
        "resource": resource,
        "subresource": subresource,
        "verb": right.verb,
        "namespace": namespace if right.namespace == OWN else right.namespace,
    }
    if resource == "podtemplates":  # granted for this name alone
        attributes["name"] = BURNIN_TEMPLATE
    spec = {
        "user": f"system:serviceaccount:{namespace}:{account}",
        "groups": ["system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated"],
        "resourceAttributes": {key: value for key, value in attributes.items() if value},
    }
    kind = SUBJECT_ACCESS_REVIEWS
    body = {"apiVersion": kind.api_version, "kind": kind.kind, "spec": spec}
    try:
        answer = await cluster.client.request("POST", kind.path(), body=body)
    except ForbiddenError:
        raise CannotCheckError("not permitted to create subjectaccessreviews") from None
    return bool((answer.get("status") or {}).get("allowed"))
