"""Reads that may block as long as a device, a disk or the driver hangs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

READ_SECONDS = 5.0


class SlowRead(Generic[T]):
    """A read in a thread. While it blocks, no other thread is spent on it."""

    def __init__(self, late: T) -> None:
        self._late = late
        self._pending: asyncio.Task[T] | None = None

    async def __call__(self, read: Callable[[], T]) -> T:
        """The result of the function; the value for a late one if it has none after some seconds."""
        if self._pending and not self._pending.done():
            return self._late
        self._pending = asyncio.create_task(asyncio.to_thread(read))
        try:
            async with asyncio.timeout(READ_SECONDS):
                return await asyncio.shield(self._pending)
        except TimeoutError:
            return self._late
