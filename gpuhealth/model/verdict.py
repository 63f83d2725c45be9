"""The verdict on a node and its components."""

from __future__ import annotations

import enum
from datetime import datetime

import msgspec

from gpuhealth.model.finding import Finding


class State(enum.StrEnum):
    """What a verdict says of a node or a GPU. Unknown is no kind of healthy."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"
    UNKNOWN = "unknown"

    @staticmethod
    def combined(states: list[State]) -> State:
        """The state of a whole from those of its parts; of no parts nothing is known."""
        for worst in (State.UNHEALTHY, State.UNKNOWN, State.DEGRADED):
            if worst in states:
                return worst
        return State.HEALTHY if states else State.UNKNOWN


class MigVerdict(msgspec.Struct, frozen=True):
    """One MIG device of a GPU."""

    uuid: str
    gpu_instance: int
    verdict: State


class GpuVerdict(msgspec.Struct, frozen=True):
    """One GPU of a verdict."""

    index: int
    uuid: str
    pci: str
    model: str
    verdict: State
    mig: tuple[MigVerdict, ...] = ()


class NotCovered(msgspec.Struct, frozen=True):
    """A check that did not happen, and why."""

    check: str
    reason: str


class Coverage(msgspec.Struct, frozen=True):
    """Which finding codes were looked for, and which could not be."""

    checked: tuple[str, ...]
    not_checked: tuple[NotCovered, ...]


class Verdict(msgspec.Struct, frozen=True):
    """What is to be thought of a node at one time."""

    node: str
    time: datetime
    verdict: State
    gpus: tuple[GpuVerdict, ...]
    findings: tuple[Finding, ...]
    coverage: Coverage

    @property
    def is_known(self) -> bool:
        """Whether nothing of it is unknown."""
        return State.UNKNOWN not in {self.verdict, *(gpu.verdict for gpu in self.gpus)}
