"""Errors of the API server. The client raises no others: none of aiohttp or of the Kubernetes library.

ClusterError
├── NoConfigurationError        no service account, no usable kubeconfig
└── ApiError                    the request was refused, or got no response
    ├── UnauthorizedError       401, even with the credentials read again
    ├── ForbiddenError          403
    ├── NotFoundError           404
    ├── ConflictError           409: the object has changed since it was read
    │   └── AlreadyExistsError  409: the name is taken
    ├── GoneError               410: the resource version is too old to resume from
    ├── InvalidError            422: also a JSON patch whose `test` failed
    ├── TooManyRequestsError    429: flow control, or an eviction that a PodDisruptionBudget refuses
    ├── UnavailableError        5xx, connection refused or reset, no response in time
    │   └── AnswerError         a successful response that is not what was requested
    ├── NotLeadingError         not sent: another process leads, or may soon
    └── UnreadableError         a response with an object that cannot be read
"""

from __future__ import annotations

from typing import Any

_PROBLEM_LIMIT = 300  # characters, since it may quote the object
MAX_RETRY_AFTER = 60.0
"""Seconds. A longer Retry-After, of the server or of a proxy before it, is shortened to this: a fault must not wait."""


class ClusterError(Exception):
    """Base of all errors of this package."""


class NoConfigurationError(ClusterError):
    """There is no cluster configuration, or it cannot be used."""


class ApiError(ClusterError):
    """A request to the API server failed."""

    def __init__(self, message: str, *, status: int = 0, reason: str = "", retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.retry_after = retry_after
        self.unanswered = False  # whether an earlier attempt of this call got no response, and may have been successful


class UnauthorizedError(ApiError):
    """The API server does not accept the credentials."""


class ForbiddenError(ApiError):
    """RBAC or an admission policy forbids the request."""


class NotFoundError(ApiError):
    """There is no such object, or no such kind."""


class ConflictError(ApiError):
    """The object has changed since it was read."""


class AlreadyExistsError(ConflictError):
    """An object of this name exists already."""


class GoneError(ApiError):
    """The resource version is too old to continue from: list again."""


class InvalidError(ApiError):
    """The object would be invalid, or the `test` of a JSON patch found another value."""


class TooManyRequestsError(ApiError):
    """The API server refuses the request for now; `retry_after` holds its Retry-After, if it sent one."""


class UnavailableError(ApiError):
    """There was no usable response; whether the request was executed is unknown."""


class NotLeadingError(ApiError):
    """The request was not sent, since this process is not the leader."""


class UnreadableError(ApiError):
    """An object has content that cannot be read, such as an invalid time."""

    def __init__(self, kind: str, item: Any, problem: BaseException) -> None:
        """`item` is the object, of which nothing can be relied on; `problem` is the error that reading it raised."""
        self.kind = kind
        self.namespace, self.name, self.uid = (_metadata(item, key) for key in ("namespace", "name", "uid"))
        self.version = version_of(item)
        self.item = item
        self.problem = f"{type(problem).__name__}: {problem}"[:_PROBLEM_LIMIT]
        where = f"{self.namespace}/{self.name}" if self.namespace else self.name or "without a name"
        super().__init__(f"{kind} {where} cannot be read: {self.problem}")


def version_of(item: Any) -> str:
    """The resourceVersion of an object, of which nothing can be relied on; empty where it has none."""
    return _metadata(item, "resourceVersion")


def _metadata(item: Any, key: str) -> str:
    metadata = item.get("metadata") if isinstance(item, dict) else None
    value = metadata.get(key) if isinstance(metadata, dict) else None
    return value if isinstance(value, str) else ""


class AnswerError(UnavailableError):
    """The response is not the API server's: a proxy's page, a truncated response, an object of another kind."""


_BY_STATUS: dict[int, type[ApiError]] = {
    401: UnauthorizedError,
    403: ForbiddenError,
    404: NotFoundError,
    409: ConflictError,
    410: GoneError,
    422: InvalidError,
    429: TooManyRequestsError,
}


def from_status(status: int, body: Any, retry_after: str | None = None) -> ApiError:
    """The error for an HTTP status and the Status object, or the text, of the response."""
    fields = body if isinstance(body, dict) else {}
    reason = str(fields.get("reason") or "")
    message = str(fields.get("message") or body or f"HTTP status {status}")[:2048]
    kind = _BY_STATUS.get(status, UnavailableError if status >= 500 else ApiError)
    if reason == "AlreadyExists":
        kind = AlreadyExistsError
    elif reason == "Expired":  # some paths send another status with it
        kind = GoneError
    wait = min(float(retry_after), MAX_RETRY_AFTER) if retry_after and retry_after.isdecimal() else None
    return kind(message, status=status, reason=reason, retry_after=wait)
