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
from datetime import datetime, timedelta
from pathlib import Path

import msgspec
import structlog

from gpuhealth import __version__
from gpuhealth import monitors as checks
from gpuhealth.agent.state import Memory, open_journal, recall
from gpuhealth.model.kernel_event import KernelEvent
from gpuhealth.model.lost_memory import MEMORY_LOST
from gpuhealth.model.missing import NOT_SUPPORTED, UNREAD, Missing, MissingReason, Reading
from gpuhealth.model.tracker import Change, ChangeKind, Findings
from gpuhealth.model.verdict import State, Verdict
from gpuhealth.monitors.burnin_results.checks import REQUIRED
from gpuhealth.monitors.fleet_findings.readings import FleetFinding
from gpuhealth.monitors.kernel_log.probe import KernelLogProbe
from gpuhealth.monitors.node_probe import NodeProbe
from gpuhealth.monitors.nvidia.nvml.stale_library import RestartRequiredError, StaleLibrary
from gpuhealth.monitors.nvidia.release import DriverRelease
from gpuhealth.monitors.readings import NodeReadings
from gpuhealth.quarantine.marks import RELEASE_REQUESTS, Override, fleet_findings, restored
from gpuhealth.quarantine.own_node import OwnNode
from gpuhealth.quarantine.reconciler import NodeReconciler
from gpuhealth.quarantine.report import Facts, Gpu, Inventory
from gpuhealth.quarantine.target import Desired
from gpuhealth.quarantine.writer import AppliedAction
from gpuhealth.runtime import supervisor as tasks
from gpuhealth.runtime.clock import Now, SteadyClock, wall_clock
from gpuhealth.runtime.journal import Entry, JournalWriter, Repeats, entry_of
from gpuhealth.runtime.settings import Settings
from gpuhealth.runtime.settings_file import ConfigError, SettingsFile

log = structlog.get_logger()

_MEMORY_SECONDS = 60.0  # what changes in every round, such as counters, is remembered this often
_NVML_SECONDS = 2.0  # for a round of NVML, however short the interval: a busy node answers late, and that is no news
_ASK_SECONDS = 10.0  # for our Node to say whether the driver may be taken, before it is for the first time
_TAKEN_AT_START = ("node_name", "log_level", "roots", "http", "journal")
_NOT_IN_TOUCH = Missing(MissingReason.ERROR, "our Node has not been seen yet")

Service = Callable[["Agent"], Awaitable[None]]
"""Something that runs beside the agent and looks at it, such as the HTTP server."""


class Counts(msgspec.Struct):
    """What happened since the agent started; for metrics."""

    findings: Counter[str] = msgspec.field(default_factory=Counter)  # by code
    xids: Counter[tuple[str, str]] = msgspec.field(default_factory=Counter)  # by XID and GPU
    kernel_events: Counter[str] = msgspec.field(default_factory=Counter)  # by kind
    failures: Counter[str] = msgspec.field(default_factory=Counter)  # by loop
    api_calls: Counter[tuple[str, int]] = msgspec.field(default_factory=Counter)  # by method and status
    rounds: int = 0


