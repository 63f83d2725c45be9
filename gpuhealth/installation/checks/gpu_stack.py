"""Can the DaemonSets of the GPU stack run on nodes that have our taints? Otherwise they could not repair them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from gpuhealth.api.names import PENDING, TAINT
from gpuhealth.installation.cluster import Cluster, pod_spec
from gpuhealth.installation.kinds import DAEMON_SETS
from gpuhealth.installation.manifests import PREFLIGHT
from gpuhealth.installation.pod_state import tolerates
from gpuhealth.installation.problem import Problem, warning
from gpuhealth.kube.client import Object


class _Part(NamedTuple):
    """A part of the GPU stack, by the last part of its images' names, and where its tolerations are set."""

    what: str
    images: tuple[str, ...]
    place: str


_OPERATOR = "Helm value daemonsets.tolerations of the GPU operator"
_NETWORK = "spec.tolerations of the NicClusterPolicy"
_PARTS = (
    _Part("the driver", ("driver", "driver-ubuntu", "k8s-driver-manager", "vgpu-manager"), _OPERATOR),
    _Part("the container toolkit", ("container-toolkit",), _OPERATOR),
    _Part("the validator", ("gpu-operator-validator",), _OPERATOR),
    _Part("the MIG manager", ("k8s-mig-manager",), _OPERATOR),
    _Part("the device plugin", ("k8s-device-plugin", "nvidia-gpu-device-plugin"), "its Helm value tolerations"),
    _Part("GPU feature discovery", ("gpu-feature-discovery",), "its Helm value tolerations"),
    _Part(
        "the DRA driver",
        ("k8s-dra-driver-gpu", "k8s-dra-driver", "dra-driver-gpu"),
        "its Helm value kubeletPlugin.tolerations",
    ),
    _Part("the network driver", ("doca-driver", "mofed"), _NETWORK),
    _Part("the RDMA device plugin", ("k8s-rdma-shared-dev-plugin", "sriov-network-device-plugin"), _NETWORK),
    _Part("the worker of node feature discovery", ("node-feature-discovery",), "its Helm value worker.tolerations"),
)
_NFD = "node-feature-discovery"


async def check(cluster: Cluster) -> list[Problem]:
    """All DaemonSets of the cluster that belong to the GPU stack, against the taints that the settings lead to."""
    settings, wanted = await cluster.settings(), []
    if settings.mode == "taint":
        wanted.append({"key": TAINT, "value": "any", "effect": "NoSchedule"})
    if await cluster.workload(PREFLIGHT) is not None:
        wanted.append({"key": settings.preflight.taint, "value": PENDING, "effect": "NoSchedule"})
    return judge(await cluster.objects(DAEMON_SETS), wanted)


def judge(daemon_sets: Iterable[Object], taints: Iterable[Object]) -> list[Problem]:
    """The DaemonSets of the GPU stack that do not tolerate these taints, with the tolerations that they lack."""
    problems, wanted = [], list(taints)
    for daemon_set in daemon_sets:
        part = part_of(daemon_set)
        if part is None:
            continue
        tolerations = pod_spec(daemon_set).get("tolerations")
        missing = [taint["key"] for taint in wanted if not tolerates(tolerations, taint)]
        if not missing:
            continue
        metadata = daemon_set["metadata"]
        name = f"{metadata['namespace']}/{metadata['name']}"
        lacking = " and ".join(missing)
        text = f"{part.what} ({name}) does not tolerate {lacking}: it cannot start on such a node to repair it"
        snippet = ", ".join(f"{{key: {key}, operator: Exists, effect: NoSchedule}}" for key in missing)
        problems.append(warning(text, f"add to {part.place}: {snippet}", [name]))
    return problems


def part_of(daemon_set: Object) -> _Part | None:
    """The part of the GPU stack that a DaemonSet runs, by the names of its images, in whichever registry they are."""
    # Not those of init containers: many programs wait for the driver with the image of the operator's validator.
    for container in pod_spec(daemon_set).get("containers") or []:
        path = str(container.get("image") or "").partition("@")[0]
        image = path.rpartition("/")[2].partition(":")[0]
        for part in _PARTS:
            if image not in part.images or (
                image == "driver" and "nvidia" not in path + daemon_set["metadata"]["name"]
            ):
                continue
            if image == _NFD and "worker" not in daemon_set["metadata"]["name"]:
                continue  # its other pods do not run on every node
            return part
    return None
