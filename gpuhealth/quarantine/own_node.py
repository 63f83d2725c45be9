"""Our own Node as last seen: followed by a watch, and updated by the responses to our own writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import aclosing

from gpuhealth.api.names import PEOPLE, Override
from gpuhealth.kube.client import Client, Object, object_of
from gpuhealth.kube.kinds import NODES
from gpuhealth.kube.watching import WatchChanged, WatchInterrupted, WatchListed, WatchResumed, WatchUnreadable, watch
from gpuhealth.model.causes import Cause
from gpuhealth.quarantine import marks
from gpuhealth.quarantine.driver_work import release_requests
from gpuhealth.quarantine.marks import QuarantineRecord


class OwnNode:
    """The Node of this machine. One task follows it; any may read it."""

    def __init__(
        self,
        client: Client,
        name: str,
        on_change: Callable[[], None] = lambda: None,
        *,
        people: Sequence[str] = PEOPLE,
        release_labels: Sequence[str] = (),
    ) -> None:
        """`on_change` is called after every event of the watch. `people`: patterns of their field managers;
        `release_labels`: patterns of further labels, as KEY=VALUE, that request a release of the driver."""
        self.name = name
        self.people = people
        self._release_labels = release_labels
        self.asked = False  # whether the API server has been queried, with or without success
        self.following = False  # whether `latest` is as new as a watch can make it
        self.latest: Object | None = None
        self._client = client
        self._on_change = on_change

    async def follow(self) -> None:
        """Watch it until cancelled. Raises errors that retries do not mend, such as ForbiddenError."""
        try:
            fields, count = f"metadata.name={self.name}", self._client.unreadable.count
            follow = watch(self._client, NODES, fields=fields, parse=_readable, on_unreadable=count, paged=False)
            async with aclosing(follow) as events:
                async for event in events:
                    self.asked = True
                    match event:
                        case WatchListed(items, unreadable):
                            self.following = not unreadable
                            if not unreadable:
                                self._listed(items)
                        case WatchUnreadable():  # `latest` is out of date from now on: `current` reads the Node instead
                            self.following = False
                        case WatchChanged("DELETED", _):
                            self.latest = None
                        case WatchChanged(_, item):
                            self.following = True
                            self.see(item)
                        case WatchInterrupted() | WatchResumed():
                            self.following = isinstance(event, WatchResumed)
                    self._on_change()
        finally:
            self.following = False

    async def current(self) -> Object:
        """The Node as it is, read where no watch follows it. Raises ApiError."""
        return self.latest if self.following and self.latest is not None else await self.read()

    async def read(self) -> Object:
        """The Node as the API server has it now. Raises ApiError."""
        node = await self._client.get(NODES, self.name)
        self.see(node)
        return node

    def see(self, node: Object) -> None:
        """Keep the newer version: the response to our own write may overtake the watch, or the other way round.

        Raises AnswerError if it is no readable Node.
        """
        marks.check_readable(node)
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
        return marks.labels(self.latest) if self.latest else {}

    @property
    def annotations(self) -> dict[str, str]:
        """Its annotations, as last seen."""
        return marks.annotations_of(self.latest) if self.latest else {}

    @property
    def taints(self) -> list[Object]:
        """Its taints, as last seen."""
        return marks.taints(self.latest) if self.latest else []

    def has_taint(self, key: str) -> bool:
        """Whether it has, as last seen, a taint of that key."""
        return self.latest is not None and marks.has_taint(self.latest, key)

    @property
    def override(self) -> Override | None:
        """The override annotated by a person."""
        return marks.override(self.latest) if self.latest else None

    @property
    def dismissed(self) -> tuple[str, ...]:
        """The codes whose quarantine a person has ended."""
        return marks.dismissed_codes(self.latest) if self.latest else ()

    @property
    def record(self) -> QuarantineRecord | None:
        """The record of our changes to it, as last seen."""
        return marks.record(self.latest) if self.latest else None

    @property
    def causes(self) -> tuple[Cause, ...]:
        """The findings for which it is out of service, by its record."""
        return marks.causes(self.latest, self.people) if self.latest else ()

    @property
    def release_requests(self) -> tuple[str, ...] | None:
        """The reasons for which the driver should be released; None while the Node has not been seen."""
        return release_requests(self.latest, self._release_labels) if self.latest else None

    def _listed(self, nodes: list[Object]) -> None:
        if nodes:
            self.see(nodes[0])  # a list from a cache may be older than our last write
        else:
            self.latest = None


def _readable(item: Object) -> Object:
    return marks.check_readable(object_of(NODES, item))
