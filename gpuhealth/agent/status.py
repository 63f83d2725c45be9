"""The agent's status: everything that metrics and HTTP pages read, in one place."""

from __future__ import annotations

from collections import Counter
from datetime import datetime

import msgspec

from gpuhealth.model.component import Component
from gpuhealth.model.finding import Finding
from gpuhealth.model.missing import Missing
from gpuhealth.model.verdict import Verdict
from gpuhealth.monitors.monitor import MetricsContext
from gpuhealth.monitors.registry import AnyMonitor


class Counts(msgspec.Struct):
    """Counters of events since the agent started."""

    findings: Counter[str] = msgspec.field(default_factory=Counter)  # by code
    xids: Counter[tuple[str, str]] = msgspec.field(default_factory=Counter)  # by XID and GPU
    kernel_events: Counter[str] = msgspec.field(default_factory=Counter)  # by kind
    failures: Counter[str] = msgspec.field(default_factory=Counter)  # by loop
    api_calls: Counter[tuple[str, int]] = msgspec.field(default_factory=Counter)  # by method and status
    rounds: Counter[str] = msgspec.field(default_factory=Counter)  # by monitor


class MonitorStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One monitor: its number of rounds, and the input of its metrics."""

    monitor: AnyMonitor
    context: MetricsContext  # type: ignore[type-arg]  # of the monitor's own types
    rounds: int
    read_seconds: float  # duration of the last read
    judge_seconds: float  # duration of the last checks
    last_round: datetime | None  # when it ended
    timeouts: int
    errors: int
    check_errors: int


class BlockedStatus(msgspec.Struct, frozen=True):
    """A budget without a free slot for this node."""

    budget: str
    limit: str
    code: str  # the finding that needs the slot


class AgentStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The agent's status at a point in time."""

    node: str
    verdict: Verdict | None  # None before the first round, and once it is outdated
    findings: tuple[Finding, ...]
    not_checked: dict[tuple[str, Component], Missing]
    last_measured: dict[str, datetime]  # by finding code
    counts: Counts
    monitors: tuple[MonitorStatus, ...]
    child_pids: tuple[int, ...]  # of processes that probes run
    kernel_log_records: int
    kernel_log_lost: int
    kernel_log_lag_seconds: float
    journal_errors: int
    blocked: BlockedStatus | None
    unreadable_objects: dict[str, int]  # of the API server, by kind
    marks_removed: dict[str, int]  # how often other clients have removed the agent's marks, by person or program
    config_valid: bool