class Agent:
    """The agent of one node. What is public is what the HTTP server shows."""

    def __init__(
        self,
        settings: Settings,
        config_path: Path | None = None,
        services: Sequence[Service] = (),
        wall: Now = wall_clock,
    ) -> None:
        """`services` run in the agent's TaskGroup. Raises nothing: what is not there is reported by the checks."""
        self.settings = settings
        self.clock = SteadyClock(wall)
        self.probe = NodeProbe(settings)
        self.counts = Counts()
        self.readings: NodeReadings | None = None
        self.verdict: Verdict | None = None
        self.version = 0  # grows with every change of what is shown
        self.updated = asyncio.Event()  # set with it; for who shows it to clear
        self.http_port = 0
        self.config_valid = True
        self.round_seconds = 0.0
        self.check_seconds = 0.0
        self._file = SettingsFile(config_path)
        self._services = services
        self._repeats = Repeats()
        self._gpu_by_pci: dict[str, str] = {}
        self._inventory = Inventory()
        self._node_labels: dict[str, str] = {}
        self._looked = asyncio.Event()  # the first round is over: GPUs are known by their addresses
        self._settings_changed = asyncio.Event()
        self._node_asked = asyncio.Event()  # our Node says whether we may take the driver, or cannot be asked
        self.release = DriverRelease(self.probe.nvml, self.clock, self._note_release)
        self._stale_library = StaleLibrary()
        self._restart: RestartRequiredError | None = None
        self._end: Callable[[], object] = lambda: None
        self._remembered_at = -_MEMORY_SECONDS
        self.kernel_log: KernelLogProbe
        self.findings: Findings
        self.journal: JournalWriter
        self._preflight_due = False  # the node is to be closed until it has passed its first tests once more
        self._recall()
        self.keeper = NodeReconciler(
            self._marks_wanted,
            node_changed=self._node_changed,
            on_action=self._note_act,
            observer=self._count_call,
            now=self.clock,
        )

    # -- life ----------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Runs until SIGTERM or SIGINT; then everything is written down and let go.

        Raises RestartRequiredError when only a new process, in a new container, can measure the node.
        """
        loop = asyncio.get_running_loop()
        main = asyncio.current_task()
        assert main is not None
        self._end = main.cancel
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, main.cancel)
        loop.add_signal_handler(signal.SIGUSR1, self._on_release_signal)
        log.info("agent started", node=self.settings.node_name, mode=self.settings.mode, version=__version__)
        _warn_of_misspelt(self.settings)
        try:
            async with asyncio.TaskGroup() as group:
                for step in (self._round, self._follow_kernel_log, self._write_journal, self._mark_node):
                    group.create_task(tasks.supervise(step, self._count_failure))
                for service in self._services:
                    group.create_task(service(self))  # type: ignore[arg-type]  # a coroutine function
        except asyncio.CancelledError:
            log.info("agent stopped", node=self.settings.node_name)
        finally:
            self._finish()
        if self._restart:
            raise self._restart

    def _count_failure(self, loop: str) -> None:
        self.counts.failures[loop] += 1
        self._has_changed()  # after enough failed rounds the node is unknown

    def _finish(self) -> None:
        self.probe.nvml.close()
        self.journal.close()

    def is_current(self) -> bool:
        """Whether the last round was recent enough to say something of now."""
        if self.readings is None:
            return False
        age = (self.clock() - self.readings.time).total_seconds()
        return age < max(self.settings.unknown_after, 3 * self.settings.interval)

    def _has_changed(self) -> None:
        self.version += 1
        self.updated.set()
        self.keeper.trigger()

    # -- rounds --------------------------------------------------------------------------------------------------------

    async def _round(self) -> None:
        """One round: read, judge, publish; then wait until the next is due."""
        began = time.monotonic()
        self._reload_if_changed()
        self._catch_up()
        if self.settings.kubernetes.enabled and not self.counts.rounds:
            with contextlib.suppress(TimeoutError):  # a restart in mid-upgrade must not take the driver for a moment
                async with asyncio.timeout(_ASK_SECONDS):
                    await self._node_asked.wait()
        patience = max(self.settings.interval, _NVML_SECONDS)
        readings = await self.probe.read(patience, self.clock)
        readings = self.release.judged(
            readings, len(self._history.baseline.gpus), self.settings.driver_release.reacquire_grace
        )
        readings = msgspec.structs.replace(readings, kernel_log=self.kernel_log.read(), fleet=self._fleet_findings())
        self.round_seconds = time.monotonic() - began
        self._know_gpus(readings)
        self.readings = readings
        judging = time.monotonic()
        outcomes = checks.judge(readings, self.settings, self._history)
        self.check_seconds = time.monotonic() - judging
        changes = self.findings.take_round(outcomes, readings.time, readings.boot_id)
        self._publish(changes + self.findings.settle(readings, self._history), readings)
        self.counts.rounds += 1
        self._looked.set()
        self._end_if_library_is_stale(readings)
        if time.monotonic() - self._remembered_at > _MEMORY_SECONDS:
            self.journal.note()
        pause = max(0.0, self.settings.interval - (time.monotonic() - began))
        await asyncio.sleep(pause / 2)
        self.probe.nvml.ping()
        await asyncio.sleep(pause / 2)

    def _end_if_library_is_stale(self, readings: NodeReadings) -> None:
        try:
            self._stale_library.look(readings)
        except RestartRequiredError as reason:
            log.warning("agent exits: driver library changed", reason=str(reason))
            self.journal.note(Entry(readings.time, "agent", "agent.nvml_library", "node", str(reason)))
            self._restart = reason
            self._end()

    def _know_gpus(self, readings: NodeReadings) -> None:
        """Takes what a complete answer of NVML tells of the GPUs; it holds while there is none."""
        nvml = readings.nvml
        if isinstance(nvml, Missing) or not nvml.answered or nvml.problem:
            return
        gpus = (
            Gpu(gpu.index, gpu.component, *(_text(value) for value in (gpu.pci, gpu.name, gpu.serial)))
            for gpu in nvml.gpus
        )
        self._inventory = Inventory(_text(nvml.driver_version), tuple(gpus))
        self._gpu_by_pci |= {gpu.pci[:-2]: gpu.component for gpu in nvml.gpus if isinstance(gpu.pci, str)}
        by_index = {f"gpu{gpu.index}": gpu.component for gpu in nvml.gpus}
        self.findings.attribute(self._gpu_by_pci | by_index)
        if isinstance(version := nvml.driver_version, str) and version.partition(".")[0].isdecimal():
            self.kernel_log.know_driver(int(version.partition(".")[0]))

    def _publish(self, changes: list[Change], readings: NodeReadings) -> None:
        """Makes known what has changed: log, journal, metrics, marks."""
        for change in changes:
            if change.kind is ChangeKind.RAISED:
                self.counts.findings[change.finding.code] += 1
            _log_change(change)
        self.verdict = self.findings.verdict(readings, self._history, readings.time)
        self._has_changed()
        if changes:
            self.journal.note(*(entry_of(change) for change in changes))

    # -- kernel log ----------------------------------------------------------------------------------------------------

    async def _follow_kernel_log(self) -> None:
        await self.kernel_log.follow(self.settings.roots.kmsg, self.settings.kmsg.lookback, self._looked)

    def _take_events(self, events: list[KernelEvent]) -> None:
        """Judges kernel events at once."""
        now = self.clock()
        # Before the first round there are only the GPUs that are remembered.
        latest = self.readings or NodeReadings(self.settings.node_name, now, self.probe.boot_id)
        readings = msgspec.structs.replace(latest, events=tuple(events), time=now, release=self.release.current)
        outcomes = checks.judge_events(readings, self.settings, self._history)
        changes = self.findings.take(outcomes, now, readings.boot_id)
        for event in events:
            self.counts.kernel_events[event.kind] += 1
            if event.kind == "xid":
                self.counts.xids[str(event.code), self._gpu_by_pci.get(event.pci or "", event.pci or "")] += 1
            self._note_event(event, now)
        self._publish(changes, readings)

    def _note_event(self, event: KernelEvent, now: datetime) -> None:
        """Journals a kernel event; of one that goes on, fewer and fewer, with how often it came."""
        repeats = self._repeats.passed_over((event.finding, event.pci or ""), time.monotonic())
        if repeats is None:
            return
        message = event.meaning + (f" ({repeats} more since the last entry)" if repeats else "")
        where = self._gpu_by_pci.get(event.pci or "", event.pci or "node")
        self.journal.note(
            Entry(event.time or now, "kernel", event.finding, where, message, str(event.severity), event.line)
        )

    # -- the cluster ---------------------------------------------------------------------------------------------------

    async def _mark_node(self) -> None:
        """Has our Node marked while there is an API server; without one the node is watched all the same."""
        self._settings_changed.clear()
        if not self.settings.kubernetes.enabled:
            for reason in RELEASE_REQUESTS:  # of an agent before us, on a Node that is not asked any more
                self._ask_release(reason, wanted=False)
            await self._settings_changed.wait()
            return
        keeping = asyncio.create_task(self.keeper.run(self.settings))
        changed = asyncio.create_task(self._settings_changed.wait())
        try:
            await asyncio.wait([keeping, changed], return_when=asyncio.FIRST_COMPLETED)
            if keeping.done():
                keeping.result()
        finally:
            for task in (keeping, changed):
                task.cancel()
            await asyncio.gather(keeping, changed, return_exceptions=True)

    def _marks_wanted(self) -> tuple[Desired, Facts] | None:
        if self.verdict is None:
            return None
        verdict = self.verdict
        if not self.is_current():
            verdict = msgspec.structs.replace(verdict, verdict=State.UNKNOWN)
        quarantine = self.findings.quarantine()
        codes = tuple(finding.code for finding in quarantine.findings)
        desired = Desired(
            verdict=verdict,
            quarantine=codes,
            drain=quarantine.drain,
            release=self.release.current,
            preflight=self._preflight_due,
            causes=quarantine.causes,
        )
        return desired, self._facts()

    def _node_changed(self, node: OwnNode) -> None:
        """Takes from our Node what people say there."""
        if node.labels != self._node_labels:
            self._node_labels = node.labels
            self.findings.configure(self.settings, self._node_labels)
        if (readings := self.readings) is not None and (
            changes := [*self._recalled(node, readings), *self._ended_by_person(node)]
        ):
            self._publish(changes, readings)
        if self._preflight_due and node.has_taint(self.settings.preflight.taint):
            self._preflight_due = False
            self.journal.note()
        if node.asked:
            self._node_asked.set()
        if (requests := node.release_requests) is not None:
            for reason in RELEASE_REQUESTS:
                self._ask_release(reason, wanted=reason in requests)

    def _fleet_findings(self) -> Reading[tuple[FleetFinding, ...]]:
        """What the controller says of our GPUs."""
        if not self.settings.kubernetes.enabled:
            return NOT_SUPPORTED
        node = self.keeper.node
        return fleet_findings(node.annotations) if node and node.known else _NOT_IN_TOUCH

    def _recalled(self, node: OwnNode, readings: NodeReadings) -> list[Change]:
        """Why the node is out of service by its own record, where we do not remember what became of that."""
        record, causes = node.record, node.causes
        if record is None or not causes:
            return []
        when, now = restored(node.annotations), self.clock()
        changes = self.findings.recall(causes, record.since, when, now, readings.boot_id)
        return changes + (self.findings.settle(readings, self._history) if changes else [])

    def _ended_by_person(self, node: OwnNode) -> list[Change]:
        """What ends as a person declares the node well, or trusts it without the burn-in that was asked for."""
        now, when = self.clock(), restored(node.annotations)
        trusted = {REQUIRED.name, MEMORY_LOST.name}
        if node.override is not Override.HEALTHY:
            trusted &= set(node.dismissed)
        changes = [change for code in sorted(trusted) for change in self.findings.dismiss(code, now)]
        return changes + (self.findings.restore(when, now) if when else [])

    def _facts(self) -> Facts:
        burnin = self.readings.burnin if self.readings else UNREAD
        runs = None if isinstance(burnin, Missing) else burnin.runs
        return Facts(self._inventory, self.probe.boot_id, dict(self.counts.findings), __version__, runs)

    def _count_call(self, method: str, status: int) -> None:
        self.counts.api_calls[method, status] += 1

    def _note_act(self, act: AppliedAction) -> None:
        log.info(
            "node updated" if act.done else "node update skipped (observe)",
            kind=act.kind,
            target=act.target,
            detail=act.detail,
        )
        message = f"{act.kind} {act.target} {act.detail}".strip()
        self.journal.note(Entry(act.time, "act" if act.done else "would", act.target, "node", message))

    # -- releasing the driver ------------------------------------------------------------------------------------------

    def _on_release_signal(self) -> None:
        """SIGUSR1 lets go of the driver, and a second one takes it again."""
        self._ask_release("signal", wanted="signal" not in self.release.reasons)

    def _ask_release(self, reason: str, *, wanted: bool) -> None:
        self.release.ask(reason, wanted=wanted, known=self.verdict is not None and self.verdict.is_known)

    def _note_release(self, sentence: str) -> None:
        log.info("driver release changed", status=sentence)
        self.journal.note(Entry(self.clock(), "agent", "release", "node", sentence))

    # -- memory --------------------------------------------------------------------------------------------------------

    def _recall(self) -> None:
        """Takes up what an earlier agent on this node has remembered."""
        journal = open_journal(self.settings.journal)
        remembered = recall(journal, self.clock, self.probe.boot_id)
        self._history = remembered.history
        self.kernel_log = KernelLogProbe(self.probe, remembered.position, self._take_events, self.clock)
        if remembered.release:
            self.release.take_up(remembered.release)
        # A node that is seen for the first time has the taint from where it comes from, or is to have none.
        again = remembered.rebooted and self.settings.preflight.after_reboot
        self._preflight_due = remembered.preflight_due or again
        self.findings = Findings(self.settings, remembered.ledger)
        self.journal = JournalWriter(journal, self._memory, self.clock)

    async def _write_journal(self) -> None:
        await self.journal.run_once()

    def _memory(self) -> dict[str, bytes]:
        self._remembered_at = time.monotonic()
        memory = Memory(
            self.findings.ledger(), self._history, self.kernel_log.position, self.release.current, self._preflight_due
        )
        return memory.encoded(self.clock, self.probe.boot_id)

    def _catch_up(self) -> None:
        """Takes over where the wall clock was set: every time that was noted moves along, and nothing comes of it."""
        if seconds := self.clock.catch_up():
            for each in (self.findings, self._history, self.release):
                each.shift(seconds)
            if self.readings:
                time_read = self.readings.time + timedelta(seconds=seconds)
                self.readings = msgspec.structs.replace(self.readings, time=time_read)
            log.warning("clock stepped", seconds=round(seconds))
            self.journal.note(Entry(self.clock(), "agent", "clock", "node", f"the clock was set by {seconds:.0f} s"))

    # -- configuration -------------------------------------------------------------------------------------------------

    def _reload_if_changed(self) -> None:
        """Takes a changed configuration file. One that cannot be used changes nothing and is reported once."""
        try:
            settings = self._file.changed()
        except ConfigError as error:
            self.config_valid = False
            log.error("configuration rejected", error=str(error))  # noqa: TRY400 - one sentence says it
            return
        if settings is None:
            return
        self.config_valid = True
        at_start = {name: getattr(self.settings, name) for name in _TAKEN_AT_START}
        if later := [name for name, value in at_start.items() if getattr(settings, name) != value]:
            log.warning("restart needed for changed settings", settings=later)
        _warn_of_misspelt(settings)
        self.settings = settings.model_copy(update=at_start)
        self.probe.nvml.configure(settings.nvml)
        self.findings.configure(self.settings, self._node_labels)
        self._settings_changed.set()
        self.keeper.trigger()
        log.info("configuration reloaded", file=str(self._file.path))


def _warn_of_misspelt(settings: Settings) -> None:
    if patterns := checks.unmatched(settings):
        log.warning("settings for unknown findings", patterns=patterns)


def _log_change(change: Change) -> None:
    finding = change.finding
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


def _text(value: Reading[str]) -> str:
    return "" if isinstance(value, Missing) else value
