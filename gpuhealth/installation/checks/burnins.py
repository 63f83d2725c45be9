"""Is there what preflights and periodic burn-ins need?"""

from __future__ import annotations

from gpuhealth.api.names import BURNIN_TEMPLATE
from gpuhealth.installation.cluster import Cluster, pod_spec
from gpuhealth.installation.manifests import INSTALL, PREFLIGHT
from gpuhealth.installation.pod_state import tolerates
from gpuhealth.installation.problem import Problem, error, some_of
from gpuhealth.kube.kinds import POD_TEMPLATES
from gpuhealth.quarantine.marks import has_taint


async def check(cluster: Cluster) -> list[Problem]:
    """The PodTemplate of burn-ins, and the preflight's DaemonSet where nodes wait for it."""
    settings, problems = await cluster.settings(), []
    template = await cluster.get(POD_TEMPLATES, BURNIN_TEMPLATE, await cluster.namespace())
    if template is None and (settings.controller.periodic.enabled or settings.quarantine.test_before_return):
        text = f"the PodTemplate {BURNIN_TEMPLATE} is missing: no burn-in runs, although the settings require some"
        problems.append(error(text, INSTALL))
    taint = settings.preflight.taint
    waiting = [node["metadata"]["name"] for node in await cluster.gpu_nodes() if has_taint(node, taint)]
    preflight = await cluster.workload(PREFLIGHT)
    if preflight is None and waiting:
        text = f"{some_of(waiting)} wait for a preflight ({taint}), and there is no DaemonSet that runs one"
        problems.append(error(text, f"{INSTALL}, or remove the taint", waiting))
    pending = {"key": taint, "value": "pending", "effect": "NoSchedule"}
    if preflight is not None and not tolerates(pod_spec(preflight).get("tolerations"), pending):
        text = f"the preflight's DaemonSet does not tolerate the taint {taint} of the settings (preflight.taint)"
        problems.append(error(text, "change its tolerations in daemonset/preflight.yaml"))
    return problems
