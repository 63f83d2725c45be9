"""A row of the table of attacks: who sends what, and what becomes of it."""

from __future__ import annotations

import enum
from typing import Any, NamedTuple


class Who(enum.StrEnum):
    """Whose token is stolen."""

    AGENT = "agent"
    PREFLIGHT = "preflight"
    CONTROLLER = "controller"
    BURNIN = "burn-in"
    UNBOUND_AGENT = "agent, token without a pod"
    UNBOUND_PREFLIGHT = "preflight, token without a pod"


class Patch(enum.StrEnum):
    """The types of patches."""

    MERGE = "application/merge-patch+json"
    STRATEGIC = "application/strategic-merge-patch+json"
    JSON = "application/json-patch+json"
    APPLY = "application/apply-patch+yaml"


RBAC = "RBAC"
SERVER = "API server"
"""Its own validation refuses the request."""


class Request(NamedTuple):
    """A request. In path and body, names such as MINE stand for those of the scene."""

    method: str
    path: str
    body: Any = None
    patch: Patch | None = None


class Row(NamedTuple):
    """What happens to the last of the requests; the ones before are allowed."""

    who: Who
    what: str
    refused_by: str  # a policy, RBAC or SERVER; empty: it is allowed
    why: str  # a part of the refusal's text; of what is allowed, the reason
    requests: tuple[Request, ...]
    on: str = "MINE"  # the node of the token's pod

    def __str__(self) -> str:
        return f"{self.who}: {self.what}"


def merge(path: str, body: Any) -> Request:
    """A merge patch of the object at the path."""
    return Request("PATCH", path, body, Patch.MERGE)


def strategic(path: str, body: Any) -> Request:
    """A strategic merge patch of the object at the path."""
    return Request("PATCH", path, body, Patch.STRATEGIC)


def json_patch(path: str, *operations: Any) -> Request:
    """A JSON patch of the object at the path, with these operations."""
    return Request("PATCH", path, list(operations), Patch.JSON)


def apply(path: str, kind: str, body: Any) -> Request:
    """A server-side apply, with force."""
    version = "v1" if kind in {"Node", "Event"} else "gpuhealth.io/v1alpha1"
    return Request("PATCH", path, {"apiVersion": version, "kind": kind, **body}, Patch.APPLY)


def post(path: str, body: Any) -> Request:
    """The creation of an object in the collection at the path."""
    return Request("POST", path, body)


def put(path: str, body: Any) -> Request:
    """A replacement of the present version."""
    return Request("PUT", path, body)


def delete(path: str) -> Request:
    """The deletion of the object or the collection at the path."""
    return Request("DELETE", path)


def get(path: str) -> Request:
    """A read of the object or the collection at the path."""
    return Request("GET", path)
