"""What can go wrong with the API server; nothing of aiohttp or of the Kubernetes library gets past the client.

ClusterError
├── NoConfigurationError        no service account, no usable kubeconfig
└── ApiError                    the request was refused, or was not answered
    ├── UnauthorizedError       401, even with the credentials read again
    ├── ForbiddenError          403
    ├── NotFoundError           404
    ├── ConflictError           409: the object has changed since it was read
    │   └── AlreadyExistsError  409: the name is taken
    ├── GoneError               410: the resource version is too old to resume from
    ├── InvalidError            422: also a JSON patch whose `test` failed
    ├── TooManyRequestsError    429: flow control, or an eviction that a budget refuses
    ├── UnavailableError        5xx, connection refused or reset, no answer in time
    │   └── AnswerError         an answer with a status of success that is not what was asked for
    ├── NotLeadingError         not sent: another process leads, or may soon
    └── UnreadableError         answered, with an object that holds what cannot be read
"""

from __future__ import annotations

from typing import Any

_PROBLEM_LIMIT = 300  # characters: what somebody wrote there may be long
MOST_PATIENCE = 60.0
"""Seconds: a server, or a proxy before it, that asks for more is asked again all the same; a fault must not wait."""


class ClusterError(Exception):
    """Anything that went wrong with the cluster."""


class NoConfigurationError(ClusterError):
    """Nothing says where the API server is, or what says so cannot be used."""


class ApiError(ClusterError):
    """A request that did not succeed."""

    def __init__(self, message: str, *, status: int = 0, reason: str = "", retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.retry_after = retry_after
        self.unanswered = False  # whether an earlier attempt of the same call got no answer, and may have been the one


class UnauthorizedError(ApiError):
    """The credentials are not accepted."""


class ForbiddenError(ApiError):
    """RBAC or admission does not allow it."""


class NotFoundError(ApiError):
    """There is no such object, or no such kind."""


class ConflictError(ApiError):
    """The object has changed since it was read."""


class AlreadyExistsError(ConflictError):
    """The name is taken."""


class GoneError(ApiError):
    """The resource version is too old: list again."""


class InvalidError(ApiError):
    """The object would not be valid, or a tested value was another."""


class TooManyRequestsError(ApiError):
    """Not now; `retry_after` says when, where the server does."""


class UnavailableError(ApiError):
    """The API server gave no answer of use; whether it acted is not known."""


class NotLeadingError(ApiError):
    """The request was not sent, since this process may not act now."""


class UnreadableError(ApiError):
    """An object that holds what cannot be read, such as a time that is none."""

    def __init__(self, kind: str, item: Any, problem: BaseException) -> None:
        """`item` is the whole object, of which nothing can be relied on; `problem` is what reading it came to."""
        self.kind = kind
        self.namespace, self.name, self.uid = (_metadata(item, key) for key in ("namespace", "name", "uid"))
        self.version = version_of(item)
        self.item = item
        self.problem = f"{type(problem).__name__}: {problem}"[:_PROBLEM_LIMIT]
        where = f"{self.namespace}/{self.name}" if self.namespace else self.name or "without a name"
        super().__init__(f"{kind} {where} cannot be read: {self.problem}")


def version_of(item: Any) -> str:
    """The resourceVersion of an object of which nothing can be relied on; empty where there is none."""
    return _metadata(item, "resourceVersion")


def _metadata(item: Any, key: str) -> str:
    metadata = item.get("metadata") if isinstance(item, dict) else None
    value = metadata.get(key) if isinstance(metadata, dict) else None
    return value if isinstance(value, str) else ""


class AnswerError(UnavailableError):
    """What came is not the API server's answer: a proxy's page, an answer that was cut, an object of another kind."""


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
    """The error for an HTTP status and the Status object (or the text) that came with it."""
    fields = body if isinstance(body, dict) else {}
    reason = str(fields.get("reason") or "")
    message = str(fields.get("message") or body or f"HTTP status {status}")[:2048]
    kind = _BY_STATUS.get(status, UnavailableError if status >= 500 else ApiError)
    if reason == "AlreadyExists":
        kind = AlreadyExistsError
    elif reason == "Expired":  # some paths say so with another status
        kind = GoneError
    wait = min(float(retry_after), MOST_PATIENCE) if retry_after and retry_after.isdecimal() else None
    return kind(message, status=status, reason=reason, retry_after=wait)
