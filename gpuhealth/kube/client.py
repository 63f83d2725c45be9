"""A thin client of the API server: dicts in, dicts out, one error hierarchy, every call bounded in time.

It uses a `connection` and adds errors by status (`errors`), retries of requests that can safely be sent twice, new
credentials after a 401, and pages. Watches that survive interruptions are in `watching`.

The time limit of a request is asyncio's and never aiohttp's `total`. aiohttp enters one timer twice while it waits for
the headers of a response (`ClientSession._request` and `ClientResponse.start` both do `with timer`). When the limit and
a cancellation of the task fall into one turn of the event loop, each exit subtracts one from `Task.cancelling()`: the
cancellation is raised as a TimeoutError, and nothing of it is left. `asyncio.timeout` distinguishes the two.
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
from gpuhealth.kube.unreadable import UnreadableObjects
from gpuhealth.model.decoding import JSON_ERRORS
from gpuhealth.runtime.supervisor import cancellations, raise_if_cancelled

_NO_LIMITS = aiohttp.ClientTimeout(total=None)  # without one the library sets its own, of five minutes

Object = dict[str, Any]
Observer = Callable[[str, int], None]
"""Called after every attempt with the method and the status, or 0 without a response. For metrics."""

JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_MERGE_PATCH = "application/strategic-merge-patch+json"

FIRST_DELAY = 0.1
MAX_DELAY = 5.0
WATCH_START_SECONDS = 30.0
"""How long the server may take to accept a watch, if the time limit of requests is not longer."""


class _ListMeta(msgspec.Struct):
    version: str = msgspec.field(name="resourceVersion", default="")
    token: str = msgspec.field(name="continue", default="")


class _Page(msgspec.Struct):
    metadata: _ListMeta
    kind: str = ""
    items: list[Any] | None = None


class Listing(msgspec.Struct, frozen=True):
    """The objects of a list, or of a page of it, and the version from which a watch continues."""

    items: list[Object]
    resource_version: str
    token: str = ""  # of a page: to request the next one; empty for the last


def backoff(attempt: int, longest: float = MAX_DELAY, *, first: float = FIRST_DELAY) -> float:
    """Seconds to wait after that many failures: exponential, with jitter so that agents do not retry in lockstep."""
    return min(longest, first * 2.0 ** min(attempt, 16)) * random.uniform(0.5, 1.0)  # noqa: S311 - no secret


def retry_delay(error: ApiError, failures: int, longest: float = MAX_DELAY) -> float:
    """Seconds until the next try after an error: the server's Retry-After, or else the backoff.

    A server may send the same Retry-After to a thousand agents in the same second, so a random part is added.
    """
    requested = (error.retry_after or 0.0) * random.uniform(1.0, 2.0)  # noqa: S311 - no secret
    return max(requested, backoff(failures, longest))


class Client:
    """A client of the API server with one identity. Use it as an async context manager, or call close()."""

    def __init__(
        self,
        configure: Callable[[], Awaitable[Any]] = configuration,
        *,
        timeout: float = 10.0,
        attempts: int = 5,
        connections: int = 0,
        at_once: int = 0,
        user_agent: str = "gpuhealth",
        leading: Callable[[], bool] | None = None,
        observer: Observer | None = None,
    ) -> None:
        """`timeout`: seconds per attempt; `attempts`: how many attempts per call.

        `at_once`: how many requests may wait for their responses at a time, 0 for no limit; a watch that the server has
        accepted does not count. The time limit starts when a request is sent. `leading` is called right before that:
        if it returns False, NotLeadingError is raised and nothing is sent. The API server also records `user_agent` as
        the manager of the fields that the client changes.
        """
        self.timeout = timeout
        self.attempts = attempts
        self.calls: dict[tuple[str, int], int] = {}  # attempts by (method, status)
        self.unreadable = UnreadableObjects()
        self._observer = observer
        self._leading = leading
        self._permits = asyncio.Semaphore(at_once) if at_once else nullcontext()
        self._connection = Connection(configure, connections, user_agent)
        self._server_date: tuple[str, float] | None = None  # Date of a response, and when it came (monotonic)

    @classmethod
    def from_kubeconfig(cls, kubeconfig: Path | None = None, context: str | None = None, **options: Any) -> Client:
        """A client for a kubeconfig and context; without both for the pod's service account, if there is one."""
        return cls(lambda: configuration(kubeconfig, context), **options)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections to the API server."""
        await self._connection.close()

    def server_time(self) -> datetime:
        """The API server's time, which is the same for all nodes; this machine's before the first response."""
        if self._server_date is not None:
            date, received = self._server_date
            with suppress(ValueError):
                return parsedate_to_datetime(date).astimezone(UTC) + timedelta(seconds=time.monotonic() - received)
        return datetime.now(UTC)

    # --- objects ------------------------------------------------------------------------------------------------------

    async def get(self, kind: Kind, name: str, namespace: str = "") -> Object:
        """Read one object by its name."""
        return object_of(kind, await self.request("GET", kind.path(name, namespace)), name)

    async def list(self, kind: Kind, namespace: str = "", *, labels: str = "", fields: str = "") -> Listing:
        """List all objects that the selectors match, in pages."""
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
        """List objects page by page. Raises GoneError where the server has dropped the rest meanwhile.

        `metadata_only` reduces the size to about a tenth. A list from the server's cache (`cached`) may be old, and
        comes in one page.
        """
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
        """Create an object. With a name it is tried again when the response is lost: then an AlreadyExistsError is
        `unanswered`, and may mean that the first attempt was successful."""
        body = {"apiVersion": kind.api_version, "kind": kind.kind, **body}
        name = body["metadata"].get("name", "")
        return object_of(kind, await self.request("POST", kind.path(namespace=namespace), body=body), name)

    async def replace(self, kind: Kind, name: str, body: Object, namespace: str = "", subresource: str = "") -> Object:
        """Replace an object. With a resourceVersion in `body`, raises ConflictError if it is no longer current."""
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
        """Patch an object, with a JSON merge patch unless `content_type` is another."""
        path = kind.path(name, namespace, subresource)
        return object_of(kind, await self.request("PATCH", path, body=body, content_type=content_type), name)

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
        """Delete an object. Raises ConflictError if `uid` or `resource_version` is given and not its own."""
        body: Object = {"apiVersion": "v1", "kind": "DeleteOptions"}
        preconditions = {"uid": uid, "resourceVersion": resource_version}
        if any(preconditions.values()):
            body["preconditions"] = {key: value for key, value in preconditions.items() if value}
        if grace is not None:
            body["gracePeriodSeconds"] = grace
        await self.request("DELETE", kind.path(name, namespace), body=body)

    async def served_versions(self, group: str) -> tuple[str, ...]:
        """The served versions of an API group, the preferred one first; empty for an unknown group."""
        answer = await self.request("GET", "/apis")
        try:
            for found in answer["groups"]:
                if found["name"] == group:
                    preferred = found["preferredVersion"]["groupVersion"]
                    versions = [str(version["groupVersion"]) for version in found["versions"]]
                    return tuple(sorted(versions, key=lambda version: version != preferred))
        except (KeyError, TypeError):
            raise AnswerError(f"the response is not a list of API groups: {str(answer)[:200]}") from None
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
        """Send a request and return the decoded response. Raises ApiError when the last attempt failed.

        A 429 is always tried again: it means that nothing was done. A missing response and a 5xx are tried again unless
        a second execution could do harm, as for a POST without a name. A Retry-After of more than `MAX_DELAY` is left
        to the caller, which may have something else to do meanwhile.
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
                if final or left < 1 or (error.retry_after or 0.0) > MAX_DELAY:
                    raise
                await asyncio.sleep(retry_delay(error, self.attempts - left))

    async def _attempt(
        self, method: str, path: str, query: Query | None, body: Any, content_type: str, accept: str
    ) -> Object:
        headers = {"Accept": accept, "Content-Type": content_type}
        status, asked = 0, cancellations()
        async with self._permits:
            self._raise_unless_leading()
            try:
                async with asyncio.timeout(self.timeout):
                    response = await self._connection.send(method, path, query, body, headers, _NO_LIMITS)
                    status = response.status
                    data = await response.read()
                if date := response.headers.get("Date"):
                    self._server_date = date, time.monotonic()
            except (TimeoutError, aiohttp.ClientError, OSError) as error:
                raise_if_cancelled(beyond=asked)
                raise _unavailable(error, self.timeout) from error
            finally:
                self._count(method, status)
        answer = _decoded(data)
        if status >= 300:
            raise from_status(status, answer, response.headers.get("Retry-After"))
        if not isinstance(answer, dict):
            raise AnswerError(f"{method} {path}: the response is no JSON object: {str(answer)[:200]!r}", status=status)
        return answer

    def _raise_unless_leading(self) -> None:
        if self._leading is not None and not self._leading():
            raise NotLeadingError("request not sent: this process is not the leader")

    async def stream(self, path: str, query: Query, silence: float) -> AsyncGenerator[bytes]:
        """Yield the lines of a watch, after an empty one as soon as the server has accepted it.

        Raises UnavailableError when it breaks, or after `silence` seconds without data.
        """
        limits = aiohttp.ClientTimeout(total=None, sock_read=silence)  # raises an error and does not cancel
        generation, asked = self._connection.generation, cancellations()
        within = max(self.timeout, WATCH_START_SECONDS)
        async with self._permits:
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
                response.connection.transport.abort()  # a regular TLS shutdown would outlive the event loop
            response.close()

    def _count(self, method: str, status: int) -> None:
        self.calls[method, status] = self.calls.get((method, status), 0) + 1
        if self._observer is not None:
            self._observer(method, status)


