"""Is each of our conditions written by one program only?"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterable

from gpuhealth.api.names import AGENT, CONDITION, CONTROLLER
from gpuhealth.installation.cluster import Cluster
from gpuhealth.installation.kinds import DAEMON_SETS
from gpuhealth.installation.manifests import AGENT as AGENT_COMPONENT
from gpuhealth.installation.manifests import COMPONENT_LABEL, NAME, NAME_LABEL
from gpuhealth.installation.problem import CannotCheckError, Problem, error, some_of, warning
from gpuhealth.kube.client import Object

_OURS = (AGENT, CONTROLLER)


async def check(cluster: Cluster) -> list[Problem]:
    """The field managers of our conditions on every Node, and the number of agents' DaemonSets."""
    kinds = [CONDITION]
    with contextlib.suppress(CannotCheckError):  # then there are no mirrors that are known
        kinds += [mirror.type for mirror in (await cluster.settings()).conditions]
    problems = judge(await cluster.nodes(), kinds)
    try:
        agents = f"{NAME_LABEL}={NAME},{COMPONENT_LABEL}={AGENT_COMPONENT}"
        found = [item["metadata"] for item in await cluster.objects(DAEMON_SETS, labels=agents)]
    except CannotCheckError:
        return problems
    if len(found) > 1:
        names = sorted(f"{metadata['namespace']}/{metadata['name']}" for metadata in found)
        problems.append(
            error(f"gpuhealth is installed {len(found)} times: {some_of(names)}", "remove all but one", names)
        )
    return problems


def judge(nodes: Iterable[Object], kinds: Iterable[str]) -> list[Problem]:
    """Nodes on which other programs write conditions of these types, too; `writers` of each node are by type."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    wanted = tuple(kinds)
    for node in nodes:
        for kind in wanted:
            for manager in node["writers"].get(kind, ()):
                if manager not in _OURS:
                    found[kind, manager].append(node["metadata"]["name"])
    return [
        warning(f"{manager} writes the condition {kind} of {some_of(names)}, too", f"stop {manager} there", names)
        for (kind, manager), names in sorted(found.items())
    ]
