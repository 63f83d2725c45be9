"""Objects of one kind as a watch tells of them, few fields of each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Generic, Protocol, TypeVar

from gpuhealth.cluster.watching import Changed, Event, Listed

_AT_ONCE = 500  # objects of a list that are taken before others get a turn


class Keyed(Protocol):
    """Something with a key of its own."""

    @property
    def key(self) -> str:
        """What it is known by."""


_T = TypeVar("_T", bound=Keyed)


class Table(Generic[_T]):
    """The objects by their keys."""

    def __init__(self, changed: Callable[[_T | None, _T | None], None] = lambda _old, _new: None) -> None:
        """`changed` is told what was there before and what is there now."""
        self.items: dict[str, _T] = {}
        self.listed = False  # whether everything there is has been seen once
        self._changed = changed

    async def follow(self, events: AsyncIterator[Event], heard: Callable[[], None]) -> None:
        """Takes everything that the watch tells; `heard` is called after each change."""
        async for event in events:
            match event:
                case Listed(items):
                    await self._replace(items)
                case Changed("DELETED", item):
                    self._put(item.key, None)
                case Changed(_, item):
                    self._put(item.key, item)
                case _:
                    continue  # what is known may be old now; every act on it is checked by the API server
            heard()

    async def _replace(self, items: list[_T]) -> None:
        for key in self.items.keys() - {item.key for item in items}:
            self._put(key, None)
        for number, item in enumerate(items, 1):
            self._put(item.key, item)
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)
        self.listed = True

    def _put(self, key: str, new: _T | None) -> None:
        old = self.items.pop(key, None)
        if new is not None:
            self.items[key] = new
        self._changed(old, new)
