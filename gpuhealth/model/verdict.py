"""The verdict on a node and on each of its components."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from datetime import datetime

import msgspec

from gpuhealth.model.component import Component, Kind
from gpuhealth.model.finding import Finding
from gpuhealth.model.missing import Missing, MissingReason


class State(enum.StrEnum):
    """The state of a node or a component. Unknown never counts as healthy."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"
    UNKNOWN = "unknown"

    @staticmethod
    def combined(states: Iterable[State]) -> State:
        """The state of a whole from the states of its parts: the worst of them, or unknown without parts."""
        given = set(states)
        for worst in (State.UNHEALTHY, State.UNKNOWN, State.DEGRADED):
            if worst in given:
                return worst
        return State.HEALTHY if given else State.UNKNOWN


class ComponentVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """The state of one component."""

    kind: Kind
    id: str
    parent: str = ""
    verdict: State

    @property
    def component(self) -> Component:
        """The component that has this state."""
        return Component(self.kind, self.id, self.parent)


class MigVerdict(msgspec.Struct, frozen=True):
    """The state of one MIG device of a GPU."""

    uuid: str
    gpu_instance: int
    verdict: State


class GpuVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """The state of one GPU, with its identification."""

    index: int  # -1 for one that NVML no longer lists
    uuid: str
    pci: str
    model: str
    verdict: State
    mig: tuple[MigVerdict, ...] = ()


class NotCovered(msgspec.Struct, frozen=True):
    """A check that could not be made on a component, and why."""

    check: str
    component: Component
    reason: MissingReason
    detail: str = ""

    def __str__(self) -> str:
        return str(Missing(self.reason, self.detail))


class Coverage(msgspec.Struct, frozen=True):
    """Finding codes checked in the last round, and those that could not be checked."""

    checked: tuple[str, ...]
    not_checked: tuple[NotCovered, ...]

    def in_words(self, excused: MissingReason | None = None) -> list[tuple[str, str]]:
        """Each check that could not be made, with reason and components, for display.

        Checks that are missing for an `excused` reason are left out.
        """
        grouped: dict[tuple[str, str], list[str]] = {}
        for item in self.not_checked:
            if excused is None or item.reason is not excused:
                grouped.setdefault((item.check, str(item)), []).append(item.component.id)
        return [(check, f"{reason} ({', '.join(sorted(where))})") for (check, reason), where in grouped.items()]


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a node at a point in time."""

    node: str
    time: datetime
    verdict: State
    components: tuple[ComponentVerdict, ...] = ()  # all except the node itself
    gpus: tuple[GpuVerdict, ...] = ()
    findings: tuple[Finding, ...] = ()
    coverage: Coverage

    @property
    def is_known(self) -> bool:
        """Whether neither the node nor any component is unknown."""
        return State.UNKNOWN not in {self.verdict, *(component.verdict for component in self.components)}
