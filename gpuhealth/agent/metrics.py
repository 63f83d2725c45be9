"""The agent's metrics, made from its status once a round and on every change: no scrape waits on a probe.

A value that could not be read has no sample: a frozen number would look like a healthy one. `gpuhealth_not_checked`
shows what is missing and why. For the same reason an agent whose rounds have stopped shows unknown, whatever its last
verdict was. What a monitor reads is shown by the metrics in its own folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Protocol

import psutil
from prometheus_client import ProcessCollector
from prometheus_client.core import Metric

from gpuhealth import __version__
from gpuhealth.agent.status import AgentStatus
from gpuhealth.model.component import Kind
from gpuhealth.model.verdict import State
from gpuhealth.monitors.registry import monitors
from gpuhealth.quarantine.slots.holder import NO_BUDGET
from gpuhealth.runtime.exposition import CONTENT_TYPE, Collect, Rendering
from gpuhealth.runtime.metric_families import counter, gauge

_PAUSE_SECONDS = 0.2
_LOOPS = (
    "housekeeping",
    "follow_kernel_log",
    "write_journal",
    "mark_node",
    "serve",
)  # shown from the start: a rate needs its zero


class StatusSource(Protocol):
    """What metrics are made from: an agent."""

    version: int
    changed: asyncio.Event

    def status(self) -> AgentStatus:
        """The agent as of now."""


class Exposition:
    """The text that Prometheus scrapes."""

    content_type = CONTENT_TYPE

    def __init__(self, agent: StatusSource, max_age_seconds: float) -> None:
        """The text is made again on every change, and when it is older than `max_age_seconds`."""
        self._agent = agent
        self._max_age = max_age_seconds
        self._status = agent.status()
        self._rendering = Rendering("agent", self._collectors())
        self._made: tuple[int, float] = (-1, 0.0)  # of which version of the status, when
        self._text = b""

    def text(self) -> bytes:
        """The metrics as of the agent's last round or change; never older than a round, though rounds may fail."""
        version, made_at = self._made
        if version != self._agent.version or time.monotonic() - made_at >= self._max_age:
            self._made = self._agent.version, time.monotonic()
            self._status = self._agent.status()
            self._text = self._rendering.text()
        return self._text

    async def keep(self) -> None:
        """Renders ahead of the scrapes, for ever: with eight GPUs it takes milliseconds, which no scrape then waits."""
        while True:
            self._agent.changed.clear()
            self.text()
            await asyncio.sleep(_PAUSE_SECONDS)  # a storm of events is not a storm of renderings
            await self._agent.changed.wait()

    def _collectors(self) -> dict[str, Collect]:
        """By name; each fails alone."""
        core = {"verdict": _verdict, "findings": _findings, "checks": _checks, "agent": _agent, "monitors": _monitors}
        collectors: dict[str, Collect] = {name: partial(self._collect, collect) for name, collect in core.items()}
        for monitor in monitors():
            for name in monitor.metrics:
                collectors[name] = partial(self._of_monitor, monitor.name, name)
        collectors["memory"] = partial(self._collect, _memory)
        collectors["process"] = ProcessCollector(registry=None).collect
        return collectors

    def _collect(self, collect: Callable[[AgentStatus], Iterator[Metric]]) -> Iterator[Metric]:
        return collect(self._status)

    def _of_monitor(self, monitor: str, collector: str) -> Iterator[Metric]:
        for part in self._status.monitors:
            if part.monitor.name == monitor:
                yield from part.monitor.metrics[collector](part.context)


def _verdict(status: AgentStatus) -> Iterator[Metric]:
    verdict = status.verdict
    state = verdict.verdict if verdict else State.UNKNOWN
    yield gauge("node_healthy", "1 while the node can be trusted with work", (), [(state is State.HEALTHY,)])
    yield gauge("verdict", "1 for the node's verdict", ["verdict"], [(each, each is state) for each in State])
    gpus = [(gpu.uuid, each, each is gpu.verdict) for gpu in (verdict.gpus if verdict else ()) for each in State]
    text = "1 for the current verdict of each GPU, missing GPUs included"
    yield gauge("gpu_verdict", text, ["gpu", "verdict"], gpus)
    parts = verdict.components if verdict else ()
    rows = [
        (part.kind, part.id, part.parent, each, each is part.verdict)
        for part in parts
        if part.kind is not Kind.GPU
        for each in State
    ]
    text = "1 for the current verdict of each component that is no GPU"
    yield gauge("component_verdict", text, ["kind", "component", "parent", "verdict"], rows)


