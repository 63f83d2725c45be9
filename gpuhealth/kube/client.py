"""A thin client of the API server: dicts in, dicts out, one error hierarchy, every call bounded in time.

It stands on a `connection`. What is added: errors by status (`errors`), retries of what can safely be done twice,
credentials read again after a 401, pages, and watches that go on (`watching`).

The time limit of a request is asyncio's and never aiohttp's `total`. aiohttp enters one timer twice while it waits for
the headers of an answer (`ClientSession._request` and `ClientResponse.start` both do `with timer`). When the limit and
a cancellation of the task fall into one turn of the event loop, each exit takes one away from `Task.cancelling()`: the
cancellation is raised as a TimeoutError, and nothing of it is left. `asyncio.timeout` tells the two apart.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import nullcontext, suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp
import msgspec

from gpuhealth.kube.connection import Connection, Query, configuration
from gpuhealth.kube.errors import (
    AlreadyExistsError,
    AnswerError,
    ApiError,
    NotLeadingError,
    TooManyRequestsError,
    UnauthorizedError,
    UnavailableError,
    from_status,
)
from gpuhealth.kube.kinds import Kind
from gpuhealth.kube.unreadable import Unreadable
from gpuhealth.runtime.supervisor import cancellations, raise_if_cancelled

_NO_LIMITS = aiohttp.ClientTimeout(total=None)  # without one the library sets its own, of five minutes

Object = dict[str, Any]
Observer = Callable[[str, int], None]
"""Told of every attempt: the method, and the status or 0 where there was no answer. For metrics."""

JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_MERGE_PATCH = "application/strategic-merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"

FIRST_DELAY = 0.1
LONGEST_DELAY = 5.0
WATCH_START_SECONDS = 30.0
"""How long the server may take to agree to a watch, at the least."""


class _ListMeta(msgspec.Struct):
    version: str = msgspec.field(name="resourceVersion", default="")
    token: str = msgspec.field(name="continue", default="")


class _Page(msgspec.Struct):
    metadata: _ListMeta
    kind: str = ""
    items: list[Any] | None = None


class Listing(msgspec.Struct, frozen=True):
    """All objects of a list, and the version from which a watch goes on."""

    items: list[Object]
    resource_version: str
    token: str = ""  # of a page: what to ask for the next one with; empty for the last


def backoff(attempt: int, longest: float = LONGEST_DELAY, *, first: float = FIRST_DELAY) -> float:
    """Seconds to wait after the given number of failures: exponential, with jitter so that a fleet does not march."""
    return min(longest, first * 2.0 ** min(attempt, 16)) * random.uniform(0.5, 1.0)  # noqa: S311 - no secret


def patience(error: ApiError, failures: int, longest: float = LONGEST_DELAY) -> float:
    """Seconds until the next try after an error: not before the server says, which may have told a thousand agents the
    same in the same second, so each comes a random share later; where it says nothing, the backoff."""
    asked = (error.retry_after or 0.0) * random.uniform(1.0, 2.0)  # noqa: S311 - no secret
    return max(asked, backoff(failures, longest))


class Client:
    """The API server, for one identity. Use as an async context manager, or close()."""

    def __init__(
        self,
        configure: Callable[[], Awaitable[Any]] = configuration,
        *,
        timeout: float = 10.0,
        attempts: int = 5,
        connections: int = 0,
        at_once: int = 0,
        leading: Callable[[], bool] | None = None,
        observer: Observer | None = None,
    ) -> None:
        """`timeout`: seconds that one attempt may take; `attempts`: how many one call may take.

        `at_once`: so many requests may be without an answer at a time, 0 for no limit; a watch that the server has
        agreed to does not count. A request that waits for its turn is not timed. `leading` is asked right before each
        request is sent: where it says no, NotLeadingError is raised and nothing is sent.
        """
        self.timeout = timeout
        self.attempts = attempts
        self.calls: dict[tuple[str, int], int] = {}  # attempts by (method, status)
        self.unreadable = Unreadable()
        self._observer = observer
        self._leading = leading
        self._turns = asyncio.Semaphore(at_once) if at_once else nullcontext()
        self._connection = Connection(configure, connections)
        self._told_time: tuple[str, float] | None = None  # an answer's Date, and when it came by the monotonic clock

    @classmethod
    def from_kubeconfig(cls, kubeconfig: Path | None = None, context: str | None = None, **options: Any) -> Client:
        """A client for a kubeconfig and context; without either the pod's service account comes first."""
        return cls(lambda: configuration(kubeconfig, context), **options)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._connection.close()

    def server_time(self) -> datetime:
        """The API server's time, which is the same for all nodes; before any answer that of this machine's clock."""
        if self._told_time is not None:
            told, when = self._told_time
            with suppress(ValueError):
                return parsedate_to_datetime(told).astimezone(UTC) + timedelta(seconds=time.monotonic() - when)
        return datetime.now(UTC)

    # --- objects ------------------------------------------------------------------------------------------------------

    async def get(self, kind: Kind, name: str, namespace: str = "") -> Object:
        """One object."""
        return object_of(kind, await self.request("GET", kind.path(name, namespace)), name)

    async def list(self, kind: Kind, namespace: str = "", *, labels: str = "", fields: str = "") -> Listing:
        """All objects that the selectors choose, asked for in pages."""
        items: list[Object] = []
        version = ""
        async for page in self.pages(kind, namespace, labels=labels, fields=fields):
            items += [identified(kind, item) for item in page.items]
            version = page.resource_version
        return Listing(items, version)

    async def pages(
        self,
        kind: Kind,
        namespace: str = "",
        *,
        labels: str = "",
        fields: str = "",
        limit: int = 500,
        metadata_only: bool = False,
        cached: bool = False,
    ) -> AsyncGenerator[Listing]:
        """The same page by page; GoneError when the server dropped the rest meanwhile. Metadata alone is a tenth. What
        the server has `cached` may be old, and comes in one page."""
        accept = "application/json"
        if metadata_only:
            accept += ";as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
        query: dict[str, str | int] = {"limit": limit, **_selectors(labels, fields)}
        if cached:
            query["resourceVersion"] = "0"
            del query["limit"]
        while True:
            answer = await self.request("GET", kind.path(namespace=namespace), query=query, accept=accept)
            page = listing(kind, answer)
            yield page
            if not (token := page.token):
                return
            query["continue"] = token

    async def create(self, kind: Kind, body: Object, namespace: str = "") -> Object:
        """A new object. Under a name of its own the attempt is repeated when the answer is lost: then
        AlreadyExistsError is `unanswered`, and may mean that the first attempt was the one."""
        body = {"apiVersion": kind.api_version, "kind": kind.kind, **body}
        name = body["metadata"].get("name", "")
        return object_of(kind, await self.request("POST", kind.path(namespace=namespace), body=body), name)

    async def replace(self, kind: Kind, name: str, body: Object, namespace: str = "", subresource: str = "") -> Object:
        """Put the whole object; with a resourceVersion in it, ConflictError if it is no longer that."""
        body = {"apiVersion": kind.api_version, "kind": kind.kind, **body}
        return object_of(kind, await self.request("PUT", kind.path(name, namespace, subresource), body=body), name)

    async def patch(
        self,
        kind: Kind,
        name: str,
        body: Any,
        namespace: str = "",
        *,
        content_type: str = MERGE_PATCH,
        subresource: str = "",
    ) -> Object:
        """Change an object: a merge patch unless `content_type` says otherwise."""
        path = kind.path(name, namespace, subresource)
        return object_of(kind, await self.request("PATCH", path, body=body, content_type=content_type), name)

    async def apply(
        self, kind: Kind, name: str, body: Object, namespace: str = "", *, manager: str, subresource: str = ""
    ) -> Object:
        """Server-side apply of the fields in `body`, taking them over from others."""
        body = {"apiVersion": kind.api_version, "kind": kind.kind, **body}
        query = {"fieldManager": manager, "force": "true"}
        path = kind.path(name, namespace, subresource)
        return object_of(
            kind, await self.request("PATCH", path, query=query, body=body, content_type=APPLY_PATCH), name
        )

    async def delete(
        self,
        kind: Kind,
        name: str,
        namespace: str = "",
        *,
        uid: str = "",
        resource_version: str = "",
        grace: int | None = None,
    ) -> None:
        """Delete an object; ConflictError when it is not the one that `uid` and `resource_version` mean."""
        body: Object = {"apiVersion": "v1", "kind": "DeleteOptions"}
        preconditions = {"uid": uid, "resourceVersion": resource_version}
        if any(preconditions.values()):
            body["preconditions"] = {key: value for key, value in preconditions.items() if value}
        if grace is not None:
            body["gracePeriodSeconds"] = grace
        await self.request("DELETE", kind.path(name, namespace), body=body)

    async def served_versions(self, group: str) -> tuple[str, ...]:
        """The versions of an API group that this server serves, its preferred one first; none of an unknown group."""
        answer = await self.request("GET", "/apis")
        try:
            for found in answer["groups"]:
                if found["name"] == group:
                    preferred = found["preferredVersion"]["groupVersion"]
                    versions = [str(version["groupVersion"]) for version in found["versions"]]
                    return tuple(sorted(versions, key=lambda version: version != preferred))
        except (KeyError, TypeError):
            raise AnswerError(f"the answer is no list of API groups: {str(answer)[:200]}") from None
        return ()

    # --- requests -----------------------------------------------------------------------------------------------------

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: Any = None,
        content_type: str = "application/json",
        accept: str = "application/json",
        attempts: int | None = None,
    ) -> Object:
        """One call: the decoded answer, or an ApiError when the last attempt failed.

        A 429 is always tried again: it means that nothing was done. No answer and a 5xx are tried again where twice
        does no harm: not for a POST without a name. A server that asks for more than `LONGEST_DELAY` of patience is
        left to the caller, who has something better to do than to wait in here.
        """
        repeatable = method != "POST" or "name" in (body or {}).get("metadata", {})
        left = attempts or self.attempts
        refused = unanswered = False
        while True:
            generation = self._connection.generation
            try:
                return await self._attempt(method, path, query, body, content_type, accept)
            except UnauthorizedError:
                if refused:
                    raise
                refused = True
                await self._connection.read_credentials_again(generation)
            except AlreadyExistsError as error:
                error.unanswered = unanswered
                raise
            except (TooManyRequestsError, UnavailableError) as error:
                unanswered |= isinstance(error, UnavailableError)
                left -= 1
                final = isinstance(error, UnavailableError) and not repeatable
                if final or left < 1 or (error.retry_after or 0.0) > LONGEST_DELAY:
                    raise
                await asyncio.sleep(patience(error, self.attempts - left))

    async def _attempt(
        self, method: str, path: str, query: Query | None, body: Any, content_type: str, accept: str
    ) -> Object:
        headers = {"Accept": accept, "Content-Type": content_type}
        status, asked = 0, cancellations()
        async with self._turns:
            self._raise_unless_leading()
            try:
                async with asyncio.timeout(self.timeout):
                    response = await self._connection.send(method, path, query, body, headers, _NO_LIMITS)
                    status = response.status
                    data = await response.read()
                if date := response.headers.get("Date"):
                    self._told_time = date, time.monotonic()
            except (TimeoutError, aiohttp.ClientError, OSError) as error:
                raise_if_cancelled(beyond=asked)
                raise _unavailable(error, self.timeout) from error
            finally:
                self._count(method, status)
        answer = _decoded(data)
        if status >= 300:
            raise from_status(status, answer, response.headers.get("Retry-After"))
        if not isinstance(answer, dict):
            raise AnswerError(f"{method} {path}: the answer is no JSON object: {str(answer)[:200]!r}", status=status)
        return answer

    def _raise_unless_leading(self) -> None:
        if self._leading is not None and not self._leading():
            raise NotLeadingError("this process does not lead: the request was not sent")

    async def stream(self, path: str, query: Query, silence: float) -> AsyncGenerator[bytes]:
        """The lines of an answer that goes on, after an empty one as soon as the server has agreed to it.

        UnavailableError when it breaks, or is silent for that many seconds.
        """
        limits = aiohttp.ClientTimeout(total=None, sock_read=silence)  # whose end is an error and no cancellation
        generation, asked = self._connection.generation, cancellations()
        within = max(self.timeout, WATCH_START_SECONDS)
        async with self._turns:
            self._raise_unless_leading()
            try:
                async with asyncio.timeout(within):
                    headers = {"Accept": "application/json"}
                    response = await self._connection.send("GET", path, query, None, headers, limits)
            except (TimeoutError, aiohttp.ClientError, OSError) as error:
                self._count("WATCH", 0)
                raise_if_cancelled(beyond=asked)
                raise _unavailable(error, within) from error
        self._count("WATCH", response.status)
        try:
            if response.status >= 300:
                data = await response.read()
                if response.status == 401:
                    await self._connection.read_credentials_again(generation)
                raise from_status(response.status, _decoded(data), response.headers.get("Retry-After"))
            yield b""
            rest = b""
            # Not readline(): its limit is below the size that an object may have.
            async for chunk in response.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    yield line
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise_if_cancelled(beyond=asked)
            raise _unavailable(error, silence) from error
        finally:
            if response.connection is not None and response.connection.transport is not None:
                response.connection.transport.abort()  # a polite TLS shutdown would outlive the event loop
            response.close()

    def _count(self, method: str, status: int) -> None:
        self.calls[method, status] = self.calls.get((method, status), 0) + 1
        if self._observer is not None:
            self._observer(method, status)


