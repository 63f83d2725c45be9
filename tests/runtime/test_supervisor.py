"""Tasks end, whatever becomes of the cancellation on its way."""

from __future__ import annotations

import asyncio

import pytest

from gpuhealth.runtime import supervisor as tasks
from gpuhealth.runtime.supervisor import end, raise_if_cancelled, supervise, together


async def deaf(times: int) -> None:
    """Ignores so many cancellations, and leaves no trace of them, as a library does that calls uncancel()."""
    task = asyncio.current_task()
    assert task is not None
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if not times:
                raise
            times -= 1
            task.uncancel()


def test_end_cancels_again() -> None:
    """A task that loses two cancellations gets a third."""

    async def run() -> None:
        async with asyncio.timeout(60):
            task = asyncio.create_task(deaf(2))
            await asyncio.sleep(0)
            await end([task], again_after=0.01)
            assert task.cancelled()

    asyncio.run(run())


def test_end_leaves_no_task_when_it_is_cancelled() -> None:
    """Who ends tasks and is cancelled meanwhile cancels them again at once, and ends after them."""

    async def run() -> None:
        inner = [asyncio.create_task(deaf(times)) for times in (0, 1, 2)]
        await asyncio.sleep(0)
        ending = asyncio.create_task(end(inner, again_after=3600))
        async with asyncio.timeout(60):
            while not ending.done():
                await asyncio.sleep(0)
                ending.cancel()
        assert ending.cancelled()
        assert all(task.cancelled() for task in inner)

    asyncio.run(run())


def test_together_ends_all_when_one_fails() -> None:
    """The error comes as a group, as a TaskGroup's does, after the others have ended."""
    others: list[asyncio.Task[None] | None] = []

    async def other() -> None:
        others.append(asyncio.current_task())
        await deaf(1)

    async def failing() -> None:
        await asyncio.sleep(0)
        raise ValueError("wrong")

    async def run() -> None:
        async with asyncio.timeout(60):
            with pytest.raises(ExceptionGroup) as caught:
                await together([other(), failing()], again_after=0.01)
        assert caught.group_contains(ValueError, match="wrong")
        assert all(task is not None and task.cancelled() for task in others)

    asyncio.run(run())


def test_supervise_goes_on_after_errors_and_not_after_a_cancellation() -> None:
    """An error is counted by the loop's name; one that took the place of a cancellation ends the loop."""
    failed: list[str] = []

    async def step() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ValueError("an error in its place") from None

    async def run() -> None:
        task = asyncio.create_task(supervise(step, failed.append))
        await asyncio.sleep(0)
        task.cancel()
        async with asyncio.timeout(60):
            await asyncio.wait([task])
        assert task.cancelled()
        assert (failed, task.get_name()) == (["step"], "step")

    asyncio.run(run())


def test_what_was_pending_before_is_not_meant() -> None:
    """A clean-up in a task that is cancelled already may go on after errors; outside of a task nothing is pending."""
    seen: list[str] = []

    async def cleaning() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise_if_cancelled(beyond=tasks.cancellations())
            seen.append("cleaned")

    async def run() -> None:
        task = asyncio.create_task(cleaning())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(run())
    assert seen == ["cleaned"]
