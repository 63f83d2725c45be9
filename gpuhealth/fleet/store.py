"""Objects of one kind in memory, kept current by a watch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from typing import Generic, Protocol, TypeVar

from gpuhealth.kube.errors import UnreadableError
from gpuhealth.kube.watching import WatchChanged, WatchEvent, WatchListed, WatchUnreadable

_BATCH = 500  # objects of a list that are stored before other tasks get a turn


class HasKey(Protocol):
    """A view of an object that has its own key."""

    @property
    def key(self) -> str:
        """The name or the uid of the object."""


_T = TypeVar("_T", bound=HasKey)


class ObjectStore(Generic[_T]):
    """Views of the objects of one kind, by name or by uid."""

    def __init__(
        self,
        changed: Callable[[_T | None, _T | None], None] = lambda _old, _new: None,
        *,
        unreadable: Callable[[_T | None, UnreadableError], _T | None] = lambda last, _error: last,
        by_uid: bool = False,
    ) -> None:
        """`changed` is called with the old and the new view after every change of an object. `unreadable` returns the
        view of an object that cannot be read, given its last readable one; by default that one is kept."""
        self.items: dict[str, _T] = {}
        self.unreadable: set[str] = set()  # keys of objects that exist and cannot be read
        self.listed = False  # whether every existing object has been stored once
        self._changed = changed
        self._unreadable = unreadable
        self._by_uid = by_uid

    async def follow(self, events: AsyncIterator[WatchEvent], notify: Callable[[], None]) -> None:
        """Apply the events of a watch until they end; call `notify` after each one that changed something."""
        async for event in events:
            match event:
                case WatchListed(items, errors):
                    await self._replace(items, errors)
                case WatchUnreadable("DELETED", error):
                    self._put(self._key(error), None)
                case WatchUnreadable(_, error):
                    self._keep(error)
                case WatchChanged("DELETED", item):
                    self._put(item.key, None)
                case WatchChanged(_, item):
                    self._put(item.key, item)
                case _:
                    continue  # the store may be out of date now; the API server checks every write based on it
            notify()

    async def _replace(self, items: list[_T], errors: Collection[UnreadableError]) -> None:
        """Replace the whole content by what a list returned."""
        existing = {item.key for item in items} | {self._key(error) for error in errors}
        for key in (self.items.keys() | self.unreadable) - existing:
            self._put(key, None)
        for error in errors:
            self._keep(error)
        for number, item in enumerate(items, 1):
            self._put(item.key, item)
            if number % _BATCH == 0:
                await asyncio.sleep(0)
        self.listed = True

    def _key(self, error: UnreadableError) -> str:
        return error.uid if self._by_uid else error.name

    def _keep(self, error: UnreadableError) -> None:
        if key := self._key(error):  # without a key it cannot be distinguished from others
            self._put(key, self._unreadable(self.items.get(key), error))
            self.unreadable.add(key)

    def _put(self, key: str, new: _T | None) -> None:
        self.unreadable.discard(key)
        old = self.items.pop(key, None)
        if new is not None:
            self.items[key] = new
        self._changed(old, new)
