"""Which pods a drain moves away, and which of them go together. Pure."""

from __future__ import annotations

from collections.abc import Container, Iterable
from datetime import datetime

import msgspec

from gpuhealth.api.names import DRAIN
from gpuhealth.kube.client import Object
from gpuhealth.kube.errors import UnreadableError
from gpuhealth.kube.objects import text_of, time_of

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
    readable: bool = True  # if not: as it was last read, if ever

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
    labels = msgspec.convert(metadata.get("labels") or {}, dict[str, str])
    notes = msgspec.convert(metadata.get("annotations") or {}, dict[str, str])
    owners = metadata.get("ownerReferences") or []
    of_daemon_set = any(owner["kind"] == "DaemonSet" and owner.get("controller") for owner in owners)
    status = item.get("status", {})
    phase = status.get("phase", "Pending")
    ready = any(each["type"] == "Ready" and each["status"] == "True" for each in status.get("conditions") or [])
    return Pod(
        text_of(metadata["namespace"]),
        text_of(metadata["name"]),
        text_of(metadata["uid"]),
        next((labels[key] for key in GANGS if labels.get(key)), ""),
        labels,
        pending=phase == "Pending",
        ready=ready,
        gone_by=time_of(gone_by) if (gone_by := metadata.get("deletionTimestamp")) else None,
        settled=of_daemon_set or MIRROR in notes or phase in {"Succeeded", "Failed"},
        refuses="false" in {labels.get(DRAIN), notes.get(DRAIN)},
    )


def unreadable_pod(last: Pod | None, error: UnreadableError) -> Pod:
    """A pod that cannot be read is still there, so its node is not drained; it may be one that is to be left alone, so
    it is not sent away. That a DaemonSet's pod is one does not change."""
    return msgspec.structs.replace(last or Pod(error.namespace, error.name, error.uid), readable=False)


def movable(pods: Iterable[Pod], kept_namespaces: Container[str]) -> list[Pod]:
    """The pods that should go, those included that are on their way."""
    return [pod for pod in pods if pod.readable and not _stays(pod, kept_namespaces)]


def unknown(pods: Iterable[Pod], kept_namespaces: Container[str]) -> list[Pod]:
    """The pods of which nobody knows whether they should go, since they cannot be read."""
    return [pod for pod in pods if not pod.readable and not _stays(pod, kept_namespaces)]


def _stays(pod: Pod, kept_namespaces: Container[str]) -> bool:
    return pod.settled or pod.refuses or pod.namespace in kept_namespaces


def gangs(pods: Iterable[Pod]) -> list[list[Pod]]:
    """The pods in the steps in which they go: the pods of one gang at once, any other by itself."""
    steps: dict[tuple[str, str], list[Pod]] = {}
    for pod in sorted(pods, key=lambda pod: (pod.namespace, pod.name)):
        steps.setdefault(pod.group, []).append(pod)
    return list(steps.values())