def object_of(kind: Kind, answer: Any, name: str = "") -> Object:
    """The response, if it is a complete object of the kind, and of that name. Raises AnswerError."""
    found = identified(kind, answer)
    metadata = found["metadata"]
    if name and metadata["name"] != name:
        raise AnswerError(f"the response is {kind.kind} {metadata['name'][:200]} instead of {name}")
    for key in ("labels", "annotations"):
        if not all(isinstance(value, str) for value in _map(kind, key, metadata.get(key, {})).values()):
            raise AnswerError(f"the response is an incomplete {kind.kind}: not all {key} are text")
    for key in ("spec", "status"):
        _map(kind, key, found.get(key, {}))
    return found


def identified(kind: Kind, answer: Any) -> Object:
    """The response, if it is an object of the kind with name, uid and version. Raises AnswerError.

    The rest is not checked here but by its readers, so that one invalid object does not affect the others of a list.
    """
    found: Object = answer if isinstance(answer, dict) else {}
    metadata = found.get("metadata")
    if not isinstance(metadata, dict) or answer.get("kind", kind.kind) != kind.kind:
        raise AnswerError(f"the response is no {kind.kind}: {str(answer)[:200]}")
    for key in ("name", "uid", "resourceVersion"):
        if not isinstance(metadata.get(key), str):
            raise AnswerError(f"the response is an incomplete {kind.kind}: metadata.{key} is {metadata.get(key)!r}")
    return found


