"""Gangs: pods that run all or not at all, so that they are to be evicted all or not at all.

A training job that has lost some of its pods is dead, and what is left of it still holds its GPUs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from gpuhealth.controller.pods import Pod, movable
from gpuhealth.fleet.fleet import Fleet
from gpuhealth.fleet.store import Table
from gpuhealth.kube.client import Client
from gpuhealth.kube.pdb import Guards, obstacle


class Gangs:
    """The gangs on all nodes that are being drained; their pods elsewhere stay where they are."""

    def __init__(self, client: Client, fleet: Fleet) -> None:
        self._guards = Guards(client, fleet.note_unreadable)
        self._fleet = fleet
        self._nodes: dict[str, Table[Pod]] = {}
        self._split: set[tuple[str, str]] = set()

    @contextlib.contextmanager
    def of_node(self, node: str, pods: Table[Pod]) -> Iterator[None]:
        """Counts a node's pods in, while it is drained."""
        self._nodes[node] = pods
        try:
            yield
        finally:
            del self._nodes[node]

    async def obstacle(self, pod: Pod) -> str:
        """Why no pod of this one's gang should be evicted now, for people; empty where all of them may go, and where
        some have gone: then nothing is left to be spared."""
        members = self._members(pod)
        if len(members) < 2 or self.is_split(pod):
            return ""
        if not (reason := obstacle(await self._guards.of(pod.namespace), members)):
            return ""
        return f"the {len(members)} pods of gang {pod.gang} go together or not at all, and {reason}"

    def split(self, pod: Pod) -> None:
        """This pod is gone, or will be: its gang is no longer whole."""
        if pod.gang:
            self._split.add(pod.group)

    def is_split(self, pod: Pod) -> bool:
        """Whether pods of this one's gang have gone, or are on their way."""
        self._split &= {each.group for pods in self._nodes.values() for each in pods.items.values()}
        return pod.group in self._split or any(each.terminating for each in self._members(pod))

    def _members(self, pod: Pod) -> list[Pod]:
        if not pod.gang:
            return [pod]
        here = (each for pods in self._nodes.values() for each in pods.items.values() if each.group == pod.group)
        return movable(here, self._fleet.kept_namespaces.items)
