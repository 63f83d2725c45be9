"""What a monitor is: everything about one subject, under one name.

To add a monitor, write a folder with its settings, readings, probe, checks and, where it has them, kernel-log patterns
and metrics; then name its MONITOR in `gpuhealth/monitors/__init__.py`. Monitors do not import each other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, Protocol, TypeVar

import msgspec
from prometheus_client.core import Metric

from gpuhealth.kernel_log.pattern import LogPatterns
from gpuhealth.model.burnin_run import BurninRun
from gpuhealth.model.codes import Code
from gpuhealth.model.component import ComponentInfo, Kind
from gpuhealth.model.context import Check, CheckContext
from gpuhealth.model.finding import Outcome
from gpuhealth.model.kernel_event import KernelLogStatus
from gpuhealth.model.missing import UNREAD, Missing, MissingReason, Reading
from gpuhealth.runtime.clock import Now, wall_clock
from gpuhealth.runtime.settings import CoreSettings, Section

R = TypeVar("R", bound=msgspec.Struct)
R_co = TypeVar("R_co", bound=msgspec.Struct, covariant=True)
S = TypeVar("S", bound=Section)
B = TypeVar("B", bound=msgspec.Struct)

DEADLINE_SECONDS = 10.0


class RestartRequiredError(Exception):
    """Raised by a probe that only a new process, in a new container, can go on with; the text says why."""


class NoSettings(Section):
    """The settings of a monitor that has none of its own."""


class NoBaseline(msgspec.Struct):
    """The memory of a monitor that remembers nothing of the node."""


class Probe(Protocol[R_co]):
    """Reads one subject. The runner calls it, never twice at once."""

    async def read(self) -> R_co | Missing:
        """One round of readings.

        What cannot be read is a Missing in its field. An exception, or no answer within the monitor's deadline, costs
        the whole round of this monitor and of no other.
        """

    def configure(self, settings: Any) -> None:
        """Takes changed settings of this monitor; they hold from the next round on."""

    def close(self) -> None:
        """Frees what the probe holds. Does not wait."""


class ProbeContext(msgspec.Struct, Generic[S, B], kw_only=True):
    """What a probe is given: settings, the monitor's memory, and what other parts of the agent know."""

    core: CoreSettings
    settings: S
    baseline: B
    boot_id: str = ""
    now: Now = wall_clock
    interval: float | None = None  # seconds between two rounds; None for a single look at the node
    kernel_log: Callable[[], Reading[KernelLogStatus]] = lambda: UNREAD
    annotations: Callable[[], Reading[Mapping[str, str]]] = lambda: Missing(MissingReason.NOT_SUPPORTED)  # of our Node


class MonitorFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a monitor knows of the node beside the outcomes of its checks."""

    components: tuple[ComponentInfo, ...] = ()  # present and remembered ones
    complete: frozenset[Kind] = frozenset()  # kinds of which every component was listed: what is absent is gone
    versions: dict[str, str] = {}  # of software, such as {"driver": "570.86.15"}
    burnins: tuple[BurninRun, ...] = ()  # results that lie on the node
    excused: MissingReason | None = None  # why readings may be missing without making anything unknown


class MetricsContext(msgspec.Struct, Generic[R, S], kw_only=True):
    """What a monitor's metrics are made of."""

    readings: Reading[R]  # Missing while there is nothing current
    last_readings: Reading[R]  # of the last round, however old
    settings: S
    probe: Probe[R]


class Monitor(msgspec.Struct, Generic[R, S, B], frozen=True, kw_only=True):
    """One subject: how it is read, judged and shown."""

    name: str
    summary: str  # one sentence for the reference
    readings: type[R]
    probe: Callable[[ProbeContext[S, B]], Probe[R]]
    checks: tuple[Check[CheckContext[Reading[R], S, B]], ...]
    settings: type[S]
    baseline: type[B]
    deadline: float = DEADLINE_SECONDS  # for one round; the setting monitors.NAME.deadline overrides it
    patterns: LogPatterns | None = None  # of the kernel log
    judge_events: Callable[[CheckContext[Reading[R], S, B]], Iterable[Outcome]] | None = None
    """What follows from kernel-log events alone, as soon as they come."""
    facts: Callable[[CheckContext[Reading[R], S, B]], MonitorFacts] | None = None
    adjust_code: Callable[[Code, S], Code] | None = None
    """What the monitor's settings change of a finding code."""
    remember: Callable[[CheckContext[Reading[R], S, B]], None] | None = None
    """Updates the baseline, after the checks of a round."""
    metrics: Mapping[str, Callable[[MetricsContext[R, S]], Iterator[Metric]]] = {}
    """By the name of the collector; each fails alone."""

    @property
    def codes(self) -> tuple[Code, ...]:
        """Every finding code of the monitor, each once."""
        return tuple({code.name: code for check in self.checks for code in check.codes}.values())


class FunctionProbe(Generic[R, S]):
    """A probe of one blocking function, called in a thread: a file system that hangs must not hold up the agent."""

    def __init__(self, read: Callable[[S], R | Missing], settings: S) -> None:
        self._read = read
        self._settings = settings

    async def read(self) -> R | Missing:
        """Calls the function in a thread and returns its readings."""
        return await asyncio.to_thread(self._read, self._settings)

    def configure(self, settings: S) -> None:
        """Takes changed settings."""
        self._settings = settings

    def close(self) -> None:
        """Does nothing: no handle is held, and a thread that hangs ends with the process."""
