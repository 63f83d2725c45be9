"""Waiting for conditions: the tests sleep for no fixed time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from itertools import repeat
from typing import Any, TypeVar

T = TypeVar("T")

PATIENCE = 180.0
"""Seconds until a wait fails. What is waited for comes at once, or much later where the machine is busy."""


def wait_for(what: str, ready: Callable[[], T | None], seconds: float = PATIENCE, every: float | None = None) -> T:
    """Returns what `ready` returns once it is true; raises TimeoutError, which names what did not come.

    It is called every so many seconds; without a number, less often the longer it takes.
    """
    deadline = time.monotonic() + seconds
    pauses = _pauses() if every is None else repeat(every)
    while not (value := ready()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come within {seconds:g} s")
        time.sleep(next(pauses))
    return value


async def until(condition: Callable[[], Any], seconds: float = PATIENCE, *, in_thread: bool = False) -> Any:
    """Returns what the condition returns once it is true; raises TimeoutError.

    A condition that blocks, such as a request, is evaluated in a thread, so that the tasks of the loop go on meanwhile.
    """
    pauses = _pauses()
    async with asyncio.timeout(seconds):
        while not (value := await asyncio.to_thread(condition) if in_thread else condition()):
            await asyncio.sleep(next(pauses))
    return value


def _pauses() -> Iterator[float]:
    """Seconds between looks: what comes soon is seen soon, and a long wait costs other tests little CPU."""
    pause = 0.01
    while True:
        yield pause
        pause = min(pause * 1.1, 0.1)
