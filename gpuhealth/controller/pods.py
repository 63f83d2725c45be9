"""Decides which pods a drain evicts, and which of them together. Pure functions."""

from __future__ import annotations

from collections.abc import Container, Iterable
from datetime import datetime

import msgspec

from gpuhealth.api.names import DRAIN
from gpuhealth.kube.client import Object
from gpuhealth.kube.errors import UnreadableError
from gpuhealth.kube.objects import parse_time, text_of

MIRROR = "kubernetes.io/config.mirror"
SYSTEM_NAMESPACE = "kube-system"
SYSTEM_PRIORITIES = ("system-cluster-critical", "system-node-critical")
"""Namespace and priority classes of the pods that keep the cluster working, such as DNS and this controller.

A drain leaves them where they are, unless they use GPUs. They suffer from no fault of a GPU, all nodes rely on them,
and in a small cluster there may be no other node for them. Kubernetes itself moves them from a node that is not ready,
and `kubectl drain` from one that will be switched off.
"""
GPU_PREFIX = "nvidia.com/"
GANG_LABELS = ("scheduling.x-k8s.io/pod-group", "pod-group.scheduling.sigs.k8s.io")
"""Labels by which gang schedulers identify pods that run together or not at all."""


class Pod(msgspec.Struct, frozen=True, kw_only=True):
    """A pod with the properties that a drain needs."""

    namespace: str
    name: str
    uid: str
    gang: str = ""
    labels: dict[str, str] = {}
    pending: bool = False  # none of its containers has started
    ready: bool = True
    terminates_by: datetime | None = None  # end of its grace period, once its deletion was requested
    unaffected: bool = False  # of a DaemonSet or the system, a mirror pod, or finished: a drain has nothing to do
    exempt: bool = False  # by its own label or annotation, or by its owner
    readable: bool = True  # if not, the other fields are those last read, if any

    @property
    def key(self) -> str:
        """The uid, which another pod of the same name does not have."""
        return self.uid

    @property
    def terminating(self) -> bool:
        """Whether its deletion was requested."""
        return self.terminates_by is not None

    @property
    def group(self) -> tuple[str, str]:
        """The key shared with pods that are evicted together: its gang, or none."""
        return self.namespace, self.gang or f"/{self.uid}"  # no label value has a slash


def pod_view(item: Object, exempt_owners: Container[str] = ()) -> Pod:
    """Make the view of a pod. `exempt_owners` are kinds such as NodeSet.slinky.slurm.net, without the version."""
    metadata = item["metadata"]
    labels = msgspec.convert(metadata.get("labels") or {}, dict[str, str])
    annotations = msgspec.convert(metadata.get("annotations") or {}, dict[str, str])
    owners = metadata.get("ownerReferences") or []
    of_daemon_set = any(owner["kind"] == "DaemonSet" and owner.get("controller") for owner in owners)
    of_exempt_owner = any(_kind(owner) in exempt_owners for owner in owners if owner.get("controller"))
    status = item.get("status", {})
    phase = status.get("phase", "Pending")
    conditions = status.get("conditions") or []
    return Pod(
        namespace=text_of(metadata["namespace"]),
        name=text_of(metadata["name"]),
        uid=text_of(metadata["uid"]),
        gang=next((labels[key] for key in GANG_LABELS if labels.get(key)), ""),
        labels=labels,
        pending=phase == "Pending",
        ready=any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions),
        terminates_by=parse_time(deletion) if (deletion := metadata.get("deletionTimestamp")) else None,
        unaffected=of_daemon_set or MIRROR in annotations or phase in {"Succeeded", "Failed"} or _is_of_system(item),
        exempt=of_exempt_owner or "false" in {labels.get(DRAIN), annotations.get(DRAIN)},
    )


def _kind(owner: Object) -> str:
    """Kind and group of an owner: `NodeSet.slinky.slurm.net`, or `ReplicationController` of the core group."""
    group, slash, _ = text_of(owner.get("apiVersion") or "").partition("/")
    return f"{text_of(owner['kind'])}.{group}" if slash else text_of(owner["kind"])


def _is_of_system(item: Object) -> bool:
    spec = item.get("spec", {})
    is_system = item["metadata"]["namespace"] == SYSTEM_NAMESPACE or spec.get("priorityClassName") in SYSTEM_PRIORITIES
    return is_system and not _uses_gpus(spec)


def _uses_gpus(spec: Object) -> bool:
    """Whether a pod requests GPUs, or any device by a claim."""
    limits = [(container.get("resources") or {}).get("limits") or {} for container in spec.get("containers") or []]
    return bool(spec.get("resourceClaims")) or any(name.startswith(GPU_PREFIX) for limit in limits for name in limit)


def unreadable_pod(last: Pod | None, error: UnreadableError) -> Pod:
    """Make the view of a pod that cannot be read.

    It still exists, so its node is not drained; it may be exempt, so it is not evicted. Whether it belongs to a
    DaemonSet cannot have changed.
    """
    known = last or Pod(namespace=error.namespace, name=error.name, uid=error.uid)
    return msgspec.structs.replace(known, readable=False)


def evictable(pods: Iterable[Pod], exempt_namespaces: Container[str]) -> list[Pod]:
    """Return the pods that a drain evicts, including those that are terminating."""
    return [pod for pod in pods if pod.readable and not _stays(pod, exempt_namespaces)]


def undecided(pods: Iterable[Pod], exempt_namespaces: Container[str]) -> list[Pod]:
    """Return the pods that cannot be read, so that it is not known whether a drain should evict them."""
    return [pod for pod in pods if not pod.readable and not _stays(pod, exempt_namespaces)]


def _stays(pod: Pod, exempt_namespaces: Container[str]) -> bool:
    return pod.unaffected or pod.exempt or pod.namespace in exempt_namespaces


def by_gang(pods: Iterable[Pod]) -> list[list[Pod]]:
    """Group the pods as they are evicted: those of one gang together, any other alone."""
    groups: dict[tuple[str, str], list[Pod]] = {}
    for pod in sorted(pods, key=lambda pod: (pod.namespace, pod.name)):
        groups.setdefault(pod.group, []).append(pod)
    return list(groups.values())
