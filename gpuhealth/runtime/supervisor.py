"""Supervision of asyncio tasks: loops that are restarted after an error, and a cancellation that cannot be lost.

A cancellation is an exception, and any code it passes through can swallow or replace it. The task's own count,
`Task.cancelling()`, remains. So each loop that continues after an error checks that count here, and a task that has not
ended is cancelled again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Coroutine
from typing import Any

import structlog

log = structlog.get_logger()

AGAIN_SECONDS = 1.0
"""Time after which a task that has not ended is cancelled again."""
_RETRY_SECONDS = 1.0
_LOGGED_NAMES = 5  # maximum number of tasks named in one log line


def cancellations() -> int:
    """Return how many cancellations of the current task are pending; 0 outside of a task."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


def raise_if_cancelled(beyond: int = 0) -> None:
    """Raise CancelledError if more than `beyond` cancellations of the current task are pending.

    Call it wherever an error has been caught and the code continues.
    """
    if cancellations() > beyond:
        raise asyncio.CancelledError


async def supervise(
    step: Callable[[], Awaitable[None]],
    failed: Callable[[str], None],
    *,
    name: str = "",
    fatal: type[Exception] | tuple[type[Exception], ...] = (),
) -> None:
    """Repeat `step` until cancelled; the current task is renamed to `name`, by default the name of the step.

    An error is logged and counted by calling `failed` with that name, and the step is repeated after a second. Raises
    errors of the types in `fatal`.
    """
    name = name or getattr(step, "__name__", "").removeprefix("_")
    if (task := asyncio.current_task()) is not None:
        task.set_name(name)
    while True:
        try:
            await step()
        except fatal:
            raise
        except Exception:  # a fault in one loop must not end the others; it is logged and counted
            log.exception("unexpected error", loop=name)
            failed(name)
            raise_if_cancelled()
            await asyncio.sleep(_RETRY_SECONDS)
        raise_if_cancelled()


async def end(tasks: Collection[asyncio.Task[Any]], again_after: float = AGAIN_SECONDS) -> None:
    """Cancel the tasks and return when all have ended; their results and exceptions stay in them.

    A task that has not ended is cancelled again every `again_after` seconds, and at once when the caller is cancelled.
    Raises the caller's CancelledError only after all tasks have ended.
    """
    waiting = set(tasks)
    cancelled = tried = False
    while waiting:
        for task in waiting:
            task.cancel()
        if tried:
            names = sorted(task.get_name() for task in waiting)
            log.warning("tasks still running, cancelled again", tasks=names[:_LOGGED_NAMES], count=len(names))
        tried = True
        try:
            await asyncio.wait(waiting, timeout=again_after)
        except asyncio.CancelledError:
            cancelled = True
        waiting = {task for task in waiting if not task.done()}
    for task in tasks:
        if not task.cancelled():
            task.exception()  # asyncio logs exceptions that are never retrieved
    if cancelled:
        raise asyncio.CancelledError


async def together(coroutines: Collection[Coroutine[Any, Any, None]], again_after: float = AGAIN_SECONDS) -> None:
    """Run the coroutines concurrently until all have ended or one has failed; then end the others.

    An asyncio.TaskGroup cancels its tasks once and waits for them without limit; this function cancels again (see
    `end`). Raises the errors as one group, as a TaskGroup does.
    """
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        await end(tasks, again_after)
    errors = [error for task in tasks if not task.cancelled() and (error := task.exception()) is not None]
    if errors:
        raise BaseExceptionGroup("tasks that run together have failed", errors)
