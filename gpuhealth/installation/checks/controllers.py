"""Is there a controller, and does one lead?"""

from __future__ import annotations

from datetime import datetime, timedelta

from gpuhealth.installation.cluster import Cluster
from gpuhealth.installation.manifests import CONTROLLER, INSTALL
from gpuhealth.installation.problem import Problem, error, warning
from gpuhealth.kube.client import Object
from gpuhealth.kube.kinds import LEASES
from gpuhealth.kube.objects import parse_time

_WITHOUT = "nodes are quarantined, and not drained, tested or counted"


async def check(cluster: Cluster) -> list[Problem]:
    """The controller's Deployment and the Lease of its leader."""
    deployment, settings = await cluster.workload(CONTROLLER), await cluster.settings()
    if deployment is None or deployment["spec"].get("replicas") == 0:
        return [warning(f"there is no controller: {_WITHOUT}", INSTALL)]
    election = settings.controller.election
    if not election.enabled:
        return []
    lease = await cluster.get(LEASES, election.lease, await cluster.namespace())
    return judge(lease, cluster.now())


def judge(lease: Object | None, now: datetime) -> list[Problem]:
    """Whether the Lease shows a leader."""
    spec = (lease or {}).get("spec") or {}
    fix = "kubectl logs deployment/gpuhealth-controller shows why"
    if not spec.get("holderIdentity"):
        return [error(f"no controller leads: {_WITHOUT}", fix)]
    try:
        renewed = parse_time(spec.get("renewTime"))
        overdue = now - renewed - timedelta(seconds=spec.get("leaseDurationSeconds") or 0)
    except (ValueError, OverflowError, TypeError):
        return [error(f"the controller's Lease has no valid renewTime: {str(spec.get('renewTime'))[:60]}", fix)]
    if overdue <= timedelta(0):
        return []
    text = f"no controller leads since {renewed:%Y-%m-%dT%H:%M:%SZ} ({spec['holderIdentity']} was the last): {_WITHOUT}"
    return [error(text, fix)]
