"""Gangs: pods that run all or not at all, and so are evicted all or not at all.

A training job that has lost some of its pods is dead, and those that are left still hold their GPUs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from gpuhealth.controller.pods import Pod, evictable
from gpuhealth.fleet.fleet import Fleet
from gpuhealth.fleet.store import ObjectStore
from gpuhealth.kube.client import Client
from gpuhealth.kube.pdb import PodDisruptionBudgets, blocking_reason


class Gangs:
    """The gangs on all nodes that are being drained; members on other nodes are not evicted."""

    def __init__(self, client: Client, fleet: Fleet) -> None:
        self._guards = PodDisruptionBudgets(client, fleet.count_unreadable)
        self._fleet = fleet
        self._nodes: dict[str, ObjectStore[Pod]] = {}
        self._split: set[tuple[str, str]] = set()

    @contextlib.contextmanager
    def of_node(self, node: str, pods: ObjectStore[Pod]) -> Iterator[None]:
        """Include the pods of a node for as long as it is drained."""
        self._nodes[node] = pods
        try:
            yield
        finally:
            del self._nodes[node]

    async def blocking_reason(self, pod: Pod) -> str:
        """Why no pod of this one's gang should be evicted now; empty where all may be evicted.

        Empty also where some have gone already: then the rest is no longer worth protecting. Raises ApiError.
        """
        members = self._members(pod)
        if len(members) < 2 or self.is_split(pod):
            return ""
        if not (reason := blocking_reason(await self._guards.of(pod.namespace), members)):
            return ""
        return f"the {len(members)} pods of gang {pod.gang} are evicted together or not at all, and {reason}"

    def mark_split(self, pod: Pod) -> None:
        """Record that this pod is or will be gone, so that its gang is no longer complete."""
        if pod.gang:
            self._split.add(pod.group)

    def is_split(self, pod: Pod) -> bool:
        """Whether pods of this one's gang have gone or are terminating."""
        self._split &= {other.group for pods in self._nodes.values() for other in pods.items.values()}
        return pod.group in self._split or any(member.terminating for member in self._members(pod))

    def _members(self, pod: Pod) -> list[Pod]:
        """Return the evictable pods of the pod's gang on all drained nodes."""
        if not pod.gang:
            return [pod]
        members = (other for pods in self._nodes.values() for other in pods.items.values() if other.group == pod.group)
        return evictable(members, self._fleet.drain_exempt_namespaces.items)
