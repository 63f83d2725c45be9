"""Can the settings be read, and do all agents use them?"""

from __future__ import annotations

from collections.abc import Mapping

from gpuhealth.installation.cluster import Cluster
from gpuhealth.installation.problem import CannotCheckError, Problem, error, info, some_of, warning
from gpuhealth.kube.client import Object
from gpuhealth.runtime.settings_file import digest


async def check(cluster: Cluster) -> list[Problem]:
    """The ConfigMap: valid, and read by every agent."""
    text = await cluster.settings_text()
    try:
        settings = await cluster.settings()
    except CannotCheckError as problem:
        return [error(str(problem), "correct the ConfigMap: agents keep their settings, and do not start with these")]
    found = judge(digest(text.encode()), await cluster.reports())
    if settings.mode == "observe":
        found.append(info("mode is observe: no node is taken out of service"))
    return found


def judge(current: str, reports: Mapping[str, Object]) -> list[Problem]:
    """Agents whose report names another settings file than the one with this digest."""
    others = sorted(name for name, status in reports.items() if status.get("settingsDigest") not in (None, "", current))
    if not others:
        return []
    text = f"{len(others)} of {len(reports)} agents do not use the settings of the ConfigMap yet: {some_of(others)}"
    fix = (
        "wait two minutes after a change; if it stays, look for `configuration rejected` or `restart needed` in their"
        " log, then kubectl rollout restart the DaemonSet"
    )
    return [warning(text, fix, others)]
