"""Evictions and deletions of pods, and their outcomes.

The API server decides on an eviction by the PodDisruptionBudgets and responds with 429 while they do not allow it. The
version of Eviction that it accepts is read from the subresource itself: servers of 1.21 serve policy/v1 without
Eviction in it.
"""

from __future__ import annotations

import enum

import msgspec

from gpuhealth.kube.client import Client, Object
from gpuhealth.kube.errors import AnswerError, ApiError, ConflictError, NotFoundError, TooManyRequestsError
from gpuhealth.kube.kinds import PODS
from gpuhealth.runtime.supervisor import raise_if_cancelled


class EvictionOutcome(enum.StrEnum):
    """Outcome of an eviction or a deletion."""

    EVICTED = "evicted"
    DELETED = "deleted"
    REFUSED = "refused"  # for now: by a PodDisruptionBudget, or by flow control
    GONE = "gone"  # it was deleted already, or another pod has its name now
    FAILED = "failed"  # it is unknown whether it was done, or we may not do it


class EvictionResult(msgspec.Struct, frozen=True):
    """An outcome, with the API server's message and Retry-After in seconds."""

    outcome: EvictionOutcome
    detail: str = ""
    retry_after: float = 0.0


class Evictor:
    """Evicts and deletes pods, each by its uid: never another pod of the same name."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._version = ""

    async def evict(self, namespace: str, name: str, uid: str) -> EvictionResult:
        """Request the eviction of a pod once; retries are left to the caller."""
        body: Object = {"kind": "Eviction", "metadata": {"name": name, "namespace": namespace}}
        body["deleteOptions"] = {"preconditions": {"uid": uid}}
        try:
            body["apiVersion"] = await self._served_version()
            await self._client.request("POST", PODS.path(name, namespace, "eviction"), body=body, attempts=1)
        except ApiError as error:
            raise_if_cancelled()
            return _result(error)
        return EvictionResult(EvictionOutcome.EVICTED)

    async def delete(self, namespace: str, name: str, uid: str) -> EvictionResult:
        """Delete a pod without regard to PodDisruptionBudgets, with its own grace period."""
        try:
            await self._client.delete(PODS, name, namespace, uid=uid)
        except ApiError as error:
            raise_if_cancelled()
            return _result(error)
        return EvictionResult(EvictionOutcome.DELETED)

    async def _served_version(self) -> str:
        if not self._version:
            answer = await self._client.request("GET", "/api/v1")
            try:
                (found,) = [resource for resource in answer["resources"] if resource["name"] == "pods/eviction"]
                self._version = f"{found['group']}/{found['version']}"
            except (KeyError, TypeError, ValueError):
                raise AnswerError(f"the response does not list pods/eviction once: {str(answer)[:200]}") from None
        return self._version


def _result(error: ApiError) -> EvictionResult:
    if isinstance(error, NotFoundError | ConflictError):
        return EvictionResult(EvictionOutcome.GONE)
    refused = isinstance(error, TooManyRequestsError)
    outcome = EvictionOutcome.REFUSED if refused else EvictionOutcome.FAILED
    return EvictionResult(outcome, str(error), error.retry_after or 0.0)