def _map(kind: Kind, name: str, value: Any) -> Object:
    if not isinstance(value, dict):
        raise AnswerError(f"the response is an incomplete {kind.kind}: its {name} is no map")
    return value


def listing(kind: Kind, answer: Any) -> Listing:
    """The response, if it is a list of the kind; its items are not checked. Raises AnswerError."""
    try:
        page = msgspec.convert(answer, _Page)
    except msgspec.ValidationError as error:
        raise AnswerError(f"the response is no list of {kind.plural}: {error}: {str(answer)[:200]}") from None
    if page.kind not in {"", f"{kind.kind}List", "PartialObjectMetadataList"}:
        raise AnswerError(f"the response is a {page.kind[:200]} instead of a list of {kind.plural}")
    return Listing(page.items or [], page.metadata.version, page.metadata.token)


def _selectors(labels: str, fields: str) -> dict[str, str | int]:
    return {key: value for key, value in {"labelSelector": labels, "fieldSelector": fields}.items() if value}


def _decoded(data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except JSON_ERRORS:
        return data.decode(errors="replace")  # plain text, such as a proxy's error page


def _unavailable(error: BaseException, seconds: float) -> UnavailableError:
    if isinstance(error, TimeoutError):
        return UnavailableError(f"no response from the API server within {seconds:g} s")
    return UnavailableError(f"no response from the API server: {str(error) or type(error).__name__}")
