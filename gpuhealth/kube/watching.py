"""Watches that go on: resumed from where they broke, listed again only when the server has forgotten that place."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, TypeAlias

import msgspec

from gpuhealth.kube.client import Client, Object, backoff, patience
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
from gpuhealth.runtime.supervisor import raise_if_cancelled

SERVER_SECONDS = 300
"""How long the server keeps one watch open, at the most; shortened at random so that a fleet does not come at once."""

_CONNECTED = ""
_NOT_DECODED = "?"


class Listed(msgspec.Struct, frozen=True):
    """Everything there is: at the start, and after a gap. What is not in it exists no more."""

    items: list[Any]
    unreadable: tuple[UnreadableError, ...] = ()  # objects that exist and that cannot be read


class Changed(msgspec.Struct, frozen=True):
    """One object was added, modified or deleted."""

    kind: str  # ADDED, MODIFIED, DELETED
    item: Any


class Unreadable(msgspec.Struct, frozen=True):
    """One object was added, modified or deleted, and cannot be read."""

    kind: str  # ADDED, MODIFIED, DELETED
    error: UnreadableError


class Broken(msgspec.Struct, frozen=True):
    """The watch is interrupted and will be resumed: what is known may be old until the next event."""

    error: ApiError


class Resumed(msgspec.Struct, frozen=True):
    """A broken watch goes on; what happened meanwhile follows as changes."""


Event: TypeAlias = Listed | Changed | Unreadable | Broken | Resumed


class _Line(msgspec.Struct):
    type: str
    object: Any


def _whole(item: Object) -> Any:
    return item


async def watch(
    client: Client,
    kind: Kind,
    namespace: str = "",
    *,
    labels: str = "",
    fields: str = "",
    slim: Callable[[Object], Any] = _whole,
    noted: Callable[[UnreadableError], None] = lambda _error: None,
    paged: bool = True,
    seconds: int = SERVER_SECONDS,
) -> AsyncGenerator[Event]:
    """What there is and what becomes of it, until cancelled; outages are told as `Broken` and survived.

    `slim` is applied to each object as it arrives, so that a big list never exists whole. An object on which it raises
    an error is told as `Unreadable`, logged and given to `noted` once a version; the others go on. A list that is not
    `paged` comes from the server's cache, which is the cheap way to start on a single object. Errors that will not go
    away by themselves (403, 404) are raised.
    """
    reader = Reader(kind.kind, slim, noted)
    query: dict[str, str | int] = {"watch": "true", "allowWatchBookmarks": "true"}
    query |= {key: value for key, value in {"labelSelector": labels, "fieldSelector": fields}.items() if value}
    path = kind.path(namespace=namespace)
    version = ""
    failures = 0
    broken = False
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
                    if broken:
                        broken = False
                        yield Resumed()
                    if change == _CONNECTED:
                        continue
                    version, failures = version_of(item) or version, 0
                    if change == _NOT_DECODED:
                        reader.note(UnreadableError(kind.kind, item, ValueError("the event is no JSON object")))
                    elif change != "BOOKMARK":
                        yield _told(change, item, reader)
            if loop.time() - started < 1.0:  # a server that ends every watch at once must not be asked in a loop
                await asyncio.sleep(backoff(failures))
                failures += 1
        except GoneError:
            version, cached = "", False  # the cache may be older than what was already seen
            await asyncio.sleep(backoff(failures))
            failures += 1
        except (UnavailableError, TooManyRequestsError, UnauthorizedError) as error:
            broken = True
            yield Broken(error)
            await asyncio.sleep(patience(error, failures, longest=30.0))
            failures += 1


def _told(change: str, item: Object, reader: Reader[Any]) -> Changed | Unreadable:
    try:
        return Changed(change, reader.read(item))
    except UnreadableError as error:
        if change == "DELETED":
            reader.forget(error)
        return Unreadable(change, error)


async def _list(
    client: Client, kind: Kind, namespace: str, labels: str, fields: str, reader: Reader[Any], *, cached: bool
) -> tuple[Listed, str]:
    items: list[Any] = []
    errors: list[UnreadableError] = []
    version = ""
    # A list from the cache comes whole, whatever limit is asked for.
    pages = client.pages(kind, namespace, labels=labels, fields=fields, cached=cached)
    async for page in pages:
        found, unreadable = reader.read_all(page.items)
        items += found
        errors += unreadable
        version = page.resource_version
    reader.keep_only(errors)
    return Listed(items, tuple(errors)), version


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
            except (msgspec.DecodeError, RecursionError):
                yield _NOT_DECODED, {}
                continue
            if event.type == "ERROR":
                status = event.object if isinstance(event.object, dict) else {}
                code = status.get("code")
                raise from_status(code if isinstance(code, int) else 500, status)
            yield event.type, event.object
