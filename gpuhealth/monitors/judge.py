"""Runs the checks of all monitors over their readings, with one stored state for the node.

Used by the agent, `gpuhealth check` and `--replay` alike. It reads neither the node nor a clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeAlias

import msgspec
import structlog

from gpuhealth.kernel_log.boot_log import EarlierFault
from gpuhealth.model.codes import CODES, Code
from gpuhealth.model.component import Component, ComponentInfo, Kind
from gpuhealth.model.context import Check, CheckContext
from gpuhealth.model.finding import Finding, Outcome
from gpuhealth.model.history import History
from gpuhealth.model.kernel_event import KernelEvent
from gpuhealth.model.missing import UNREAD, Missing, MissingReason
from gpuhealth.model.tracker import NodeFacts, TrackerRules
from gpuhealth.monitors.monitor import MonitorFacts
from gpuhealth.monitors.own_faults import MONITOR_FAILED
from gpuhealth.monitors.readings import NodeReadings
from gpuhealth.monitors.registry import AnyMonitor, enabled, monitors
from gpuhealth.runtime.settings import CoreSettings

log = structlog.get_logger()

Context: TypeAlias = CheckContext[Any, Any, Any]

KERNEL_LOG = "kernel_log"
"""The monitor whose readings every check may read: whether lines of the kernel log reach the agent at all."""


class Memory(msgspec.Struct):
    """State that the checks of a node keep across rounds and restarts."""

    history: History = msgspec.field(default_factory=History)
    baselines: dict[str, Any] = {}  # by monitor

    def baseline(self, monitor: AnyMonitor) -> Any:
        """The stored state of one monitor; empty at first."""
        if monitor.name not in self.baselines:
            self.baselines[monitor.name] = monitor.baseline()
        return self.baselines[monitor.name]


class _EncodedMemory(msgspec.Struct):
    history: History
    baselines: dict[str, msgspec.Raw]


def decode_memory(text: bytes) -> Memory:
    """The state in a JSON object. Raises msgspec.DecodeError for that of another version, or anything else."""
    encoded = msgspec.json.decode(text, type=_EncodedMemory)
    baselines = {
        monitor.name: msgspec.json.decode(encoded.baselines[monitor.name], type=monitor.baseline)
        for monitor in monitors()
        if monitor.name in encoded.baselines
    }
    return Memory(encoded.history, baselines)


def tracker_rules(settings: CoreSettings, node_labels: dict[str, str] | None = None) -> TrackerRules:
    """Settings that apply to findings on a node with these labels."""
    adjustments = [monitor.adjust_code for monitor in monitors() if monitor.adjust_code]

    def code_of(finding: Finding) -> Code:
        code = CODES.of(finding)
        for adjust in adjustments:
            code = adjust(code, settings)
        return code

    return TrackerRules(
        policy=lambda name: settings.policy(name, node_labels),
        code_of=code_of,
        unknown_after=settings.unknown_after,
        test_before_return=settings.quarantine.test_before_return,
    )


class Judge:
    """Judges one node: takes readings monitor by monitor, and returns the outcomes of their checks."""

    def __init__(
        self, settings: CoreSettings, memory: Memory | None = None, *, boot_id: str = "", time: datetime
    ) -> None:
        """`time` is when judging begins; before a monitor's first round only stored state is available."""
        self.memory = memory or Memory()
        self.readings = NodeReadings(node=settings.node_name, time=time, boot_id=boot_id)
        self.failures: Counter[str] = Counter()  # checks that raised, by monitor
        self.configure(settings)
        self._failed: set[str] = set()  # monitors that have failed and not recovered since
        self._facts: dict[str, MonitorFacts] = {}
        self._complete: dict[str, MonitorFacts] = {}
        for monitor in self.monitors:
            self._take_facts(monitor)

    def configure(self, settings: CoreSettings) -> None:
        """Applies new settings from the next round on."""
        self._settings = settings
        self.monitors = enabled(settings)

    def round(
        self,
        monitor: AnyMonitor,
        readings: Any,
        time: datetime,
        events: Sequence[KernelEvent] = (),
        failure: str = "",
    ) -> list[Outcome]:
        """The outcomes of one monitor's round. `failure` is the error of a probe that raised one."""
        self.set_readings(monitor, readings, time)
        context = self.context(monitor, tuple(events))
        outcomes: list[Outcome] = []
        for check in monitor.checks:
            try:
                outcomes += check.run(context)
            except Exception as error:  # noqa: BLE001 - a bug in one check must not end the others
                failure = f"{type(error).__name__}: {error}"
                outcomes += self._check_failed(monitor, check, error, failure)
        outcomes += self._own_fault(monitor, failure, time)
        if monitor.remember:
            monitor.remember(context)
        return outcomes

    def _check_failed(
        self, monitor: AnyMonitor, check: Check[Any], error: Exception, failure: str
    ) -> Iterator[Outcome]:
        """Runs one check: a bug in it costs its own codes, and no other check."""
        self.failures[monitor.name] += 1
        log.error("check failed", monitor=monitor.name, codes=[code.name for code in check.codes], exc_info=error)
        for code in check.codes:
            yield code.not_checked(Missing(MissingReason.AGENT_FAULT, f"the check failed: {failure}"))

    def _own_fault(self, monitor: AnyMonitor, failure: str, time: datetime) -> Iterator[Outcome]:
        component = Component(Kind.MONITOR, monitor.name)
        if failure:
            self._failed.add(monitor.name)
            message = f"monitor {monitor.name}: {failure}"
            yield MONITOR_FAILED.found(component, message, now=time, source="agent", reading=failure)
        elif monitor.name in self._failed:
            yield MONITOR_FAILED.clean(component)

    def judge_events(self, events: Sequence[KernelEvent], time: datetime) -> list[Outcome]:
        """The outcomes of kernel-log events alone, as soon as they arrive."""
        self.readings = msgspec.structs.replace(self.readings, time=time)
        outcomes: list[Outcome] = []
        for monitor in self.monitors:
            if monitor.judge_events:
                outcomes += monitor.judge_events(self.context(monitor, tuple(events)))
        return outcomes

    def judge_earlier(
        self, faults: Sequence[EarlierFault], time: datetime
    ) -> tuple[list[Outcome], list[tuple[KernelEvent, str]]]:
        """The outcomes of faults logged long ago, and the events of those that are over, with the evidence."""
        lasting, over = [], []
        for fault in faults:
            reasons = [monitor.recovery(self.context(monitor), fault) for monitor in self.monitors if monitor.recovery]
            if reason := next(filter(None, reasons), ""):
                over.append((fault.event, reason))
            else:
                lasting.append(fault.event)
        memory, self.memory = self.memory, Memory(baselines=self.memory.baselines)  # each counts, counted before or not
        try:
            return self.judge_events(lasting, time), over
        finally:
            self.memory = memory

    def set_readings(self, monitor: AnyMonitor, readings: Any, time: datetime) -> None:
        """Sets readings of a monitor without judging them."""
        latest = self.readings.with_readings(monitor, readings)
        self.readings = msgspec.structs.replace(latest, time=time)
        self._take_facts(monitor)

    def _take_facts(self, monitor: AnyMonitor) -> None:
        if monitor.facts is None:
            return
        facts = self._facts[monitor.name] = monitor.facts(self.context(monitor))
        if facts.complete:
            self._complete[monitor.name] = facts

    def shift(self, seconds: float) -> None:
        """Shifts every time by the seconds by which the wall clock was set."""
        self.memory.history.shift(seconds)
        moved = self.readings.time + timedelta(seconds=seconds)
        self.readings = msgspec.structs.replace(self.readings, time=moved)

    def prune(self) -> None:
        """Drops state that no check has used for long."""
        self.memory.history.prune(self.readings.time.timestamp(), self._settings.longest_window())

    def context(self, monitor: AnyMonitor, events: tuple[KernelEvent, ...] = ()) -> Context:
        """Input of a monitor's checks: its latest readings, and these events."""
        readings = self.readings
        return CheckContext(
            node=readings.node,
            time=readings.time,
            boot_id=readings.boot_id,
            readings=readings.of(monitor),
            settings=self._settings,
            baseline=self.memory.baseline(monitor),
            history=self.memory.history,
            components=self.components,
            kernel_log=readings.monitors.get(KERNEL_LOG, UNREAD),
            events=events,
        )

    @property
    def components(self) -> tuple[ComponentInfo, ...]:
        """The components of the node, present or remembered, as far as known."""
        return tuple(info for facts in self._facts.values() for info in facts.components)

    @property
    def last_complete(self) -> tuple[ComponentInfo, ...]:
        """The components as of the last complete listing of each monitor."""
        return tuple(info for facts in self._complete.values() for info in facts.components)

    @property
    def versions(self) -> dict[str, str]:
        """Versions of software, as last reported by each monitor."""
        known: dict[str, str] = {}
        for facts in (*self._complete.values(), *self._facts.values()):
            known |= facts.versions
        return known

    def facts(self) -> NodeFacts:
        """Facts about the node, as of the last round, that the tracker needs in addition to outcomes."""
        facts = self._facts.values()
        return NodeFacts(
            node=self.readings.node,
            time=self.readings.time,
            boot_id=self.readings.boot_id,
            components=self.components,
            complete=frozenset(kind for part in facts for kind in part.complete),
            burnins=tuple(run for part in facts for run in part.burnins),
            excused=next((part.excused for part in facts if part.excused), None),
        )
