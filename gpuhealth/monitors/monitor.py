"""Definition of a monitor: everything about one subject, under one name.

To add a monitor, write a folder with its settings, readings, probe, checks and, if needed, kernel-log patterns and
metrics; then name its MONITOR in `gpuhealth/monitors/__init__.py`. Monitors do not import each other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, Protocol, TypeVar

import msgspec
from prometheus_client.core import Metric

from gpuhealth.kernel_log.boot_log import EarlierFault
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
    """Raised by a probe that needs a new process, in a new container, to continue; the text has the reason."""


class NoSettings(Section):
    """The settings of a monitor without settings of its own."""


class NoBaseline(msgspec.Struct):
    """The baseline of a monitor that stores nothing about the node."""


class Probe(Protocol[R_co]):
    """Reads one subject. The runner calls it, never concurrently."""

    async def read(self) -> R_co | Missing:
        """One round of readings.

        An unreadable value is a Missing in its field. An exception, or no answer within the deadline of the monitor,
        costs the whole round of this monitor, but of no other.
        """

    def configure(self, settings: Any) -> None:
        """Applies changed settings of this monitor from the next round on."""

    def close(self) -> None:
        """Releases the probe's resources without waiting."""


class ProbeContext(msgspec.Struct, Generic[S, B], kw_only=True):
    """Input of a probe: settings, the monitor's baseline, and values from other parts of the agent."""

    core: CoreSettings
    settings: S
    baseline: B
    boot_id: str = ""
    now: Now = wall_clock
    interval: float | None = None  # seconds between two rounds; None for a single check
    kernel_log: Callable[[], Reading[KernelLogStatus]] = lambda: UNREAD
    annotations: Callable[[], Reading[Mapping[str, str]]] = lambda: Missing(MissingReason.NOT_SUPPORTED)  # of our Node


class MonitorFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Facts about the node from a monitor, in addition to the outcomes of its checks."""

    components: tuple[ComponentInfo, ...] = ()  # present and remembered ones
    complete: frozenset[Kind] = frozenset()  # kinds whose components were all listed: an absent component is gone
    versions: dict[str, str] = {}  # of software, such as {"driver": "570.86.15"}
    burnins: tuple[BurninRun, ...] = ()  # burn-in results stored on the node
    excused: MissingReason | None = None  # why readings may be missing without making anything unknown


class MetricsContext(msgspec.Struct, Generic[R, S], kw_only=True):
    """Input of a monitor's metrics."""

    readings: Reading[R]  # Missing if there are no current ones
    last_readings: Reading[R]  # of the last round, at any age
    settings: S
    probe: Probe[R]


class Monitor(msgspec.Struct, Generic[R, S, B], frozen=True, kw_only=True):
    """One subject: its probe, checks and metrics."""

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
    """Outcomes of kernel-log events alone, as soon as they arrive."""
    recovery: Callable[[CheckContext[Reading[R], S, B], EarlierFault], str] | None = None
    """Why a fault that was logged long before the first round is over, in words; empty while nothing proves it."""
    facts: Callable[[CheckContext[Reading[R], S, B]], MonitorFacts] | None = None
    adjust_code: Callable[[Code, S], Code] | None = None
    """Changes to a finding code by the monitor's settings."""
    remember: Callable[[CheckContext[Reading[R], S, B]], None] | None = None
    """Updates the baseline, after the checks of a round."""
    metrics: Mapping[str, Callable[[MetricsContext[R, S]], Iterator[Metric]]] = {}
    """Collectors by name; each fails independently."""

    @property
    def codes(self) -> tuple[Code, ...]:
        """Every finding code of the monitor, each once."""
        return tuple({code.name: code for check in self.checks for code in check.codes}.values())


class FunctionProbe(Generic[R, S]):
    """A probe of one blocking function, called in a thread: a hung file system must not block the agent."""

    def __init__(self, read: Callable[[S], R | Missing], settings: S) -> None:
        self._read = read
        self._settings = settings

    async def read(self) -> R | Missing:
        """Calls the function in a thread and returns its readings."""
        return await asyncio.to_thread(self._read, self._settings)

    def configure(self, settings: S) -> None:
        """Applies changed settings from the next round on."""
        self._settings = settings

    def close(self) -> None:
        """Does nothing: no handle is held, and a hung thread ends with the process."""
