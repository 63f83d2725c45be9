"""PodDisruptionBudgets: whether they allow that several pods are evicted together.

The API server checks them pod by pod. Of the pods of a gang it would evict as many as the budgets allow: to evict all
of them or none, the budgets have to be checked before the first eviction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

import msgspec

from gpuhealth.kube.client import Client, Object
from gpuhealth.kube.errors import UnreadableError
from gpuhealth.kube.kinds import Kind
from gpuhealth.kube.objects import Reader, text_of
from gpuhealth.kube.selectors import Selector, check_selector, matches


class EvictedPod(Protocol):
    """The properties of a pod that matter for its eviction."""

    @property
    def name(self) -> str:
        """Name of the pod, for messages."""

    @property
    def labels(self) -> Mapping[str, str]:
        """Labels by which budgets select the pod."""

    @property
    def pending(self) -> bool:
        """Whether it does not run yet: then the API server checks no budget."""

    @property
    def ready(self) -> bool:
        """Whether budgets count it as healthy."""


class PodDisruptionBudget(msgspec.Struct, frozen=True):
    """A PodDisruptionBudget, as far as evictions depend on it."""

    name: str
    selector: Selector | None
    allowed: int  # disruptions now
    protects_unready: bool = True  # whether it has to allow evictions of pods that are not ready, too


class PodDisruptionBudgets:
    """Reads PodDisruptionBudgets in the version that the API server serves."""

    def __init__(self, client: Client, on_unreadable: Callable[[UnreadableError], None] = lambda _: None) -> None:
        """`on_unreadable` is called once for each version of a budget that cannot be read."""
        self._client = client
        self._on_unreadable = on_unreadable
        self._reader: Reader[PodDisruptionBudget]
        self._kind: Kind | None = None

    async def of(self, namespace: str) -> list[PodDisruptionBudget]:
        """The budgets of a namespace as they are now. Raises UnreadableError if one cannot be read."""
        if self._kind is None:
            versions = await self._client.served_versions("policy")
            version = "policy/v1" if "policy/v1" in versions else "policy/v1beta1"  # v1 since 1.21, alone since 1.25
            self._kind = Kind(version, "PodDisruptionBudget", "poddisruptionbudgets", namespaced=True)
            self._reader = Reader(self._kind.kind, partial(read_budget, version=version), self._on_unreadable)
        found = await self._client.list(self._kind, namespace)
        return [self._reader.read(item) for item in found.items]


def read_budget(item: Object, version: str) -> PodDisruptionBudget:
    """Parse a PodDisruptionBudget of this API version as the API server would evaluate it."""
    spec, status = item["spec"], item.get("status") or {}
    selector = spec.get("selector")
    matches(selector, {})  # raises where it cannot be read
    if version == "policy/v1beta1" and not any((selector or {}).values()):
        selector = None  # in that version an empty selector selects nothing
    computed = status.get("observedGeneration", 0) >= item["metadata"].get("generation", 0)
    return PodDisruptionBudget(
        text_of(item["metadata"]["name"]),
        check_selector(selector),
        msgspec.convert(status.get("disruptionsAllowed", 0), int) if computed else 0,
        spec.get("unhealthyPodEvictionPolicy") != "AlwaysAllow",
    )


def blocking_reason(budgets: Sequence[PodDisruptionBudget], pods: Sequence[EvictedPod]) -> str:
    """Why not all of these pods of one namespace may be evicted now; empty if they may."""
    needed: Counter[str] = Counter()
    for pod in pods:
        if pod.pending:
            continue
        selecting = [budget for budget in budgets if matches(budget.selector, pod.labels)]
        if len(selecting) > 1:
            names = ", ".join(budget.name for budget in selecting)
            return f"{pod.name} has more than one PodDisruptionBudget ({names}): such a pod is never evicted"
        needed.update(budget.name for budget in selecting if budget.protects_unready or pod.ready)
    for budget in budgets:
        if needed[budget.name] > budget.allowed:
            return f"PodDisruptionBudget {budget.name} allows {budget.allowed} of {needed[budget.name]} evictions"
    return ""
