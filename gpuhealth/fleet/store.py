"""Objects of one kind as a watch tells of them, few fields of each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from typing import Generic, Protocol, TypeVar

from gpuhealth.kube.errors import UnreadableError
from gpuhealth.kube.watching import Changed, Event, Listed, Unreadable

_AT_ONCE = 500  # objects of a list that are taken before others get a turn


class Keyed(Protocol):
    """Something with a key of its own."""

    @property
    def key(self) -> str:
        """What it is known by."""


_T = TypeVar("_T", bound=Keyed)


class Table(Generic[_T]):
    """The objects by their keys: their names, or their uids."""

    def __init__(
        self,
        changed: Callable[[_T | None, _T | None], None] = lambda _old, _new: None,
        *,
        unreadable: Callable[[_T | None, UnreadableError], _T | None] = lambda last, _error: last,
        by_uid: bool = False,
    ) -> None:
        """`changed` is told what was there before and what is there now. `unreadable` says what is known of an object
        that cannot be read, given its last readable version, if there was one; without it that version is kept."""
        self.items: dict[str, _T] = {}
        self.unreadable: set[str] = set()  # keys of objects that exist and cannot be read
        self._unreadable = unreadable
        self._by_uid = by_uid
        self.listed = False  # whether everything there is has been seen once
        self._changed = changed

    async def follow(self, events: AsyncIterator[Event], heard: Callable[[], None]) -> None:
        """Takes everything that the watch tells; `heard` is called after each change."""
        async for event in events:
            match event:
                case Listed(items, errors):
                    await self._replace(items, errors)
                case Unreadable("DELETED", error):
                    self._put(self._key(error), None)
                case Unreadable(_, error):
                    self._keep(error)
                case Changed("DELETED", item):
                    self._put(item.key, None)
                case Changed(_, item):
                    self._put(item.key, item)
                case _:
                    continue  # what is known may be old now; every act on it is checked by the API server
            heard()

    async def _replace(self, items: list[_T], errors: Collection[UnreadableError]) -> None:
        there = {item.key for item in items} | {self._key(error) for error in errors}
        for key in (self.items.keys() | self.unreadable) - there:
            self._put(key, None)
        for error in errors:
            self._keep(error)
        for number, item in enumerate(items, 1):
            self._put(item.key, item)
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)
        self.listed = True

    def _key(self, error: UnreadableError) -> str:
        return error.uid if self._by_uid else error.name

    def _keep(self, error: UnreadableError) -> None:
        if key := self._key(error):  # an object without one cannot be told from others
            self._put(key, self._unreadable(self.items.get(key), error))
            self.unreadable.add(key)

    def _put(self, key: str, new: _T | None) -> None:
        self.unreadable.discard(key)
        old = self.items.pop(key, None)
        if new is not None:
            self.items[key] = new
        self._changed(old, new)