def object_of(kind: Kind, answer: Any, name: str = "") -> Object:
    """The answer, if it is a whole object of the kind, and of that name. Raises AnswerError."""
    found = identified(kind, answer)
    metadata = found["metadata"]
    if name and metadata["name"] != name:
        raise AnswerError(f"the answer is {kind.kind} {metadata['name'][:200]}, and not {name}")
    for key in ("labels", "annotations"):
        if not all(isinstance(value, str) for value in _map(kind, key, metadata.get(key, {})).values()):
            raise AnswerError(f"the answer is no whole {kind.kind}: not all {key} are text")
    for key in ("spec", "status"):
        _map(kind, key, found.get(key, {}))
    return found


def identified(kind: Kind, answer: Any) -> Object:
    """The answer, if it is an object of the kind with a name, uid and version, whatever else is in it: the rest is for
    whoever reads it, so that one object with nonsense in it costs no other. Raises AnswerError."""
    found: Object = answer if isinstance(answer, dict) else {}
    metadata = found.get("metadata")
    if not isinstance(metadata, dict) or answer.get("kind", kind.kind) != kind.kind:
        raise AnswerError(f"the answer is no {kind.kind}: {str(answer)[:200]}")
    for key in ("name", "uid", "resourceVersion"):
        if not isinstance(metadata.get(key), str):
            raise AnswerError(f"the answer is no whole {kind.kind}: metadata.{key} is {metadata.get(key)!r}")
    return found


