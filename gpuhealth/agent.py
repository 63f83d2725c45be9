"""One node: probes are read, readings judged, findings kept, and the node is marked.

One event loop, one TaskGroup, every loop guarded: a fault in one of them is logged and counted and does not touch the
others. Kernel-log records act when they come; everything else acts once a round. Journal and API server are served by
loops of their own, so that neither a slow disk nor an outage holds up what is seen.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import structlog

from gpuhealth import checks, config
from gpuhealth.catalog.kernel_lines import KernelLog as KernelLogParser
from gpuhealth.checks.history import History
from gpuhealth.config import ConfigError, Settings
from gpuhealth.journal import Entry, Journal, JournalError
from gpuhealth.model import KernelEvent, Missing, MissingReason, Reading, Verdict
from gpuhealth.probes.kmsg import KmsgReader, Position
from gpuhealth.probes.node import NodeProbe
from gpuhealth.readings import KernelLog, NodeReadings
from gpuhealth.verdict import Change, ChangeKind, Findings, Ledger

log = structlog.get_logger()

_MEMORY_SECONDS = 60.0  # what changes in every round, such as counters, is remembered this often
_RETRY_SECONDS = 5.0
_MAX_UNWRITTEN = 10_000  # journal entries held while the disk refuses them
_REPEAT_SECONDS = 60.0  # a kernel event that goes on is journalled this often, with a count

Service = Callable[["Agent"], Awaitable[None]]
"""Something that runs beside the agent and looks at it, such as the HTTP server."""


class Counts(msgspec.Struct):
    """What happened since the agent started; for metrics."""

    findings: Counter[str] = msgspec.field(default_factory=Counter)  # by code
    xids: Counter[tuple[str, str]] = msgspec.field(default_factory=Counter)  # by XID and PCI address
    kernel_events: Counter[str] = msgspec.field(default_factory=Counter)  # by kind
    failures: Counter[str] = msgspec.field(default_factory=Counter)  # by loop
    api_calls: Counter[tuple[str, int]] = msgspec.field(default_factory=Counter)  # by method and status
    kernel_records: int = 0
    lost_records: int = 0
    journal_errors: int = 0


class Clock:
    """Wall-clock time that never steps: what it said at the start, and the monotonic time since."""

    def __init__(self) -> None:
        self._wall = datetime.now(UTC)
        self._monotonic = time.monotonic()

    def __call__(self) -> datetime:
        return self._wall + timedelta(seconds=time.monotonic() - self._monotonic)


class Agent:
    """The agent of one node. What is public is what the HTTP server shows."""

    def __init__(self, settings: Settings, config_path: Path | None = None, services: Sequence[Service] = ()) -> None:
        """`services` run in the agent's TaskGroup. Raises nothing: what is not there is reported by the checks."""
        self.settings = settings
        self.clock = Clock()
        self.probe = NodeProbe(settings)
        self.counts = Counts()
        self.readings: NodeReadings | None = None
        self.verdict: Verdict | None = None
        self.version = 0  # grows with every change of what is shown
        self.http_port = 0
        self.config_valid = True
        self.kmsg_lag_seconds = 0.0
        self.nvml_waiting_seconds = 0.0
        self.probe_seconds: dict[str, float] = {}
        self.check_seconds: dict[str, float] = {}
        self.held_budgets: tuple[str, ...] = ()
        self._config_path = config_path
        self._config_stamp = _stamp(config_path)
        self._services = services
        self._journal: Journal | None = None
        self._unwritten: list[Entry] = []
        self._write_wanted = asyncio.Event()
        self._remembered_at = 0.0
        self._position: Position | None = None
        self._parser = KernelLogParser()
        self._kernel_log: Reading[KernelLog] = Missing(MissingReason.ERROR, "the kernel log has not been opened yet")
        self._repeats: dict[tuple[str, str], tuple[float, int]] = {}
        self._desired_changed = asyncio.Event()
        self._recall()

    # -- life ---------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Runs until SIGTERM or SIGINT; then everything is written down and let go."""
        loop = asyncio.get_running_loop()
        main = asyncio.current_task()
        assert main is not None
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, main.cancel)
        loop.add_signal_handler(signal.SIGUSR1, self._release_on_signal)
        log.info("agent starts", node=self.settings.node_name, mode=self.settings.mode, boot_id=self.probe.boot_id)
        try:
            async with asyncio.TaskGroup() as group:
                for name, task in (
                    ("rounds", self._round),
                    ("kernel_log", self._follow_kernel_log),
                    ("journal", self._write_journal),
                ):
                    group.create_task(self._forever(name, task), name=name)
                for service in self._services:
                    group.create_task(service(self))  # type: ignore[arg-type]
        except asyncio.CancelledError:
            log.info("agent stops", node=self.settings.node_name)
        finally:
            self._finish()

    async def _forever(self, name: str, step: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await step()
            except Exception:  # a fault in one loop must not end the others; it is logged and counted
                self.counts.failures[name] += 1
                log.exception("unexpected error", loop=name)
                await asyncio.sleep(1.0)

    def _finish(self) -> None:
        self._remember()
        if self._journal:
            self._journal.close()
        self.probe.nvml.close()

    # -- rounds -------------------------------------------------------------------------------------------------------

    async def _round(self) -> None:
        """One round: read, judge, publish; then sleep until the next is due."""
        began = time.monotonic()
        self._reload_if_changed()
        readings = await self.probe.read(self.settings.interval, self._take_kernel_log(), self.clock)
        self.probe_seconds["node"] = time.monotonic() - began
        if not isinstance(readings.nvml, Missing):
            self.nvml_waiting_seconds = readings.nvml.waiting_seconds
            self.probe_seconds["nvml"] = readings.nvml.waiting_seconds
        self.readings = readings
        outcomes = checks.judge(readings, self.settings, self._history, self.check_seconds)
        self._publish(self.findings.take_round(outcomes, readings.time, readings.boot_id), readings)
        if time.monotonic() - self._remembered_at > _MEMORY_SECONDS:
            self._write_wanted.set()
        # A round that was waited for is followed at once: the deadlines count from its question, not from ours.
        await asyncio.sleep(max(0.0, self.settings.interval - (time.monotonic() - began)))

    def _publish(self, changes: list[Change], readings: NodeReadings) -> None:
        for change in changes:
            finding = change.finding
            if change.kind is ChangeKind.RAISED:
                self.counts.findings[finding.code] += 1
            level = log.info if change.kind is ChangeKind.CLEARED else log.warning
            level(
                f"finding {change.kind}",
                code=finding.code,
                severity=str(finding.severity),
                component=finding.component,
                message=finding.message,
                action=str(finding.action),
                reason=change.reason,
            )
        self._unwritten += [_entry(change) for change in changes]
        self.verdict = self.findings.verdict(readings, self._history.baseline, readings.time)
        self.version += 1
        if changes:
            self._write_wanted.set()
        self._desired_changed.set()

    # -- kernel log ---------------------------------------------------------------------------------------------------

    async def _follow_kernel_log(self) -> None:
        reader = KmsgReader(self.settings.roots.kmsg, self.probe.boot_id, self._position, self.settings.kmsg.lookback)
        async for batch in reader:
            self._take_records(batch)

    def _take_records(self, records: Sequence[Any]) -> None:
        events = [event for record in records if (event := self._parser.feed(record))]
        self.counts.kernel_records += len(records)
        if events:
            self._take_events(events)

    def _take_events(self, events: list[KernelEvent]) -> None:
        now = self.clock()
        readings = msgspec.structs.replace(self._latest(now), events=tuple(events), time=now)
        outcomes = checks.judge_events(readings, self.settings, self._history)
        for event in events:
            self.counts.kernel_events[event.kind] += 1
            if event.kind == "xid":
                self.counts.xids[str(event.code), event.pci or ""] += 1
        self._publish(self.findings.take(outcomes, now, readings.boot_id), readings)

    def _latest(self, now: datetime) -> NodeReadings:
        """The last round's readings; before the first there is only the node."""
        return self.readings or NodeReadings(self.settings.node_name, now, self.probe.boot_id)
