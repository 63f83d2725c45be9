"""Does everything exist that the pods name: images, PriorityClasses, the RuntimeClass?"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from gpuhealth.api.names import BURNIN_TEMPLATE
from gpuhealth.installation.cluster import Cluster, pod_spec
from gpuhealth.installation.kinds import PRIORITY_CLASSES, RUNTIME_CLASSES
from gpuhealth.installation.manifests import BURNIN, PLACEHOLDER_REGISTRY
from gpuhealth.installation.problem import Problem, error
from gpuhealth.kube.client import Object
from gpuhealth.kube.kinds import POD_TEMPLATES


async def check(cluster: Cluster) -> list[Problem]:
    """The pod specs of all workloads and of the burn-in's PodTemplate."""
    specs = {component: pod_spec(workload) for component, workload in (await cluster.workloads()).items()}
    template = await cluster.get(POD_TEMPLATES, BURNIN_TEMPLATE, await cluster.namespace())
    if template is not None:
        specs[BURNIN] = (template.get("template") or {}).get("spec") or {}
    priorities = {item["metadata"]["name"] for item in await cluster.objects(PRIORITY_CLASSES)}
    runtimes = {item["metadata"]["name"] for item in await cluster.objects(RUNTIME_CLASSES)}
    return [problem for name, spec in specs.items() for problem in judge(name, spec, priorities, runtimes)]


def judge(component: str, spec: Object, priorities: Collection[str], runtimes: Collection[str]) -> Iterator[Problem]:
    """What the pods of a component name and the cluster lacks."""
    priority, runtime = spec.get("priorityClassName"), spec.get("runtimeClassName")
    if priority and priority not in priorities:
        text = f"the {component} names the PriorityClass {priority}, which is missing: its pods are refused"
        yield error(text, "apply daemonset/ again, or create it", [priority])
    if runtime and runtime not in runtimes:
        text = f"the {component} names the RuntimeClass {runtime}, which is missing: its pods are refused"
        fix = "install the NVIDIA container toolkit or GPU operator, or remove runtimeClassName where it is the default"
        yield error(text, fix, [runtime])
    for container in spec.get("containers") or []:
        image = str(container.get("image") or "")
        if not image or image.startswith(PLACEHOLDER_REGISTRY):
            text = f"the {component} has no image of yours: {image or 'none'}"
            yield error(text, "set it in your kustomization (images:) or chart values", [image])