def _findings(status: AgentStatus) -> Iterator[Metric]:
    rows = [
        (finding.code, finding.severity, finding.component.kind, finding.component.id, finding.component.parent, 1)
        for finding in status.findings
    ]
    yield gauge("finding", "1 while a finding is active", ["code", "severity", "kind", "component", "parent"], rows)
    counts = status.counts
    yield counter("findings", "Findings raised", ["code"], counts.findings.items())
    xids = [(*key, value) for key, value in counts.xids.items()]
    yield counter("xid_errors", "XIDs seen in the kernel log or reported by NVML", ["xid", "gpu"], xids)
    yield counter("kernel_events", "Kernel-log records that mean something", ["kind"], counts.kernel_events.items())


def _checks(status: AgentStatus) -> Iterator[Metric]:
    missing = {(check, reason.reason) for (check, _), reason in status.not_checked.items()}
    yield gauge("not_checked", "1 for a check that could not be made", ["check", "reason"], [(*m, 1) for m in missing])
    yield gauge(
        "check_last_success_timestamp_seconds",
        "When a check last read all it needs",
        ["check"],
        [(check, when.timestamp()) for check, when in status.last_measured.items()],
    )
    blocked = status.blocked
    yield gauge(
        "quarantine_blocked",
        "1 while a limit of a budget leaves no slot for this node, or none can be sought (limit error)",
        ["budget", "limit", "code"],
        [(blocked.budget, blocked.limit, blocked.code, 1)] if blocked and blocked.limit != NO_BUDGET else [],
    )


def _agent(status: AgentStatus) -> Iterator[Metric]:
    counts = status.counts
    yield gauge("agent_info", "Which agent this is", ["version", "node"], [(__version__, status.node, 1)])
    yield counter("agent_kmsg_records", "Kernel-log records read", [], [(status.kernel_log_records,)])
    yield counter("agent_kmsg_lost_records", "Records overwritten unread", [], [(status.kernel_log_lost,)])
    yield gauge("agent_kmsg_lag_seconds", "Age of the last record when read", [], [(status.kernel_log_lag_seconds,)])
    loops = [*_LOOPS, *(f"monitor_{part.monitor.name}" for part in status.monitors)]
    failures = dict.fromkeys(loops, 0) | counts.failures
    yield counter("loop_failures", "Unexpected errors by loop", ["loop"], failures.items())
    yield counter("agent_journal_errors", "Journal writes that failed", [], [(status.journal_errors,)])
    api = [(method, code, value) for (method, code), value in counts.api_calls.items()]
    yield counter("kube_requests", "Requests to the API server; status 0: no answer", ["method", "status"], api)
    text = "Objects of the API server, each version once, that could not be read"
    yield counter("agent_unreadable_objects", text, ["kind"], status.unreadable_objects.items())
    yield gauge("agent_config_valid", "0 while the configuration file is not usable", [], [(status.config_valid,)])


def _monitors(status: AgentStatus) -> Iterator[Metric]:
    parts = [(part.monitor.name, part) for part in status.monitors]
    label = ["monitor"]
    yield counter("agent_rounds", "Rounds completed", label, [(name, part.rounds) for name, part in parts])
    ended = [(name, part.last_round.timestamp()) for name, part in parts if part.last_round]
    yield gauge("agent_last_round_timestamp_seconds", "When the last round ended", label, ended)
    seconds = [(name, part.read_seconds) for name, part in parts]
    yield gauge("agent_round_seconds", "Time that reading the last round took", label, seconds)
    judged = [(name, part.judge_seconds) for name, part in parts]
    yield gauge("agent_judge_seconds", "Time that the checks of the last round took", label, judged)
    late = [(name, part.timeouts) for name, part in parts]
    yield counter("agent_monitor_timeouts", "Rounds in which nothing was read before the deadline", label, late)
    failed = [(name, part.errors) for name, part in parts]
    yield counter("agent_monitor_errors", "Rounds in which reading raised an error", label, failed)
    broken = [(name, part.check_errors) for name, part in parts]
    yield counter("agent_check_errors", "Checks that raised an error", label, broken)


def _memory(status: AgentStatus) -> Iterator[Metric]:
    rows = _resident(status.child_pids)
    yield gauge("agent_resident_memory_bytes", "Resident memory", ["process"], rows)


def _resident(children: Iterable[int]) -> Iterator[tuple[str, int]]:
    yield "agent", psutil.Process().memory_info().rss
    total = 0
    for pid in children:
        with contextlib.suppress(psutil.Error):  # it has just ended
            total += psutil.Process(pid).memory_info().rss
    yield "nvml", total
