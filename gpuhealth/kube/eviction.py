"""Evictions: asked for in the version that the server takes, and told apart by what came of them.

The server decides on an eviction by the PodDisruptionBudgets and answers 429 while they do not allow it. Which version
of Eviction it takes is asked of the subresource itself: servers of 1.21 serve policy/v1 and no Eviction in it.
"""

from __future__ import annotations

import enum

import msgspec

from gpuhealth.kube.client import Client, Object
from gpuhealth.kube.errors import AnswerError, ApiError, ConflictError, NotFoundError, TooManyRequestsError
from gpuhealth.kube.kinds import PODS
from gpuhealth.runtime.supervisor import raise_if_cancelled


class Outcome(enum.StrEnum):
    """What came of it."""

    EVICTED = "evicted"
    DELETED = "deleted"
    REFUSED = "refused"  # not now: a PodDisruptionBudget, or the server has too much to do
    GONE = "gone"  # it had gone already, or another has its name now
    FAILED = "failed"  # whether it was done is not known, or it may not be done


class Result(msgspec.Struct, frozen=True):
    """An outcome, and what the server said to it."""

    outcome: Outcome
    detail: str = ""
    retry_after: float = 0.0


class Evictor:
    """Sends pods away, each by its uid: never another one that has taken its name."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._version = ""

    async def evict(self, namespace: str, name: str, uid: str) -> Result:
        """Ask once; to ask again is left to the caller."""
        body: Object = {"kind": "Eviction", "metadata": {"name": name, "namespace": namespace}}
        body["deleteOptions"] = {"preconditions": {"uid": uid}}
        try:
            body["apiVersion"] = await self._served_version()
            await self._client.request("POST", PODS.path(name, namespace, "eviction"), body=body, attempts=1)
        except ApiError as error:
            raise_if_cancelled()
            return _result(error)
        return Result(Outcome.EVICTED)

    async def delete(self, namespace: str, name: str, uid: str) -> Result:
        """Delete it, asking no budget, with the grace period that the pod itself has."""
        try:
            await self._client.delete(PODS, name, namespace, uid=uid)
        except ApiError as error:
            raise_if_cancelled()
            return _result(error)
        return Result(Outcome.DELETED)

    async def _served_version(self) -> str:
        if not self._version:
            answer = await self._client.request("GET", "/api/v1")
            try:
                (found,) = [each for each in answer["resources"] if each["name"] == "pods/eviction"]
                self._version = f"{found['group']}/{found['version']}"
            except (KeyError, TypeError, ValueError):
                raise AnswerError(f"the answer names no one pods/eviction: {str(answer)[:200]}") from None
        return self._version


def _result(error: ApiError) -> Result:
    if isinstance(error, NotFoundError | ConflictError):
        return Result(Outcome.GONE)
    refused = isinstance(error, TooManyRequestsError)
    return Result(Outcome.REFUSED if refused else Outcome.FAILED, str(error), error.retry_after or 0.0)
