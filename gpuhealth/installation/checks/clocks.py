"""Do the clocks of the nodes and of this machine agree with the API server's?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from gpuhealth.api.names import CONDITION
from gpuhealth.installation.cluster import Cluster
from gpuhealth.installation.problem import Problem, some_of, warning
from gpuhealth.kube.client import Object
from gpuhealth.kube.kinds import LEASES
from gpuhealth.kube.objects import parse_time
from gpuhealth.quarantine.marks import condition, is_ready

_NODE_LEASES = "kube-node-lease"
_AHEAD = 10.0  # seconds; times in answers are whole seconds, and a list takes a while
_BEHIND = 60.0  # seconds; a kubelet renews its Lease every 10 s, and is not ready 40 s after the last time
_LOCAL = 10.0
_FIX = "synchronise it (chrony, systemd-timesyncd): budgets compare times"


async def check(cluster: Cluster) -> list[Problem]:
    """The Leases that kubelets renew by their own clocks, the agents' heartbeats, and this machine."""
    nodes = await cluster.gpu_nodes()
    leases = {item["metadata"]["name"]: item for item in await cluster.objects(LEASES, _NODE_LEASES)}
    now = cluster.now()
    return [*judge(nodes, leases, now), *judge_local(datetime.now(UTC), now)]


def judge_local(local: datetime, server: datetime) -> list[Problem]:
    """Whether this machine's clock agrees with the server's."""
    seconds = (local - server).total_seconds()
    if abs(seconds) <= _LOCAL:
        return []
    return [warning(f"the clock of this machine is {_off(seconds)} that of the API server", "synchronise it")]


def judge(nodes: Iterable[Object], leases: Mapping[str, Object], now: datetime) -> list[Problem]:
    """Nodes whose clock differs from the API server's, as far as what they write shows."""
    found = {}
    for node in nodes:
        name = node["metadata"]["name"]
        seconds = [_ahead((leases.get(name, {}).get("spec") or {}).get("renewTime"), now)]
        seconds.append(_ahead((condition(node, CONDITION) or {}).get("lastHeartbeatTime"), now))
        ahead = max((each for each in seconds if each is not None), default=0.0)
        if ahead > _AHEAD:
            found[name] = ahead
        elif is_ready(node) and seconds[0] is not None and seconds[0] < -_BEHIND:
            found[name] = seconds[0]
    if not found:
        return []
    worst = max(found, key=lambda name: abs(found[name]))
    text = f"the clock of {some_of(sorted(found))} differs: that of {worst} is {_off(found[worst])} the API server's"
    return [warning(text, _FIX, sorted(found))]


def _ahead(time: object, now: datetime) -> float | None:
    """Seconds by which a time is after now; None where there is none that can be read."""
    try:
        return (parse_time(time) - now).total_seconds()
    except (ValueError, OverflowError):
        return None


def _off(seconds: float) -> str:
    return f"{abs(seconds):.0f} s {'ahead of' if seconds > 0 else 'behind'}"
