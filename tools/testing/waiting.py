"""Waiting for conditions: the tests sleep for no fixed time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

PATIENCE = 180.0
"""Seconds until a wait fails. What is waited for comes at once, or much later where the machine is busy."""


def wait_for(what: str, ready: Callable[[], T | None], seconds: float = PATIENCE, every: float = 0.02) -> T:
    """Returns what `ready` returns once it is true; raises TimeoutError, which names what did not come."""
    deadline = time.monotonic() + seconds
    while not (value := ready()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come within {seconds:g} s")
        time.sleep(every)
    return value


async def until(condition: Callable[[], Any], seconds: float = PATIENCE, *, in_thread: bool = False) -> Any:
    """Returns what the condition returns once it is true; raises TimeoutError.

    A condition that blocks, such as a request, is evaluated in a thread, so that the tasks of the loop go on meanwhile.
    """
    async with asyncio.timeout(seconds):
        while not (value := await asyncio.to_thread(condition) if in_thread else condition()):
            await asyncio.sleep(0.02 if in_thread else 0.01)
    return value
