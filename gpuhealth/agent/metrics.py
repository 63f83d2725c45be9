"""The agent's metrics, made from its memory once a round and on every change: no scrape waits on a probe.

A value that could not be read has no sample: a frozen number would look like a healthy one. `gpuhealth_not_checked`
says what is missing and why. For the same reason a driver that is overdue has no samples of GPUs, and an agent whose
rounds have stopped says unknown, whatever its last verdict was.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import psutil
from prometheus_client import ProcessCollector
from prometheus_client.core import Metric

from gpuhealth import __version__
from gpuhealth.agent.agent import Agent
from gpuhealth.model.missing import Missing
from gpuhealth.model.verdict import State
from gpuhealth.monitors.nvidia.readings import GpuReadings, NvmlReadings
from gpuhealth.quarantine.slots.holder import NO_BUDGET
from gpuhealth.runtime.exposition import CONTENT_TYPE, Collect, Rendering
from gpuhealth.runtime.metric_families import counter, gauge

_PAUSE_SECONDS = 0.2
_LINK_IS_UP = (1, 3)  # active; active without traffic
_LOOPS = (
    "round",
    "follow_kernel_log",
    "write_journal",
    "mark_node",
    "serve",
)  # shown from the start: a rate needs its zero


class Exposition:
    """The text that Prometheus gets."""

    content_type = CONTENT_TYPE

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._rendering = Rendering("agent", _collectors(agent))
        self._made: tuple[int, float] = (-1, 0.0)  # of which version of the agent's memory, when
        self._text = b""

    def text(self) -> bytes:
        """The metrics as of the agent's last round or change; never older than a round, though rounds may fail."""
        version, made_at = self._made
        if version != self._agent.version or time.monotonic() - made_at >= self._agent.settings.interval:
            self._made = self._agent.version, time.monotonic()
            self._text = self._rendering.text()
        return self._text

    async def keep(self) -> None:
        """Renders ahead of the scrapes, for ever: with eight GPUs it takes milliseconds, which no scrape then waits."""
        while True:
            self._agent.updated.clear()
            self.text()
            await asyncio.sleep(_PAUSE_SECONDS)  # a storm of events is not a storm of renderings
            await self._agent.updated.wait()


def _collectors(agent: Agent) -> dict[str, Collect]:
    """By name; each is a failure domain of its own."""
    node = _NodeMetrics(agent)
    gpus = {"gpu_info": _gpu_info, "gpu_readings": _gpu_readings, "gpu_counters": _gpu_counters, "gpu_links": _links}
    return {
        "verdict": node.verdict,
        "findings": node.findings,
        "checks": node.checks,
        "agent": node.agent,
        "nvml": node.nvml,
        "memory": node.memory,
        **{name: partial(_of_gpus, agent, metrics) for name, metrics in gpus.items()},
        "process": ProcessCollector(registry=None).collect,
    }


