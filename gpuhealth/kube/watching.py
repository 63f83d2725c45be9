"""Watches that survive interruptions.

A watch is resumed where it broke; the objects are listed again only when the server no longer has that version.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, TypeAlias

import msgspec

from gpuhealth.kube.client import Client, Object, backoff, retry_delay
from gpuhealth.kube.errors import (
    ApiError,
    GoneError,
    TooManyRequestsError,
    UnauthorizedError,
    UnavailableError,
    UnreadableError,
    from_status,
    version_of,
)
from gpuhealth.kube.kinds import Kind
from gpuhealth.kube.objects import Reader
from gpuhealth.model.decoding import JSON_ERRORS
from gpuhealth.runtime.supervisor import raise_if_cancelled

SERVER_SECONDS = 300
"""How long the server keeps one watch open, at most; shortened at random so that agents do not resume in lockstep."""

_CONNECTED = ""
_NOT_DECODED = "?"


class WatchListed(msgspec.Struct, frozen=True):
    """All objects, at the start and after a gap. An object that is not in it no longer exists."""

    items: list[Any]
    unreadable: tuple[UnreadableError, ...] = ()  # objects that exist and that cannot be read


class WatchChanged(msgspec.Struct, frozen=True):
    """One object was added, modified or deleted."""

    kind: str  # ADDED, MODIFIED, DELETED
    item: Any


class WatchUnreadable(msgspec.Struct, frozen=True):
    """One object that cannot be read was added, modified or deleted."""

    kind: str  # ADDED, MODIFIED, DELETED
    error: UnreadableError


class WatchInterrupted(msgspec.Struct, frozen=True):
    """The watch is interrupted and will be resumed; the known objects may be out of date until the next event."""

    error: ApiError


class WatchResumed(msgspec.Struct, frozen=True):
    """An interrupted watch continues; what has changed meanwhile follows as WatchChanged."""


WatchEvent: TypeAlias = WatchListed | WatchChanged | WatchUnreadable | WatchInterrupted | WatchResumed


class _Line(msgspec.Struct):
    type: str
    object: Any


def _unchanged(item: Object) -> Any:
    return item


async def watch(
    client: Client,
    kind: Kind,
    namespace: str = "",
    *,
    labels: str = "",
    fields: str = "",
    parse: Callable[[Object], Any] = _unchanged,
    on_unreadable: Callable[[UnreadableError], None] = lambda _error: None,
    paged: bool = True,
    seconds: int = SERVER_SECONDS,
) -> AsyncGenerator[WatchEvent]:
    """Yield the objects and their changes until cancelled. An outage is a `WatchInterrupted`, and ends nothing.

    `parse` is applied to each object as it arrives, so that a big list never exists as a whole. An object on which it
    raises is a `WatchUnreadable`, is logged, and is given to `on_unreadable` once a version; the others follow. A list
    that is not `paged` comes from the server's cache, which is the cheap way to start with a single object. Raises
    errors that retries do not mend (403, 404).
    """
    reader = Reader(kind.kind, parse, on_unreadable)
    query: dict[str, str | int] = {"watch": "true", "allowWatchBookmarks": "true"}
    query |= {key: value for key, value in {"labelSelector": labels, "fieldSelector": fields}.items() if value}
    path = kind.path(namespace=namespace)
    version = ""
    failures = 0
    interrupted = False
    cached = not paged
    loop = asyncio.get_running_loop()
    while True:
        raise_if_cancelled()
        started = loop.time()
        try:
            if not version:
                listed, version = await _list(client, kind, namespace, labels, fields, reader, cached=cached)
                yield listed
            lasting = round(seconds * random.uniform(0.8, 1.0))  # noqa: S311 - no secret
            attempt = query | {"resourceVersion": version, "timeoutSeconds": lasting}
            async with aclosing(_events(client, path, attempt, lasting + 15.0)) as events:
                async for change, item in events:
                    if interrupted:
                        interrupted = False
                        yield WatchResumed()
                    if change == _CONNECTED:
                        continue
                    version, failures = version_of(item) or version, 0
                    if change == _NOT_DECODED:
                        reader.note(UnreadableError(kind.kind, item, ValueError("the event is no JSON object")))
                    elif change != "BOOKMARK":
                        yield _change(change, item, reader)
            if loop.time() - started < 1.0:  # a server that ends every watch at once must not be queried in a loop
                await asyncio.sleep(backoff(failures))
                failures += 1
        except GoneError:
            version, cached = "", False  # the cache may be older than what was seen already
            await asyncio.sleep(backoff(failures))
            failures += 1
        except (UnavailableError, TooManyRequestsError, UnauthorizedError) as error:
            interrupted = True
            yield WatchInterrupted(error)
            await asyncio.sleep(retry_delay(error, failures, longest=30.0))
            failures += 1


def _change(change: str, item: Object, reader: Reader[Any]) -> WatchChanged | WatchUnreadable:
    try:
        return WatchChanged(change, reader.read(item))
    except UnreadableError as error:
        if change == "DELETED":
            reader.forget(error)
        return WatchUnreadable(change, error)


async def _list(
    client: Client, kind: Kind, namespace: str, labels: str, fields: str, reader: Reader[Any], *, cached: bool
) -> tuple[WatchListed, str]:
    items: list[Any] = []
    errors: list[UnreadableError] = []
    version = ""
    # A list from the cache comes as a whole, regardless of the limit in the request.
    pages = client.pages(kind, namespace, labels=labels, fields=fields, cached=cached)
    async for page in pages:
        found, unreadable = reader.read_all(page.items)
        items += found
        errors += unreadable
        version = page.resource_version
    reader.keep_only(errors)
    return WatchListed(items, tuple(errors)), version


async def _events(
    client: Client, path: str, query: dict[str, str | int], silence: float
) -> AsyncGenerator[tuple[str, Any]]:
    async with aclosing(client.stream(path, query, silence)) as lines:
        async for line in lines:
            if not line:
                yield _CONNECTED, {}
                continue
            try:
                event = msgspec.json.decode(line, type=_Line)
            except JSON_ERRORS:
                yield _NOT_DECODED, {}
                continue
            if event.type == "ERROR":
                status = event.object if isinstance(event.object, dict) else {}
                code = status.get("code")
                raise from_status(code if isinstance(code, int) else 500, status)
            yield event.type, event.object
