"""Which pods a drain moves away, and which of them go together. Pure."""

from __future__ import annotations

from collections.abc import Container, Iterable
from datetime import datetime

import msgspec

from gpuhealth.cluster.client import Object
from gpuhealth.cluster.kinds import DRAIN
from gpuhealth.cluster.node import parsed_time

MIRROR = "kubernetes.io/config.mirror"
GANGS = ("scheduling.x-k8s.io/pod-group", "pod-group.scheduling.sigs.k8s.io")
"""Labels by which schedulers know the pods that run all or not at all."""


class Pod(msgspec.Struct, frozen=True):
    """What a drain has to know of a pod."""

    namespace: str
    name: str
    uid: str
    gang: str = ""
    labels: dict[str, str] = {}
    pending: bool = False  # none of its containers has started
    ready: bool = True
    gone_by: datetime | None = None  # it has been told to stop: when its grace is over
    settled: bool = False  # of a DaemonSet, of the kubelet's own files, or over: nothing to be moved away
    refuses: bool = False  # it says that drains shall leave it alone

    @property
    def key(self) -> str:
        """What makes it this pod and not another of its name."""
        return self.uid

    @property
    def terminating(self) -> bool:
        """Whether it is on its way."""
        return self.gone_by is not None

    @property
    def group(self) -> tuple[str, str]:
        """What it has in common with the pods that go when it goes: its gang, or nothing."""
        return self.namespace, self.gang or f"/{self.uid}"  # no label's value has a slash


def slim(item: Object) -> Pod:
    """A pod as a drain sees it."""
    metadata = item["metadata"]
    labels, notes = metadata.get("labels") or {}, metadata.get("annotations") or {}
    owners = metadata.get("ownerReferences") or []
    of_daemon_set = any(owner["kind"] == "DaemonSet" and owner.get("controller") for owner in owners)
    status = item.get("status", {})
    phase = status.get("phase", "Pending")
    ready = any(each["type"] == "Ready" and each["status"] == "True" for each in status.get("conditions") or [])
    return Pod(
        metadata["namespace"],
        metadata["name"],
        metadata["uid"],
        next((labels[key] for key in GANGS if labels.get(key)), ""),
        labels,
        pending=phase == "Pending",
        ready=ready,
        gone_by=parsed_time(gone_by) if (gone_by := metadata.get("deletionTimestamp")) else None,
        settled=of_daemon_set or MIRROR in notes or phase in {"Succeeded", "Failed"},
        refuses="false" in {labels.get(DRAIN), notes.get(DRAIN)},
    )


def movable(pods: Iterable[Pod], kept_namespaces: Container[str]) -> list[Pod]:
    """The pods that should go, those included that are on their way."""
    return [pod for pod in pods if not (pod.settled or pod.refuses or pod.namespace in kept_namespaces)]


def gangs(pods: Iterable[Pod]) -> list[list[Pod]]:
    """The pods in the steps in which they go: the pods of one gang at once, any other by itself."""
    steps: dict[tuple[str, str], list[Pod]] = {}
    for pod in sorted(pods, key=lambda pod: (pod.namespace, pod.name)):
        steps.setdefault(pod.group, []).append(pod)
    return list(steps.values())