class _NodeMetrics:
    """What is known of the node and of the agent itself."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def verdict(self) -> Iterator[Metric]:
        agent = self._agent
        verdict = agent.verdict if agent.is_current() else None
        state = verdict.verdict if verdict else State.UNKNOWN
        yield gauge("node_healthy", "1 while the node can be trusted with work", (), [(state is State.HEALTHY,)])
        yield gauge("verdict", "1 for the node's verdict", ["verdict"], [(each, each is state) for each in State])
        gpus = [(gpu.uuid, each, each is gpu.verdict) for gpu in (verdict.gpus if verdict else ()) for each in State]
        yield gauge("gpu_verdict", "1 for the verdict of a GPU, of one that is gone too", ["gpu", "verdict"], gpus)

    def findings(self) -> Iterator[Metric]:
        agent = self._agent
        findings = agent.findings.active()
        yield gauge(
            "finding",
            "1 while a finding is active",
            ["code", "severity", "component", "gpu"],
            [(finding.code, finding.severity, finding.component, finding.gpu, 1) for finding in findings],
        )
        counts = agent.counts
        yield counter("findings", "Findings raised", ["code"], counts.findings.items())
        xids = [(*key, value) for key, value in counts.xids.items()]
        yield counter("xid_errors", "XIDs seen in the kernel log or told by NVML", ["xid", "gpu"], xids)
        yield counter("kernel_events", "Kernel-log records that mean something", ["kind"], counts.kernel_events.items())

    def checks(self) -> Iterator[Metric]:
        agent = self._agent
        missing = {(check, reason.reason) for (check, _), reason in agent.findings.measured.unmeasured.items()}
        yield gauge(
            "not_checked", "1 for a check that could not be made", ["check", "reason"], [(*m, 1) for m in missing]
        )
        reasons = agent.release.current.reasons if agent.release.current else ()
        yield gauge(
            "released",
            "1 while NVML is not measured since the driver was let go on request, and until it is back",
            ["reason"],
            [(reason, 1) for reason in reasons],
        )
        yield gauge(
            "check_last_success_timestamp_seconds",
            "When a check last read all it needs",
            ["check"],
            [(check, when.timestamp()) for check, when in agent.findings.measured.last_measured().items()],
        )
        yield gauge("agent_judge_seconds", "Time that all checks of the last round took", [], [(agent.check_seconds,)])
        blocked = agent.keeper.status.blocked
        yield gauge(
            "quarantine_blocked",
            "1 while a limit of a budget leaves no slot for this node, or none can be sought (limit error)",
            ["budget", "limit", "code"],
            [(blocked.budget, blocked.limit, blocked.code, 1)] if blocked and blocked.limit != NO_BUDGET else [],
        )

    def agent(self) -> Iterator[Metric]:
        agent, counts = self._agent, self._agent.counts
        yield gauge(
            "agent_info", "Which agent this is", ["version", "node"], [(__version__, agent.settings.node_name, 1)]
        )
        if agent.readings is not None:
            read_at = [(agent.readings.time.timestamp(),)]
            yield gauge("agent_last_round_timestamp_seconds", "When the last round ended", [], read_at)
        yield counter("agent_rounds", "Rounds completed", [], [(counts.rounds,)])
        yield gauge("agent_round_seconds", "Time that reading the last round took", [], [(agent.round_seconds,)])
        yield counter("agent_kmsg_records", "Kernel-log records read", [], [(agent.kernel_log.records,)])
        yield counter("agent_kmsg_lost_records", "Records overwritten unread", [], [(agent.kernel_log.lost_records,)])
        yield gauge("agent_kmsg_lag_seconds", "Age of the last record when read", [], [(agent.kernel_log.lag_seconds,)])
        failures = dict.fromkeys(_LOOPS, 0) | counts.failures
        yield counter("loop_failures", "Unexpected errors by loop", ["loop"], failures.items())
        yield counter("agent_journal_errors", "Journal writes that failed", [], [(agent.journal.errors,)])
        api = [(method, status, value) for (method, status), value in counts.api_calls.items()]
        yield counter("kube_requests", "Requests to the API server; status 0: no answer", ["method", "status"], api)
        unreadable = agent.keeper.status.unreadable
        text = "Objects of the API server, each version once, that could not be read"
        yield counter("agent_unreadable_objects", text, ["kind"], unreadable.items())
        yield gauge("agent_config_valid", "0 while the configuration file is not usable", [], [(agent.config_valid,)])

    def nvml(self) -> Iterator[Metric]:
        agent = self._agent
        nvml = agent.readings.nvml if agent.readings else None
        if nvml is not None and not isinstance(nvml, Missing):
            waiting = nvml.waiting_seconds
            yield gauge(
                "agent_nvml_seconds", "NVML's last round, or the wait for the one outstanding", [], [(waiting,)]
            )
        yield gauge("agent_nvml_processes", "NVML processes, hung ones included", [], [(len(agent.probe.nvml.pids),)])
        starts = [(agent.probe.nvml.starts,)]
        yield counter("agent_nvml_process_starts", "NVML processes started", [], starts)
        yield gauge(
            "agent_driver_released", "1 while the driver is let go on request", [], [(agent.probe.nvml.released,)]
        )

    def memory(self) -> Iterator[Metric]:
        yield gauge(
            "agent_resident_memory_bytes", "Resident memory", ["process"], _resident(self._agent.probe.nvml.pids)
        )


def _resident(children: Iterable[int]) -> Iterator[tuple[str, int]]:
    yield "agent", psutil.Process().memory_info().rss
    total = 0
    for pid in children:
        with contextlib.suppress(psutil.Error):  # it has just ended
            total += psutil.Process(pid).memory_info().rss
    yield "nvml", total


# Metric, what it is, the field of GpuReadings, and the factor to the base unit.
_PLAIN = (
    ("temperature_celsius", "Temperature of the core", "temperature_celsius", 1.0),
    ("temperature_margin_celsius", "Degrees left before the GPU slows down", "temperature_margin_celsius", 1.0),
    ("memory_temperature_celsius", "Temperature of the memory", "memory_celsius", 1.0),
    ("power_watts", "Power drawn", "power_milliwatts", 1e-3),
    ("power_limit_watts", "Power limit that is enforced", "power_limit_milliwatts", 1e-3),
    ("sm_clock_hertz", "Clock of the multiprocessors", "sm_clock_mhz", 1e6),
    ("utilization_ratio", "Share of the time in which a kernel ran", "utilization_percent", 1e-2),
    ("memory_used_bytes", "Memory in use, less what the driver keeps", "memory_used_bytes", 1.0),
    ("memory_total_bytes", "Memory of the GPU", "memory_total_bytes", 1.0),
    ("pcie_width_lanes", "Lanes of the PCIe link in use", "pcie_width", 1.0),
    ("recovery_action", "NVML field 230; 0 is none", "recovery_action", 1.0),
)


def _of_gpus(agent: Agent, metrics: Callable[[NvmlReadings], Iterator[Metric]]) -> Iterator[Metric]:
    """The metrics of GPUs, while there is something current to say of them."""
    readings = agent.readings if agent.is_current() else None
    nvml = readings.nvml if readings else None
    if nvml is None or isinstance(nvml, Missing):
        return
    if nvml.answered or nvml.waiting_seconds < agent.settings.nvml.warn_after:
        yield from metrics(nvml)


def _gpu_info(nvml: NvmlReadings) -> Iterator[Metric]:
    identity = ("pci", "name", "serial", "vbios")
    labels = ["gpu", "index", "pci", "model", "serial", "vbios", "driver"]
    rows = [(g.component, g.index, *(getattr(g, name) for name in identity), nvml.driver_version) for g in nvml.gpus]
    known = [(*("" if isinstance(value, Missing) else value for value in row), 1) for row in rows]
    yield gauge("gpu_info", "What a GPU is", labels, known)


def _gpu_readings(nvml: NvmlReadings) -> Iterator[Metric]:
    for metric, text, field, factor in _PLAIN:
        values = ((g.component, getattr(g, field)) for g in nvml.gpus)
        scaled = [(gpu, value * factor) for gpu, value in values if not isinstance(value, Missing)]
        yield gauge(f"gpu_{metric}", text, ["gpu"], scaled)


def _gpu_counters(nvml: NvmlReadings) -> Iterator[Metric]:
    gpus = nvml.gpus
    replays = [(g.component, g.pcie_replays) for g in gpus]
    yield counter("gpu_pcie_replays", "Packets sent again over PCIe", ["gpu"], replays)
    throttled = [
        (g.component, reason, value / 1e9)
        for g in gpus
        for reason, value in g.throttle_nanoseconds.items()
        if not isinstance(value, Missing)
    ]
    held_back = "Time in which the clocks were held back"
    yield counter("gpu_throttle_seconds", held_back, ["gpu", "reason"], throttled)
    ecc = (
        "ECC errors: type (corrected, uncorrected), counter (volatile since the driver was loaded, aggregate), location"
    )
    yield counter("gpu_ecc_errors", ecc, ["gpu", "type", "counter", "location"], _ecc_errors(gpus))
    yield gauge("gpu_remapped_rows", "Memory rows remapped, by cause", ["gpu", "kind"], _remapped(gpus))
    pending = [(g.component, g.remap_pending) for g in gpus]
    yield gauge("gpu_row_remap_pending", "1 while a row remapping waits for a GPU reset", ["gpu"], pending)
    failed = [(g.component, g.remap_failed) for g in gpus]
    yield gauge("gpu_row_remap_failure", "1 when a row could not be remapped", ["gpu"], failed)


def _links(nvml: NvmlReadings) -> Iterator[Metric]:
    yield gauge("nvlink_up", "1 while an NVLink is active", ["gpu", "link"], _links_up(nvml.gpus))


def _links_up(gpus: tuple[GpuReadings, ...]) -> Iterator[tuple[Any, ...]]:
    for gpu in gpus:
        for link in () if isinstance(gpu.nvlinks, Missing) else gpu.nvlinks:
            if not isinstance(link.state, Missing):
                yield gpu.component, link.link, link.state in _LINK_IS_UP


def _ecc_errors(gpus: tuple[GpuReadings, ...]) -> Iterator[tuple[Any, ...]]:
    for gpu in gpus:
        for name, value in gpu.ecc_errors.items():
            counted, error_type, location = name.split("_", 2)  # volatile_uncorrected_dram
            yield gpu.component, error_type, counted, location, value


def _remapped(gpus: tuple[GpuReadings, ...]) -> Iterator[tuple[Any, ...]]:
    for gpu in gpus:
        yield gpu.component, "correctable", gpu.remap_correctable_rows
        yield gpu.component, "uncorrectable", gpu.remap_uncorrectable_rows
