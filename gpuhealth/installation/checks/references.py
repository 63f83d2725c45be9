"""Does everything exist that the pods name: images, PriorityClasses, the RuntimeClass?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping

from gpuhealth.api.names import BURNIN_TEMPLATE
from gpuhealth.installation.cluster import Cluster, pod_spec
from gpuhealth.installation.kinds import PRIORITY_CLASSES, RUNTIME_CLASSES
from gpuhealth.installation.manifests import BURNIN, PLACEHOLDER_REGISTRY
from gpuhealth.installation.problem import Problem, error
from gpuhealth.kube.client import Object
from gpuhealth.kube.kinds import POD_TEMPLATES

_FIXES = {
    "PriorityClass": "apply daemonset/ again, or create it",
    "RuntimeClass": "install the NVIDIA container toolkit or GPU operator, or remove runtimeClassName from the pods",
    "image": "set it in your kustomization (images:) or chart values",
}


async def check(cluster: Cluster) -> list[Problem]:
    """The pod specs of all workloads and of the burn-in's PodTemplate."""
    specs = {component: pod_spec(workload) for component, workload in (await cluster.workloads()).items()}
    template = await cluster.get(POD_TEMPLATES, BURNIN_TEMPLATE, await cluster.namespace())
    if template is not None:
        specs[BURNIN] = (template.get("template") or {}).get("spec") or {}
    priorities = {item["metadata"]["name"] for item in await cluster.objects(PRIORITY_CLASSES)}
    runtimes = {item["metadata"]["name"] for item in await cluster.objects(RUNTIME_CLASSES)}
    return list(judge(specs, priorities, runtimes))


def judge(specs: Mapping[str, Object], priorities: Collection[str], runtimes: Collection[str]) -> Iterator[Problem]:
    """What the pods of each component (`specs`) name and the cluster lacks."""
    absent: dict[tuple[str, str], list[str]] = defaultdict(list)  # components by kind and name
    for component, spec in specs.items():
        for kind, name, known in (
            ("PriorityClass", spec.get("priorityClassName"), priorities),
            ("RuntimeClass", spec.get("runtimeClassName"), runtimes),
        ):
            if name and name not in known:
                absent[kind, name].append(component)
        for container in spec.get("containers") or []:
            image = str(container.get("image") or "")
            if not image or image.startswith(PLACEHOLDER_REGISTRY):
                absent["image", image].append(component)
    for (kind, name), components in absent.items():
        whose = f"the pods of {', '.join(components)}"
        if kind == "image":
            yield error(f"{whose} have no image of yours: {name or 'none'}", _FIXES[kind], [name])
        else:
            yield error(f"{whose} name the {kind} {name}, which is missing: they are refused", _FIXES[kind], [name])
