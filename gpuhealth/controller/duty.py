"""The contract of a controller duty: its input, and its obligations to the controller.

A duty is one subject that only the leader works on, such as drains or the status of budgets. To add one, write a module
in gpuhealth/controller/duties/ and name its class in DUTIES there. Duties do not import each other: what one needs from
another is in the API server or in the DutyContext.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import ClassVar

import msgspec

from gpuhealth.api.budget import BudgetStatus
from gpuhealth.controller.timing import Timing
from gpuhealth.fleet.fleet import Fleet
from gpuhealth.kube.client import Client
from gpuhealth.kube.event_recorder import EventRecorder
from gpuhealth.monitors.settings import Settings
from gpuhealth.runtime.metric_families import Metric


class DutyContext(msgspec.Struct, frozen=True, kw_only=True):
    """Clients, settings and state that all duties of one controller share."""

    client: Client  # sends nothing, and raises NotLeadingError, unless this process leads
    fleet: Fleet
    settings: Settings
    timing: Timing
    recorder: EventRecorder
    clock: Callable[[], datetime]
    budgets: dict[str, BudgetStatus]  # by name, as last counted; written by the duty budget_status
    # By name of the budget, the nodes that hold its slots by the status last written; from the same duty.
    holders: dict[str, frozenset[str]]


class Duty(ABC):
    """One duty of the leader.

    It is made once in a controller process, and `run` is called each time that the process becomes the leader. What it
    counts for its metrics is one object, `status`.
    """

    name: ClassVar[str]
    """Name of its task in logs and of its metrics collector: that of its module."""
    runs_in_observe: ClassVar[bool] = True
    """Whether it runs in mode observe. A duty that writes to Nodes does not."""

    def __init__(self, context: DutyContext) -> None:
        self._client = context.client
        self._fleet = context.fleet
        self._timing = context.timing
        self._recorder = context.recorder
        self._clock = context.clock

    @abstractmethod
    async def run(self) -> None:
        """Work until cancelled. The supervisor logs and counts any error raised, and calls `run` again."""

    def counters(self) -> Iterator[Metric]:
        """Counters of what this process has done; exposed by every controller."""
        yield from ()

    def gauges(self) -> Iterator[Metric]:
        """Gauges of the fleet; exposed by the leader alone, or a sum over controllers would count each node twice."""
        yield from ()
