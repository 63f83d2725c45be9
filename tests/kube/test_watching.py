"""Watches deliver events and resume where they were interrupted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
from kube import ControlPlane
from kube.proxy import FaultyProxy
from testing.cluster_objects import Pool

from gpuhealth.kube import errors
from gpuhealth.kube.client import Client
from gpuhealth.kube.kinds import NODES, Kind
from gpuhealth.kube.watching import WatchChanged, WatchEvent, WatchInterrupted, WatchListed, WatchResumed, watch

Next = Callable[[type[WatchEvent]], Awaitable[Any]]


@asynccontextmanager
async def following(client: Client, **options: Any) -> AsyncIterator[Next]:
    """A watch, and a function that waits for the next event of a type."""
    async with aclosing(watch(client, NODES, **options)) as events:

        async def following_event(wanted: type[WatchEvent]) -> Any:
            async with asyncio.timeout(180):
                async for event in events:
                    if isinstance(event, wanted):
                        return event
            raise AssertionError("a watch never ends")

        yield following_event


def watches(proxy: FaultyProxy) -> int:
    """How many watches were started through the proxy."""
    return sum("watch=true" in path for _, path in proxy.seen)


def lists(proxy: FaultyProxy) -> int:
    """How many lists were asked for through the proxy."""
    return sum(method == "GET" and "watch=true" not in path for method, path in proxy.seen)


def test_changes_are_told(plane: ControlPlane, pool: Pool) -> None:
    """First what there is, then each change; `parse` is applied to all of it."""

    async def run() -> None:
        name = pool.node()
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            options = {"labels": f"pool={pool.name}", "parse": lambda node: node["metadata"].get("annotations", {})}
            async with following(client, **options) as event:
                assert await event(WatchListed) == WatchListed([{}])
                pool.patch(name, {"metadata": {"annotations": {"a": "b"}}})
                assert await event(WatchChanged) == WatchChanged("MODIFIED", {"a": "b"})

    asyncio.run(run())


def test_resumes_without_a_list(plane: ControlPlane, pool: Pool) -> None:
    """After a cut connection nothing is missed and nothing is listed again."""

    async def run() -> None:
        name = pool.node()
        async with FaultyProxy(plane) as proxy, Client.from_kubeconfig(proxy.kubeconfig) as client:
            async with following(client, fields=f"metadata.name={name}", paged=False) as event:
                await event(WatchListed)
                for k in range(3):
                    pool.patch(name, {"metadata": {"annotations": {"k": str(k)}}})
                    changed = await event(WatchChanged)
                    assert changed.item["metadata"]["annotations"]["k"] == str(k)
                    proxy.break_streams()
                pool.patch(name, {"metadata": {"annotations": {"k": "last"}}})
                assert (await event(WatchChanged)).item["metadata"]["annotations"]["k"] == "last"
            assert lists(proxy) == 1
            assert watches(proxy) >= 2

    asyncio.run(run())


def test_outage_is_told_and_survived(plane: ControlPlane, pool: Pool) -> None:
    """While the server answers 503 the watch says Broken; then it goes on by itself."""

    async def run() -> None:
        name = pool.node()
        async with FaultyProxy(plane) as proxy, Client.from_kubeconfig(proxy.kubeconfig, attempts=1) as client:
            async with following(client, fields=f"metadata.name={name}", paged=False) as event:
                await event(WatchListed)
                proxy.fail(503, path="watch=true", times=3)
                proxy.fail(429, path="watch=true", times=1)
                assert isinstance((await event(WatchInterrupted)).error, errors.UnavailableError)
                await event(WatchResumed)
                pool.patch(name, {"metadata": {"annotations": {"k": "1"}}})
                assert (await event(WatchChanged)).kind == "MODIFIED"
            assert lists(proxy) == 1

    asyncio.run(run())


def test_too_old_lists_again(plane: ControlPlane, pool: Pool) -> None:
    """After a 410 the objects are listed again, and deleted ones are missing in the list."""

    async def run() -> None:
        name = pool.node()
        async with FaultyProxy(plane) as proxy, Client.from_kubeconfig(proxy.kubeconfig) as client:
            async with following(client, labels=f"pool={pool.name}", paged=False) as event:
                assert len((await event(WatchListed)).items) == 1
                proxy.fail(410, path="watch=true")
                pool.patch(name, {"metadata": {"labels": {"pool": "elsewhere"}}})
                assert await event(WatchListed) == WatchListed([])
            cached = [path for _, path in proxy.seen if "resourceVersion=0" in path]
            assert (len(cached), lists(proxy)) == (1, 2), "the list after a gap is not from the cache"

    asyncio.run(run())


def test_servers_timeout_is_no_outage(plane: ControlPlane, pool: Pool) -> None:
    """When the server ends a watch in time, the next one continues from the same version without an event."""

    async def run() -> None:
        name = pool.node()
        async with FaultyProxy(plane) as proxy, Client.from_kubeconfig(proxy.kubeconfig) as client:
            follow = watch(client, NODES, fields=f"metadata.name={name}", paged=False, seconds=1)
            async with aclosing(follow) as events:
                received: list[WatchEvent] = [await anext(events)]
                waiting = asyncio.create_task(anext(events))
                async with asyncio.timeout(180):
                    while watches(proxy) < 3:
                        await asyncio.sleep(0.02)
                pool.patch(name, {"metadata": {"annotations": {"k": "1"}}})
                received.append(await waiting)
            assert [type(event) for event in received] == [WatchListed, WatchChanged]
            assert lists(proxy) == 1

    asyncio.run(run())


def test_a_server_that_ends_every_watch(plane: ControlPlane, pool: Pool) -> None:
    """Watches that end at once are asked for again more and more slowly, not in a loop."""

    async def run() -> None:
        name = pool.node()
        async with (
            FaultyProxy(plane) as proxy,
            Client.from_kubeconfig(proxy.kubeconfig) as client,
            following(client, fields=f"metadata.name={name}", paged=False) as event,
        ):
            await event(WatchListed)
            proxy.fail("end", path="watch=true", times=5)
            pool.patch(name, {"metadata": {"annotations": {"k": "1"}}})
            assert (await event(WatchChanged)).kind == "MODIFIED"
            assert watches(proxy) == 6

    asyncio.run(run())


def test_hopeless_errors_are_raised(plane: ControlPlane) -> None:
    """A kind that is not there will not come by waiting."""

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            events = watch(client, Kind("v1", "Nothing", "nothings"))
            with pytest.raises(errors.NotFoundError):
                await anext(events)

    asyncio.run(run())
