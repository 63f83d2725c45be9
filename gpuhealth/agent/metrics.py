"""The agent's metrics, rendered from its status once a round and on every change: no scrape waits for a probe.

A value that could not be read has no sample: a frozen number would look like a healthy one. `gpuhealth_not_checked`
has the missing ones and their reasons. For the same reason an agent whose rounds have stopped shows unknown, regardless
of its last verdict. The metrics of a monitor's readings are in the monitor's folder.
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
from gpuhealth.api import metrics as names
from gpuhealth.model.component import Kind
from gpuhealth.model.verdict import State
from gpuhealth.monitors.registry import monitors
from gpuhealth.quarantine.slots.holder import NO_BUDGET
from gpuhealth.runtime.exposition import CONTENT_TYPE, Collect, Rendering
from gpuhealth.runtime.metric_families import family

_PAUSE_SECONDS = 0.2
_LOOPS = (
    "housekeeping",
    "follow_kernel_log",
    "write_journal",
    "mark_node",
    "serve",
)  # present from the start: a rate needs its zero


class StatusSource(Protocol):
    """Source of the metrics: an agent."""

    version: int
    changed: asyncio.Event

    def status(self) -> AgentStatus:
        """The agent's current status."""


class Exposition:
    """The metrics text for Prometheus."""

    content_type = CONTENT_TYPE

    def __init__(self, agent: StatusSource, max_age_seconds: float) -> None:
        """The text is rendered on every change, and when it is older than `max_age_seconds`."""
        self._agent = agent
        self._max_age = max_age_seconds
        self._status = agent.status()
        self._rendering = Rendering(names.AGENT_METRICS_ERRORS, self._collectors())
        self._made: tuple[int, float] = (-1, 0.0)  # version of the status, and time
        self._text = b""

    def text(self) -> bytes:
        """The metrics of the agent's last round or change; never older than a round, even if rounds fail."""
        version, made_at = self._made
        if version != self._agent.version or time.monotonic() - made_at >= self._max_age:
            self._made = self._agent.version, time.monotonic()
            self._status = self._agent.status()
            self._text = self._rendering.text()
        return self._text

    async def keep(self) -> None:
        """Renders before the scrapes, forever: with eight GPUs a scrape would wait some milliseconds for it."""
        while True:
            self._agent.changed.clear()
            self.text()
            await self._agent.changed.wait()
            await asyncio.sleep(_PAUSE_SECONDS)  # one rendering for the rounds of all monitors, or for many events

    def _collectors(self) -> dict[str, Collect]:
        """Collectors by name; each fails independently."""
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
    yield family(names.NODE_HEALTHY, [(state is State.HEALTHY,)])
    yield family(names.VERDICT, [(each, each is state) for each in State])
    gpus = [(gpu.uuid, each, each is gpu.verdict) for gpu in (verdict.gpus if verdict else ()) for each in State]
    yield family(names.GPU_VERDICT, gpus)
    parts = verdict.components if verdict else ()
    rows = [
        (part.kind, part.id, part.parent, each, each is part.verdict)
        for part in parts
        if part.kind is not Kind.GPU
        for each in State
    ]
    yield family(names.COMPONENT_VERDICT, rows)


def _findings(status: AgentStatus) -> Iterator[Metric]:
    rows = [
        (finding.code, finding.severity, finding.component.kind, finding.component.id, finding.component.parent, 1)
        for finding in status.findings
    ]
    yield family(names.FINDING, rows)
    counts = status.counts
    yield family(names.FINDINGS, counts.findings.items())
    xids = [(*key, value) for key, value in counts.xids.items()]
    yield family(names.XID_ERRORS, xids)
    yield family(names.KERNEL_EVENTS, counts.kernel_events.items())


def _checks(status: AgentStatus) -> Iterator[Metric]:
    missing = {(check, reason.reason) for (check, _), reason in status.not_checked.items()}
    yield family(names.NOT_CHECKED, [(*m, 1) for m in missing])
    yield family(names.CHECK_LAST_SUCCESS, [(check, when.timestamp()) for check, when in status.last_measured.items()])
    blocked = status.blocked
    yield family(
        names.QUARANTINE_BLOCKED,
        [(blocked.budget, blocked.limit, blocked.code, 1)] if blocked and blocked.limit != NO_BUDGET else [],
    )


def _agent(status: AgentStatus) -> Iterator[Metric]:
    counts = status.counts
    yield family(names.AGENT_INFO, [(__version__, status.node, 1)])
    yield family(names.AGENT_KMSG_RECORDS, [(status.kernel_log_records,)])
    yield family(names.AGENT_KMSG_LOST_RECORDS, [(status.kernel_log_lost,)])
    yield family(names.AGENT_KMSG_LAG, [(status.kernel_log_lag_seconds,)])
    loops = [*_LOOPS, *(f"monitor_{part.monitor.name}" for part in status.monitors)]
    failures = dict.fromkeys(loops, 0) | counts.failures
    yield family(names.LOOP_FAILURES, failures.items())
    yield family(names.AGENT_JOURNAL_ERRORS, [(status.journal_errors,)])
    api = [(method, code, value) for (method, code), value in counts.api_calls.items()]
    yield family(names.KUBE_REQUESTS, api)
    yield family(names.MARKS_REMOVED, status.marks_removed.items())
    yield family(names.AGENT_UNREADABLE_OBJECTS, status.unreadable_objects.items())
    yield family(names.AGENT_CONFIG_VALID, [(status.config_valid,)])


def _monitors(status: AgentStatus) -> Iterator[Metric]:
    parts = [(part.monitor.name, part) for part in status.monitors]
    yield family(names.AGENT_ROUNDS, [(name, part.rounds) for name, part in parts])
    ended = [(name, part.last_round.timestamp()) for name, part in parts if part.last_round]
    yield family(names.AGENT_LAST_ROUND, ended)
    seconds = [(name, part.read_seconds) for name, part in parts]
    yield family(names.AGENT_ROUND_SECONDS, seconds)
    judged = [(name, part.judge_seconds) for name, part in parts]
    yield family(names.AGENT_JUDGE_SECONDS, judged)
    late = [(name, part.timeouts) for name, part in parts]
    yield family(names.AGENT_MONITOR_TIMEOUTS, late)
    failed = [(name, part.errors) for name, part in parts]
    yield family(names.AGENT_MONITOR_ERRORS, failed)
    broken = [(name, part.check_errors) for name, part in parts]
    yield family(names.AGENT_CHECK_ERRORS, broken)


def _memory(status: AgentStatus) -> Iterator[Metric]:
    rows = _resident(status.child_pids)
    yield family(names.AGENT_MEMORY, rows)


def _resident(children: Iterable[int]) -> Iterator[tuple[str, int]]:
    yield "agent", psutil.Process().memory_info().rss
    total = 0
    for pid in children:
        with contextlib.suppress(psutil.Error):  # it has just ended
            total += psutil.Process(pid).memory_info().rss
    yield "nvml", total
