"""Tasks that run until they are cancelled, and how they are ended.

A cancellation is an exception, and it can be lost: code on the way catches it, or raises another error in its place.
What stays is the task's own count, `Task.cancelling()`. So each loop that goes on after an error asks for it here, and
a task that has not ended is cancelled again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Coroutine
from typing import Any

import structlog

log = structlog.get_logger()

AGAIN_SECONDS = 1.0
"""After which a task that has not ended is cancelled again."""
_RETRY_SECONDS = 1.0
_NAMED = 5  # tasks in one log line


def cancellations() -> int:
    """How many cancellations of the current task are pending; 0 outside of a task."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


def raise_if_cancelled(beyond: int = 0) -> None:
    """Raise CancelledError if more cancellations of the current task are pending than `beyond`.

    To be called wherever an error has been caught and the code goes on.
    """
    if cancellations() > beyond:
        raise asyncio.CancelledError


async def forever(
    step: Callable[[], Awaitable[None]],
    failed: Callable[[str], None],
    *,
    name: str = "",
    fatal: type[Exception] | tuple[type[Exception], ...] = (),
) -> None:
    """Repeat `step` until cancelled. An error is logged, given to `failed` by the loop's name, and the step is tried
    again after a second; a `fatal` one is raised. The task gets the loop's name."""
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
    """Cancel the tasks and return when all have ended; what they return or raise is left in them.

    Those that have not ended are cancelled again after that many seconds, and at once when the caller is cancelled
    itself. The caller's CancelledError is raised at the end, so that no task is left behind.
    """
    waiting = set(tasks)
    cancelled = tried = False
    while waiting:
        for task in waiting:
            task.cancel()
        if tried:
            names = sorted(task.get_name() for task in waiting)
            log.warning("tasks still running, cancelled again", tasks=names[:_NAMED], count=len(names))
        tried = True
        try:
            await asyncio.wait(waiting, timeout=again_after)
        except asyncio.CancelledError:
            cancelled = True
        waiting = {task for task in waiting if not task.done()}
    for task in tasks:
        if not task.cancelled():
            task.exception()  # asyncio would report it as never looked at
    if cancelled:
        raise asyncio.CancelledError


async def together(coroutines: Collection[Coroutine[Any, Any, None]], again_after: float = AGAIN_SECONDS) -> None:
    """Run them beside each other until all have ended or one fails; then end the others.

    An asyncio.TaskGroup cancels its tasks once and waits for them without limit; this cancels again (see `end`).
    Raises their errors as a group, as a TaskGroup does.
    """
    tasks = [asyncio.create_task(each) for each in coroutines]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        await end(tasks, again_after)
    errors = [error for task in tasks if not task.cancelled() and (error := task.exception()) is not None]
    if errors:
        raise BaseExceptionGroup("tasks that run together have failed", errors)
