"""PodDisruptionBudgets: whether they allow that several pods go together.

The server asks them pod by pod. Of pods that are worth something only together it would let go as many as there is room
for: who wants all of them to go or none has to look before the first is asked.
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
from gpuhealth.kube.selectors import Selector, checked, matches


class Disrupted(Protocol):
    """What has to be known of a pod that is to go."""

    @property
    def name(self) -> str:
        """Of the pod."""

    @property
    def labels(self) -> Mapping[str, str]:
        """By which budgets select it."""

    @property
    def pending(self) -> bool:
        """Whether it runs not yet: then the server asks no budget."""

    @property
    def ready(self) -> bool:
        """Whether it is healthy, as budgets count."""


class Guard(msgspec.Struct, frozen=True):
    """A PodDisruptionBudget."""

    name: str
    selector: Selector | None
    allowed: int  # disruptions, now
    spares_unready: bool = True  # whether pods that are not ready need its leave, too


class Guards:
    """The PodDisruptionBudgets, in the version that the server serves."""

    def __init__(self, client: Client, noted: Callable[[UnreadableError], None] = lambda _error: None) -> None:
        """`noted` gets each version of one that cannot be read, once."""
        self._client = client
        self._noted = noted
        self._reader: Reader[Guard]
        self._kind: Kind | None = None

    async def of(self, namespace: str) -> list[Guard]:
        """Those of a namespace, as they are. UnreadableError where one cannot be read: what it allows is not known."""
        if self._kind is None:
            versions = await self._client.served_versions("policy")
            version = "policy/v1" if "policy/v1" in versions else "policy/v1beta1"  # v1 since 1.21, alone since 1.25
            self._kind = Kind(version, "PodDisruptionBudget", "poddisruptionbudgets", namespaced=True)
            self._reader = Reader(self._kind.kind, partial(guard, version=version), self._noted)
        found = await self._client.list(self._kind, namespace)
        return [self._reader.read(item) for item in found.items]


def guard(item: Object, version: str) -> Guard:
    """A PodDisruptionBudget as the server would be asked of it."""
    spec, status = item["spec"], item.get("status") or {}
    selector = spec.get("selector")
    matches(selector, {})  # raises where it cannot be read
    if version == "policy/v1beta1" and not any((selector or {}).values()):
        selector = None  # in that version an empty selector selects nothing
    computed = status.get("observedGeneration", 0) >= item["metadata"].get("generation", 0)
    return Guard(
        text_of(item["metadata"]["name"]),
        checked(selector),
        msgspec.convert(status.get("disruptionsAllowed", 0), int) if computed else 0,
        spec.get("unhealthyPodEvictionPolicy") != "AlwaysAllow",
    )


def obstacle(guards: Sequence[Guard], pods: Sequence[Disrupted]) -> str:
    """Why these pods of one namespace may not all be evicted now, for people; empty where they may."""
    asked: Counter[str] = Counter()
    for pod in pods:
        if pod.pending:
            continue
        its = [each for each in guards if matches(each.selector, pod.labels)]
        if len(its) > 1:
            names = ", ".join(each.name for each in its)
            return f"{pod.name} has more than one PodDisruptionBudget ({names}), and such a pod is never evicted"
        asked.update(each.name for each in its if each.spares_unready or pod.ready)
    for each in guards:
        if asked[each.name] > each.allowed:
            return f"PodDisruptionBudget {each.name} allows {each.allowed} of {asked[each.name]} to go"
    return ""
