"""The health of the node: judges readings and events as they arrive, tracks findings, and publishes every change."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
import structlog

from gpuhealth.agent.status import Counts
from gpuhealth.kernel_log.boot_log import EarlierFault
from gpuhealth.model.component import NODE, Component, Kind
from gpuhealth.model.finding import Finding, Outcome
from gpuhealth.model.kernel_event import KernelEvent
from gpuhealth.model.pci import slot_of
from gpuhealth.model.tracker import Change, ChangeKind, FindingTracker
from gpuhealth.model.verdict import State, Verdict
from gpuhealth.monitors.judge import Judge
from gpuhealth.monitors.registry import AnyMonitor, known_codes
from gpuhealth.runtime.clock import SteadyClock
from gpuhealth.runtime.journal import Entry, entry_of
from gpuhealth.runtime.journal_writer import JournalWriter, RepeatFilter

log = structlog.get_logger()

_MAX_UNKNOWN_SLOTS = 64
"""How many PCI slots that are not those of known GPUs are distinguished: a log may name any number."""
_OTHER = "other"
"""Stands for all XIDs that are not in the catalogue, in metrics."""


class NodeHealth:
    """Judge and tracker of one node. `on_change` is called whenever the verdict may have changed."""

    def __init__(
        self,
        judge: Judge,
        tracker: FindingTracker,
        journal: JournalWriter,
        clock: SteadyClock,
        on_change: Callable[[], None],
    ) -> None:
        self.judge = judge
        self.tracker = tracker
        self.counts = Counts()
        self.verdict: Verdict | None = None  # None until every monitor has had a round, and the backlog is judged
        self.awaits_backlog = False  # records of the kernel log from before the agent's start are still to be judged
        self.judge_seconds: dict[str, float] = {}  # by monitor, of the last round
        self.last_round: dict[str, datetime] = {}  # by monitor
        self._journal = journal
        self._clock = clock
        self._on_change = on_change
        self._repeats = RepeatFilter()
        self._codes = frozenset(known_codes())
        self._unknown_slots: set[str] = set()  # PCI slots in the kernel log that are not those of known GPUs

    def apply_round(self, monitor: AnyMonitor, readings: Any, failure: str = "") -> None:
        """Judges one monitor's round and publishes the changes."""
        now = self._clock()
        began = time.monotonic()
        outcomes = self.judge.round(monitor, readings, now, failure=failure)
        self.tracker.set_gpu_aliases(self._gpu_aliases())
        changes = self.tracker.apply_round(monitor.name, outcomes, self.judge.facts())
        self.judge_seconds[monitor.name] = time.monotonic() - began
        self.last_round[monitor.name] = now
        self.counts.rounds[monitor.name] += 1
        self.publish(changes)

    def apply_events(self, events: Sequence[KernelEvent]) -> None:
        """Judges kernel events at once and publishes the changes."""
        now = self._clock()
        outcomes: list[Outcome] = self.judge.judge_events(events, now)
        changes = self.tracker.apply(outcomes, now, self.judge.readings.boot_id, dated=True)
        for event in events:
            self.counts.kernel_events[event.kind] += 1
            if event.kind == "xid":
                number = str(event.code) if event.finding in self._codes else _OTHER
                self.counts.xids[number, self._component_of(event).id if event.pci else ""] += 1
            self._journal_event(event, now)
        self.publish(changes)

    def apply_earlier(self, faults: Sequence[EarlierFault]) -> None:
        """Judges faults that were logged before the agent's first look-back, and publishes those that are not over."""
        now = self._clock()
        outcomes, over = self.judge.judge_earlier(faults, now)
        for event, reason in over:
            log.info("earlier fault is over", code=event.finding, time=str(event.time), reason=reason, line=event.line)
        self.publish(self.tracker.apply_earlier(outcomes, now, self.judge.readings.boot_id))

    def publish(self, changes: list[Change]) -> None:
        """Publishes changes: log, journal, metrics, marks on the Node."""
        for change in changes:
            if change.kind is ChangeKind.RAISED:
                self.counts.findings[change.finding.code] += 1
            _log_change(change)
        if not self.awaits_backlog and all(monitor.name in self.last_round for monitor in self.judge.monitors):
            self.verdict = self.tracker.verdict(self.judge.facts())
        self._on_change()
        if changes:
            self._journal.append(*(entry_of(change) for change in changes))

    def backlog_ended(self) -> None:
        """Publishes the first verdict, if every monitor has had a round: no older record can change it any more."""
        if self.awaits_backlog:
            self.awaits_backlog = False
            self.publish([])

    def is_current(self, within_seconds: Mapping[str, float]) -> bool:
        """Whether the last round of every monitor is within its maximum age, given by name."""
        now = self._clock()
        return bool(self.last_round) and all(
            name in self.last_round and (now - self.last_round[name]).total_seconds() < seconds
            for name, seconds in within_seconds.items()
        )

    def shift(self, seconds: float) -> None:
        """Shifts every time by the seconds by which the wall clock was set."""
        self.tracker.shift(seconds)
        self.judge.shift(seconds)
        step = timedelta(seconds=seconds)
        self.last_round = {name: when + step for name, when in self.last_round.items()}
        if self.verdict is not None:
            self.verdict = msgspec.structs.replace(self.verdict, time=self.verdict.time + step)

    def state(self) -> State:
        """The state of the node as last judged; unknown before the first round."""
        return self.verdict.verdict if self.verdict else State.UNKNOWN

    def _gpu_aliases(self) -> dict[str, str]:
        """Ids of the GPUs listed now, by their possible earlier names: address, slot, index."""
        listed = [info for info in self.judge.components if info.component.kind is Kind.GPU and info.index >= 0]
        aliases = {f"gpu{info.index}": info.component.id for info in listed}
        for info in listed:
            if info.pci is not None:
                aliases |= dict.fromkeys((info.pci, slot_of(info.pci)), info.component.id)
        return {name: known for name, known in aliases.items() if name != known}

    def _component_of(self, event: KernelEvent) -> Component:
        """The GPU in the event's PCI slot; a PCI device for one of the first slots of no known GPU; else the node."""
        if event.pci is None:
            return NODE
        known = next((info for info in self.judge.components if info.is_in(event.pci)), None)
        if known:
            return known.component
        if event.pci not in self._unknown_slots and len(self._unknown_slots) >= _MAX_UNKNOWN_SLOTS:
            return NODE
        self._unknown_slots.add(event.pci)
        return Component(Kind.PCI_DEVICE, event.pci)

    def _journal_event(self, event: KernelEvent, now: datetime) -> None:
        """Journals a kernel event; a recurring one more and more rarely, with the number of repetitions."""
        component = self._component_of(event)
        code = event.finding if event.finding in self._codes else event.kind
        repeats = self._repeats.suppressed((code, component.id), time.monotonic())
        if repeats is None:
            return
        message = event.meaning + (f" ({repeats} more since the last entry)" if repeats else "")
        entry = Entry(
            time=event.time or now,
            kind="kernel",
            code=event.finding,
            component=component,
            message=message,
            severity=str(event.severity),
            detail=event.line,
        )
        self._journal.append(entry)


def _log_change(change: Change) -> None:
    finding: Finding = change.finding
    level = log.info if change.kind is ChangeKind.CLEARED else log.warning
    level(
        f"finding {change.kind}",
        code=finding.code,
        severity=str(finding.severity),
        component=finding.component.name,
        message=finding.message,
        action=str(finding.action),
        reason=change.reason,
    )
