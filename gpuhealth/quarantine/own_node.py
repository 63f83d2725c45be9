"""Our own Node: followed by a watch, and what is written on it by us and by others, as last seen."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from gpuhealth.api.names import Override
from gpuhealth.kube.client import Client, Object, object_of
from gpuhealth.kube.kinds import NODES
from gpuhealth.kube.watching import Broken, Changed, Listed, Resumed, Unreadable, watch
from gpuhealth.model.causes import Cause
from gpuhealth.quarantine.marks import (
    Record,
    causes,
    has_taint,
    labels,
    notes,
    override,
    record,
    release_requests,
    released,
    taints,
    whole,
)


class OwnNode:
    """The Node of this machine. One task follows it; any may look."""

    def __init__(self, client: Client, name: str) -> None:
        self.name = name
        self.asked = False  # whether the API server has been asked for it, with or without an answer
        self.following = False  # whether what is known of it is as new as a watch can tell
        self.changed = asyncio.Event()  # set by every change of it; for the agent to wait on and clear
        self.latest: Object | None = None
        self._client = client

    async def follow(self) -> None:
        """Follow it until cancelled; raises only what waiting does not mend, such as ForbiddenError."""
        try:
            chosen, noted = f"metadata.name={self.name}", self._client.unreadable.count
            follow = watch(self._client, NODES, fields=chosen, slim=_readable, noted=noted, paged=False)
            async with aclosing(follow) as events:
                async for event in events:
                    self.asked = True
                    match event:
                        case Listed(items, unreadable):
                            self.following = not unreadable
                            if not unreadable:
                                self._listed(items)
                        case Unreadable():  # what is known of it is old from now on: it is asked for instead
                            self.following = False
                        case Changed("DELETED", _):
                            self.latest = None
                        case Changed(_, item):
                            self.following = True
                            self.see(item)
                        case Broken() | Resumed():
                            self.following = isinstance(event, Resumed)
                    self.changed.set()
        finally:
            self.following = False

    async def current(self) -> Object:
        """The Node as it is; asked for where no watch tells. Raises ApiError."""
        return self.latest if self.following and self.latest is not None else await self.read()

    async def read(self) -> Object:
        """The Node as the API server knows it now. Raises ApiError."""
        node = await self._client.get(NODES, self.name)
        self.see(node)
        return node

    def see(self, node: Object) -> None:
        """Keep the newer one: the answer to our own write may overtake the watch, or the other way.

        Raises AnswerError for what cannot be read as a Node.
        """
        whole(node)
        known = self.latest
        if known is not None and known["metadata"]["uid"] == node["metadata"]["uid"]:
            versions = [known["metadata"]["resourceVersion"], node["metadata"]["resourceVersion"]]
            if all(version.isdigit() for version in versions) and int(versions[0]) > int(versions[1]):
                return
        self.latest = node

    @property
    def known(self) -> bool:
        """Whether our Node has been seen."""
        return self.latest is not None

    @property
    def labels(self) -> dict[str, str]:
        """Its labels, as last seen."""
        return labels(self.latest) if self.latest else {}

    @property
    def annotations(self) -> dict[str, str]:
        """Its annotations, as last seen."""
        return notes(self.latest) if self.latest else {}

    @property
    def taints(self) -> list[Object]:
        """Its taints, as last seen."""
        return taints(self.latest) if self.latest else []

    def carries(self, key: str) -> bool:
        """Whether it has, as last seen, a taint of that key."""
        return self.latest is not None and has_taint(self.latest, key)

    @property
    def override(self) -> Override | None:
        """What a person has said of our node."""
        return override(self.latest) if self.latest else None

    @property
    def released(self) -> tuple[str, ...]:
        """The codes whose quarantine a person has ended."""
        return released(self.latest) if self.latest else ()

    @property
    def record(self) -> Record | None:
        """What we have put on it, as last seen."""
        return record(self.latest) if self.latest else None

    @property
    def causes(self) -> tuple[Cause, ...]:
        """Why it is out of service by our hand, as its record says."""
        return causes(self.latest) if self.latest else ()

    @property
    def release_requests(self) -> tuple[str, ...] | None:
        """Who asks us on our Node to let go of the driver; None while the Node has not been seen."""
        return release_requests(self.latest) if self.latest else None

    def _listed(self, nodes: list[Object]) -> None:
        if nodes:
            self.see(nodes[0])  # a list out of a cache may be older than what we have written
        else:
            self.latest = None


def _readable(item: Object) -> Object:
    return whole(object_of(NODES, item))