def _map(kind: Kind, name: str, value: Any) -> Object:
    if not isinstance(value, dict):
        raise AnswerError(f"the answer is no whole {kind.kind}: its {name} is no map")
    return value


def listing(kind: Kind, answer: Any) -> Listing:
    """The answer, if it is a list of the kind; of its items nothing is known yet. Raises AnswerError."""
    try:
        page = msgspec.convert(answer, _Page)
    except msgspec.ValidationError as error:
        raise AnswerError(f"the answer is no list of {kind.plural}: {error}: {str(answer)[:200]}") from None
    if page.kind not in {"", f"{kind.kind}List", "PartialObjectMetadataList"}:
        raise AnswerError(f"the answer is a {page.kind[:200]}, and no list of {kind.plural}")
    return Listing(page.items or [], page.metadata.version, page.metadata.token)


def _selectors(labels: str, fields: str) -> dict[str, str | int]:
    return {key: value for key, value in {"labelSelector": labels, "fieldSelector": fields}.items() if value}


def _decoded(data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError):
        return data.decode(errors="replace")  # plain text, such as a proxy's error page


def _unavailable(error: BaseException, seconds: float) -> UnavailableError:
    if isinstance(error, TimeoutError):
        return UnavailableError(f"no answer from the API server within {seconds:g} s")
    return UnavailableError(f"no answer from the API server: {str(error) or type(error).__name__}")
