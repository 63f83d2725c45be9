"""The agent of one node: wires monitors, kernel log, journal and the Node in the cluster together.

One event loop, with one supervised task for each monitor and each other loop: an error in one is logged and counted and
does not affect the others. Kernel-log records are judged as they arrive, readings once per round of their monitor.
Journal and API server have loops of their own, so that neither a slow disk nor an outage delays findings.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import structlog

from gpuhealth import __version__
from gpuhealth.agent import state as stored
from gpuhealth.agent.node_health import NodeHealth
from gpuhealth.agent.status import AgentStatus, BlockedStatus, Counts, MonitorStatus
from gpuhealth.api.names import Override
from gpuhealth.api.report import Gpu, Inventory
from gpuhealth.kernel_log.follower import KernelLogFollower
from gpuhealth.model.component import NODE
from gpuhealth.model.missing import UNREAD, Missing, MissingReason, Reading
from gpuhealth.model.out_of_service import BURNIN_REQUIRED, MEMORY_LOST
from gpuhealth.model.tracker import Change, FindingTracker
from gpuhealth.model.verdict import State
from gpuhealth.monitors.burnin_results.monitor import MONITOR as BURNIN_RESULTS
from gpuhealth.monitors.judge import KERNEL_LOG, Judge, tracker_rules
from gpuhealth.monitors.monitor import MetricsContext, ProbeContext, RestartRequiredError
from gpuhealth.monitors.nvidia.monitor import MONITOR as NVIDIA
from gpuhealth.monitors.nvidia.probe import NvidiaProbe, driver_branch
from gpuhealth.monitors.registry import enabled, kernel_log_parser, unmatched_patterns
from gpuhealth.monitors.runner import MonitorRunner
from gpuhealth.monitors.settings import Settings
from gpuhealth.quarantine.driver_work import RELEASE_REQUESTS
from gpuhealth.quarantine.marks import restored
from gpuhealth.quarantine.own_node import OwnNode
from gpuhealth.quarantine.reconciler import NodeReconciler
from gpuhealth.quarantine.report import Facts
from gpuhealth.quarantine.target import Desired
from gpuhealth.quarantine.writer import AppliedAction
from gpuhealth.runtime import supervisor
from gpuhealth.runtime.clock import Now, SteadyClock, wall_clock
from gpuhealth.runtime.files import boot_id
from gpuhealth.runtime.journal import Entry
from gpuhealth.runtime.journal_writer import JournalWriter
from gpuhealth.runtime.settings_file import ConfigError, SettingsFile

log = structlog.get_logger()

_STATE_SECONDS = 60.0  # between two writes of state that changes in every round, such as counters
_NODE_WAIT_SECONDS = 10.0  # to read from our Node whether the driver may be opened, before the first time
_BACKLOG_SECONDS = 30.0  # for records from before our start; the largest buffers take 5 s
_CLOCK_SECONDS = 1.0  # between two checks of the wall clock and the settings file
_FIXED_SETTINGS = ("node_name", "log_level", "roots", "http", "journal", "monitors", "kernel_log")
_NODE_UNKNOWN = Missing(MissingReason.ERROR, "our Node has not been seen yet")

Service = Callable[["Agent"], Awaitable[None]]
"""A coroutine that runs concurrently with the agent and reads its status, such as the HTTP server."""


class Agent:
    """The agent of one node. `status()` is what the HTTP server shows."""

    def __init__(
        self,
        settings: Settings,
        config_path: Path | None = None,
        services: Sequence[Service] = (),
        wall: Now = wall_clock,
    ) -> None:
        """`services` run in addition to the agent's own loops. Never raises: checks report what is missing."""
        self.settings = settings
        self.clock = SteadyClock(wall)
        self.changed = asyncio.Event()  # set with every change of the status; the reader clears it
        self.version = 0  # of the status; increases with every change
        self.http_port = 0
        self._config_valid = True
        self._file = SettingsFile(Settings, config_path)
        self._settings_digest = self._file.digest  # of the file whose settings are all in use
        self._services = services
        self._boot_id = boot_id(settings.roots.proc)
        self._node_labels: dict[str, str] = {}
        self._first_round = asyncio.Event()  # set after it: GPUs are known by their addresses
        self._log_state_known = asyncio.Event()  # whether the log can be read; no verdict before
        self._settings_changed = asyncio.Event()
        self._node_seen = asyncio.Event()  # set once our Node shows whether we may open the driver, or cannot be read
        self._backlog_late = False
        self._restart: RestartRequiredError | None = None
        self._end: Callable[[], object] = lambda: None
        self._stored_at = -_STATE_SECONDS

        journal = stored.open_journal(settings.journal)
        state = stored.restore(journal, self.clock, self._boot_id)
        reopen = partial(stored.journal_for_writing, settings.journal)
        self.journal = JournalWriter(journal, self._state, self.clock, reopen)
        # A node seen for the first time got the taint at registration, or must not have it.
        self._preflight_due = state.preflight_due or (state.rebooted and settings.preflight.after_reboot)
        judge = Judge(settings, state.memory, boot_id=self._boot_id, time=self.clock())
        tracker = FindingTracker(tracker_rules(settings), state.tracker)
        self.node_health = NodeHealth(judge, tracker, self.journal, self.clock, self._has_changed)
        self.runners = {monitor.name: self._runner(monitor) for monitor in enabled(settings)}
        self._nvidia = self._nvidia_probe()
        self._nvidia.on_release_change = self._release_changed
        if NVIDIA.name not in self.runners:
            self._first_round.set()  # there will be no round
        if KERNEL_LOG not in self.runners:
            self._log_state_known.set()
        if state.release:
            self._nvidia.release.resume(state.release)
        self.kernel_log = KernelLogFollower(
            kernel_log_parser(),
            self._nvidia,
            self.node_health.apply_events,
            self.node_health.apply_earlier,
            self.node_health.backlog_ended,
            boot_id=self._boot_id,
            position=state.position,
            now=self.clock,
        )
        self.reconciler = NodeReconciler(
            self._desired_marks,
            node_changed=self._node_changed,
            on_action=self._journal_action,
            observer=self._count_call,
            now=self.clock,
        )

    def _runner(self, monitor: Any) -> MonitorRunner:
        schedule = self.settings.schedule(monitor.name)
        context: ProbeContext[Any, Any] = ProbeContext(
            core=self.settings,
            settings=self.settings,
            baseline=self.node_health.judge.memory.baseline(monitor),
            boot_id=self._boot_id,
            now=self.clock,
            interval=schedule.interval or self.settings.interval,
            kernel_log=lambda: self.kernel_log.take_status(),
            annotations=self._annotations,
        )
        return MonitorRunner(monitor, monitor.probe(context), self.settings)

    def _nvidia_probe(self) -> NvidiaProbe:
        """The probe of the NVIDIA monitor; an unused one if that monitor is disabled."""
        if runner := self.runners.get(NVIDIA.name):
            assert isinstance(runner.probe, NvidiaProbe), "the probe of this monitor"
            return runner.probe
        baseline = self.node_health.judge.memory.baseline(NVIDIA)
        return NvidiaProbe(ProbeContext(core=self.settings, settings=self.settings, baseline=baseline))

    # -- life ----------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Runs until SIGTERM or SIGINT; then stores the state and closes everything.

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
        _warn_of_unmatched(self.settings)
        self.node_health.awaits_backlog = True
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._limit_backlog())
                for step in (self._housekeeping, self._follow_kernel_log, self._write_journal, self._mark_node):
                    group.create_task(supervisor.supervise(step, self._count_failure))
                for runner in self.runners.values():
                    step = partial(self._round, runner)
                    name = f"monitor_{runner.monitor.name}"
                    group.create_task(supervisor.supervise(step, self._count_failure, name=name))
                for service in self._services:
                    group.create_task(service(self))  # type: ignore[arg-type]  # a coroutine function
        except asyncio.CancelledError:
            log.info("agent stopped", node=self.settings.node_name)
        finally:
            self._close()
        if self._restart:
            raise self._restart

    def _count_failure(self, loop: str) -> None:
        self.counts.failures[loop] += 1
        self._has_changed()  # after enough failed rounds the node becomes unknown

    def _close(self) -> None:
        for runner in self.runners.values():
            runner.close()
        self._nvidia.close()
        self.journal.close()

    @property
    def counts(self) -> Counts:
        """Counters of events since the agent started."""
        return self.node_health.counts

    @property
    def has_judged(self) -> bool:
        """Whether there is a verdict: every monitor has had a round, and older kernel records were judged."""
        return self.node_health.verdict is not None

    def is_current(self) -> bool:
        """Whether the last rounds are recent enough for a current verdict, and no older record is left to be judged."""
        if self._backlog_late and not self.kernel_log.caught_up:
            return False
        enough = self.settings.unknown_after
        limits = {name: max(enough, 3 * runner.interval) for name, runner in self.runners.items()}
        return self.node_health.is_current(limits)

    def _has_changed(self) -> None:
        self.version += 1
        self.changed.set()
        self.reconciler.trigger()

    # -- rounds --------------------------------------------------------------------------------------------------------

    async def _round(self, runner: MonitorRunner) -> None:
        """One round of one monitor: read, judge, publish; then wait until the next is due."""
        began = time.monotonic()
        if self.settings.kubernetes.enabled and not self.counts.rounds:
            with contextlib.suppress(TimeoutError):  # a restart during an upgrade must not open the driver
                async with asyncio.timeout(_NODE_WAIT_SECONDS):
                    await self._node_seen.wait()
        if runner.monitor.name != KERNEL_LOG:
            await self._log_state_known.wait()
        try:
            readings = await runner.read()
        except RestartRequiredError as reason:
            self._restart_required(reason)
            return
        self._follow_clock()
        try:
            self.node_health.apply_round(runner.monitor, readings, runner.failure)
        finally:
            if runner.monitor.name == KERNEL_LOG:
                self._log_state_known.set()
        if runner.monitor.name == NVIDIA.name:
            self._nvidia_round_ended()
        await asyncio.sleep(max(0.0, runner.interval - (time.monotonic() - began)))

    def _nvidia_round_ended(self) -> None:
        self._first_round.set()
        if branch := driver_branch(self.node_health.judge.versions.get("driver", "")):
            self.kernel_log.set_driver_branch(branch)

    async def _limit_backlog(self) -> None:
        """Publishes what is known where the records from before our start take too long; the node stays unknown."""
        await self._first_round.wait()
        await asyncio.sleep(_BACKLOG_SECONDS)
        if not self.kernel_log.caught_up:
            log.warning("kernel log not read in time: node unknown until it is", seconds=_BACKLOG_SECONDS)
            self._backlog_late = True
            self.node_health.backlog_ended()

    def _restart_required(self, reason: RestartRequiredError) -> None:
        log.warning("agent exits: driver library changed", reason=str(reason))
        self._journal("agent", "agent.nvml_library", str(reason))
        self._restart = reason
        self._end()

    async def _housekeeping(self) -> None:
        """Applies changed settings, follows steps of the wall clock, and stores the state from time to time."""
        self._reload_if_changed()
        self._follow_clock()
        if self.has_judged and time.monotonic() - self._stored_at > _STATE_SECONDS:
            self.node_health.judge.prune()
            self.journal.append()
        await asyncio.sleep(min(_CLOCK_SECONDS, self.settings.interval))

    async def _follow_kernel_log(self) -> None:
        settings = self.settings
        await self.kernel_log.follow(
            settings.roots.kmsg,
            settings.kmsg.lookback,
            self._first_round,
            settings.kmsg.since_boot,
            accept_user_records=settings.kernel_log.accept_user_records,
        )

    # -- the cluster ---------------------------------------------------------------------------------------------------

    async def _mark_node(self) -> None:
        """Keeps our Node marked if there is a cluster; without one the node is checked all the same."""
        self._settings_changed.clear()
        if not self.settings.kubernetes.enabled:
            for reason in RELEASE_REQUESTS:  # left by an earlier agent, on a Node that is no longer read
                self._request_release(reason, wanted=False)
            await self._settings_changed.wait()
            return
        keeping = asyncio.create_task(self.reconciler.run(self.settings))
        changed = asyncio.create_task(self._settings_changed.wait())
        try:
            await asyncio.wait([keeping, changed], return_when=asyncio.FIRST_COMPLETED)
            if keeping.done():
                keeping.result()
        finally:
            for task in (keeping, changed):
                task.cancel()
            await asyncio.gather(keeping, changed, return_exceptions=True)

    def _desired_marks(self) -> tuple[Desired, Facts] | None:
        verdict = self.node_health.verdict
        if verdict is None:
            return None
        if not self.is_current():
            verdict = msgspec.structs.replace(verdict, verdict=State.UNKNOWN)
        quarantine = self.node_health.tracker.quarantine()
        codes = tuple(finding.code for finding in quarantine.findings)
        desired = Desired(
            verdict=verdict,
            quarantine=codes,
            drain=quarantine.drain,
            release=self._nvidia.release.current,
            preflight=self._preflight_due,
            causes=quarantine.causes,
        )
        return desired, self._report_facts()

    def _node_changed(self, node: OwnNode) -> None:
        """Applies manual requests found on our Node."""
        if node.labels != self._node_labels:
            self._node_labels = node.labels
            self.node_health.tracker.configure(tracker_rules(self.settings, self._node_labels))
        if self.has_judged and (changes := [*self._recalled(node), *self._ended_by_person(node)]):
            self.node_health.publish(changes)
        if self._preflight_due and node.has_taint(self.settings.preflight.taint):
            self._preflight_due = False
            self.journal.append()
        if node.asked:
            self._node_seen.set()
        if (requests := node.release_requests) is not None:
            for reason in RELEASE_REQUESTS:
                self._request_release(reason, wanted=reason in requests)

    def _annotations(self) -> Reading[Mapping[str, str]]:
        """The annotations of our Node, which include the controller's findings about its GPUs."""
        if not self.settings.kubernetes.enabled:
            return Missing(MissingReason.NOT_SUPPORTED)
        node = self.reconciler.node
        return node.annotations if node and node.known else _NODE_UNKNOWN

    def _recalled(self, node: OwnNode) -> list[Change]:
        """Changes for causes in the Node's record whose outcome is not in the agent's memory."""
        if node.record is None or not node.causes:
            return []
        tracker, when = self.node_health.tracker, restored(node.annotations)
        changes = tracker.recall(node.causes, node.record.since, when, self.clock(), self._boot_id)
        return changes + (tracker.resolve(self.node_health.judge.facts()) if changes else [])

    def _ended_by_person(self, node: OwnNode) -> list[Change]:
        """Ends findings when a person restores the node, or returns it without the required burn-in."""
        tracker, now, when = self.node_health.tracker, self.clock(), restored(node.annotations)
        trusted = {BURNIN_REQUIRED.name, MEMORY_LOST.name}
        if node.override is not Override.HEALTHY:
            trusted &= set(node.dismissed)
        changes = [change for code in sorted(trusted) for change in tracker.dismiss(code, now)]
        return changes + (tracker.restore(when, now) if when else [])

    def _report_facts(self) -> Facts:
        judge = self.node_health.judge
        gpus = tuple(
            Gpu(
                index=info.index if info.index >= 0 else None,
                uuid=info.component.id,
                pci=info.pci or "",
                model=info.model,
                serial=info.serial,
            )
            for info in judge.last_complete
            if info.component.kind is info.component.kind.GPU
        )
        burnin = judge.readings.of(BURNIN_RESULTS)
        return Facts(
            Inventory(driver=judge.versions.get("driver", ""), gpus=gpus),
            self._boot_id,
            dict(self.counts.findings),
            __version__,
            None if isinstance(burnin, Missing) else burnin.runs,
            self._settings_digest,
        )

    def _count_call(self, method: str, status: int) -> None:
        self.counts.api_calls[method, status] += 1

    def _journal_action(self, action: AppliedAction) -> None:
        log.info(
            "node updated" if action.done else "node update skipped (observe)",
            kind=action.kind,
            target=action.target,
            detail=action.detail,
        )
        if action.kind == "preflight" and action.done:
            self._preflight_due = False  # at once: who removes the taint again may be faster than our watch
        message = f"{action.kind} {action.target} {action.detail}".strip()
        kind = "act" if action.done else "would"
        self.journal.append(Entry(time=action.time, kind=kind, code=action.target, component=NODE, message=message))

    # -- releasing the driver ------------------------------------------------------------------------------------------

    def _on_release_signal(self) -> None:
        """SIGUSR1 releases the driver, and a second one opens it again."""
        self._request_release("signal", wanted="signal" not in self._nvidia.release.reasons)

    def _request_release(self, reason: str, *, wanted: bool) -> None:
        verdict = self.node_health.verdict
        self._nvidia.release.ask(reason, wanted=wanted, known=verdict is not None and verdict.is_known)

    def _release_changed(self, sentence: str) -> None:
        log.info("driver release changed", status=sentence)
        self._journal("agent", "release", sentence)
        readings = self.node_health.judge.readings.of(NVIDIA)
        if not isinstance(readings, Missing):  # kernel events from now on are judged with the release in mind
            now = msgspec.structs.replace(readings, release=self._nvidia.release.current)
            self.node_health.judge.set_readings(NVIDIA, now, self.clock())

    # -- stored state, clock, settings ---------------------------------------------------------------------------------

    def _state(self) -> dict[str, bytes]:
        self._stored_at = time.monotonic()
        state = stored.AgentState(
            self.node_health.tracker.state(),
            self.node_health.judge.memory,
            self.kernel_log.position,
            self._nvidia.release.current,
            self._preflight_due,
        )
        return state.encoded(self.clock, self._boot_id)

    async def _write_journal(self) -> None:
        await self.journal.run_once()

    def _journal(self, kind: str, code: str, message: str) -> None:
        self.journal.append(Entry(time=self.clock(), kind=kind, code=code, component=NODE, message=message))

    def _follow_clock(self) -> None:
        """Follows wall-clock steps: shifts stored timestamps so that no finding is raised or cleared."""
        if seconds := self.clock.catch_up():
            self.node_health.shift(seconds)
            self._nvidia.release.shift(seconds)
            log.warning("clock stepped", seconds=round(seconds))
            self._journal("agent", "clock", f"the clock was set by {seconds:.0f} s")

    def _reload_if_changed(self) -> None:
        """Applies a changed settings file. An invalid file changes nothing and is reported once."""
        try:
            settings = self._file.changed()
        except ConfigError as error:
            self._config_valid = False
            log.error("configuration rejected", error=str(error))  # noqa: TRY400 - no traceback needed
            return
        if settings is None:
            return
        self._config_valid = True
        fixed = {name: getattr(self.settings, name) for name in _FIXED_SETTINGS}
        if later := [name for name, value in fixed.items() if getattr(settings, name) != value]:
            log.warning("restart needed for changed settings", settings=later)
        else:
            self._settings_digest = self._file.digest
        _warn_of_unmatched(settings)
        self.settings = settings.model_copy(update=fixed)
        for runner in self.runners.values():
            runner.configure(self.settings)
        self.node_health.judge.configure(self.settings)
        self.node_health.tracker.configure(tracker_rules(self.settings, self._node_labels))
        self._settings_changed.set()
        self.reconciler.trigger()
        log.info("configuration reloaded", file=str(self._file.path))

    # -- status --------------------------------------------------------------------------------------------------------

    def status(self) -> AgentStatus:
        """The agent's current status, for metrics and pages."""
        current = self.is_current()
        tracker, quarantine = self.node_health.tracker, self.reconciler.status
        blocked = quarantine.blocked
        return AgentStatus(
            node=self.settings.node_name,
            verdict=self.node_health.verdict if current else None,
            findings=tracker.active(),
            not_checked=tracker.coverage.unmeasured,
            last_measured=tracker.coverage.last_measured(),
            counts=self.counts,
            monitors=tuple(self._monitor_status(runner, current) for runner in self.runners.values()),
            child_pids=tuple(self._nvidia.pids),
            kernel_log_records=self.kernel_log.records,
            kernel_log_lost=self.kernel_log.lost_records,
            kernel_log_lag_seconds=self.kernel_log.lag_seconds,
            journal_errors=self.journal.errors,
            blocked=BlockedStatus(blocked.budget, blocked.limit, blocked.code) if blocked else None,
            unreadable_objects=quarantine.unreadable,
            marks_removed=quarantine.marks_removed,
            config_valid=self._config_valid,
        )

    def _monitor_status(self, runner: MonitorRunner, current: bool) -> MonitorStatus:
        name, state = runner.monitor.name, self.node_health
        latest = state.judge.readings.of(runner.monitor)
        return MonitorStatus(
            monitor=runner.monitor,
            context=MetricsContext(
                readings=latest if current else UNREAD,
                last_readings=latest,
                settings=self.settings,
                probe=runner.probe,
            ),
            rounds=self.counts.rounds[name],
            read_seconds=runner.read_seconds,
            judge_seconds=state.judge_seconds.get(name, 0.0),
            last_round=state.last_round.get(name),
            timeouts=runner.timeouts,
            errors=runner.errors,
            check_errors=state.judge.failures[name],
        )


def _warn_of_unmatched(settings: Settings) -> None:
    if patterns := unmatched_patterns(settings):
        log.warning("settings for unknown findings", patterns=patterns)
