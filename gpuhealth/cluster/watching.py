"""Watches that go on: resumed from where they broke, listed again only when the server has forgotten that place."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, TypeAlias

import msgspec

from gpuhealth.cluster.client import Client, Object, backoff, listing, object_of, patience
from gpuhealth.cluster.errors import (
    AnswerError,
    ApiError,
    GoneError,
    TooManyRequestsError,
    UnauthorizedError,
    UnavailableError,
    from_status,
)
from gpuhealth.cluster.kinds import Kind

SERVER_SECONDS = 300
"""How long the server keeps one watch open, at the most; shortened at random so that a fleet does not come at once."""

_CONNECTED = ""


class Listed(msgspec.Struct, frozen=True):
    """Everything there is: at the start, and after a gap. What is not in it exists no more."""

    items: list[Any]


class Changed(msgspec.Struct, frozen=True):
    """One object was added, modified or deleted."""

    kind: str  # ADDED, MODIFIED, DELETED
    item: Any


class Broken(msgspec.Struct, frozen=True):
    """The watch is interrupted and will be resumed: what is known may be old until the next event."""

    error: ApiError


class Resumed(msgspec.Struct, frozen=True):
    """A broken watch goes on; what happened meanwhile follows as changes."""


Event: TypeAlias = Listed | Changed | Broken | Resumed


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
    paged: bool = True,
    seconds: int = SERVER_SECONDS,
) -> AsyncGenerator[Event]:
    """What there is and what becomes of it, until cancelled; outages are told as `Broken` and survived.

    `slim` is applied to each object as it arrives, so that a big list never exists whole. A list that is not `paged`
    comes from the server's cache, which is the cheap way to start on a single object. Errors that will not go away by
    themselves (403, 404) are raised.
    """
    query: dict[str, str | int] = {"watch": "true", "allowWatchBookmarks": "true"}
    query |= {key: value for key, value in {"labelSelector": labels, "fieldSelector": fields}.items() if value}
    path = kind.path(namespace=namespace)
    version = ""
    failures = 0
    broken = False
    cached = not paged
    loop = asyncio.get_running_loop()
    while True:
        started = loop.time()
        try:
            if not version:
                items, version = await _list(client, kind, namespace, labels, fields, slim, cached=cached)
                yield Listed(items)
            lasting = round(seconds * random.uniform(0.8, 1.0))  # noqa: S311 - no secret
            attempt = query | {"resourceVersion": version, "timeoutSeconds": lasting}
            async with aclosing(_events(client, kind, path, attempt, lasting + 15.0)) as events:
                async for change, item in events:
                    if broken:
                        broken = False
                        yield Resumed()
                    if change != _CONNECTED:
                        version = item["metadata"]["resourceVersion"]
                        failures = 0
                    if change not in {_CONNECTED, "BOOKMARK"}:
                        yield Changed(change, slim(item))
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


async def _list(
    client: Client, kind: Kind, namespace: str, labels: str, fields: str, slim: Callable[[Object], Any], *, cached: bool
) -> tuple[list[Any], str]:
    if cached:
        query = {"resourceVersion": "0", "labelSelector": labels, "fieldSelector": fields}
        answer = await client.request(
            "GET", kind.path(namespace=namespace), query={key: value for key, value in query.items() if value}
        )
        page = listing(kind, answer)
        return [slim(item) for item in page.items], page.resource_version
    items: list[Any] = []
    version = ""
    async for page in client.pages(kind, namespace, labels=labels, fields=fields):
        items += [slim(item) for item in page.items]
        version = page.resource_version
    return items, version


async def _events(
    client: Client, kind: Kind, path: str, query: dict[str, str | int], silence: float
) -> AsyncGenerator[tuple[str, Object]]:
    async with aclosing(client.stream(path, query, silence)) as lines:
        async for line in lines:
            if not line:
                yield _CONNECTED, {}
                continue
            change, item = _event(line)
            if change == "ERROR":
                raise from_status(_code(item), item)
            yield change, item if change == "BOOKMARK" else object_of(kind, item)


def _event(line: bytes) -> tuple[str, Object]:
    """What one line tells. Raises AnswerError: the watch goes on from where it was."""
    try:
        event = msgspec.json.decode(line)
        change, item = event["type"], event["object"]
        if change == "BOOKMARK":
            str(item["metadata"]["resourceVersion"])
    except (msgspec.DecodeError, RecursionError, KeyError, TypeError) as error:
        raise AnswerError(f"the watch tells what is no event: {line[:200]!r}: {error}") from None
    if not isinstance(change, str) or not isinstance(item, dict):
        raise AnswerError(f"the watch tells what is no event: {line[:200]!r}")
    return change, item


def _code(status: Object) -> int:
    code = status.get("code", 500)
    return code if isinstance(code, int) else 500
