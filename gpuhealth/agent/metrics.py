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
from gpuhealth.api import metrics as names
from gpuhealth.model.missing import Missing
from gpuhealth.model.verdict import State
from gpuhealth.monitors.nvidia import metric_names as nvidia
from gpuhealth.monitors.nvidia.readings import GpuReadings, NvmlReadings
from gpuhealth.quarantine.slots import NO_BUDGET
from gpuhealth.runtime.exposition import CONTENT_TYPE, Collect, Rendering
from gpuhealth.runtime.metric_families import family

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
        self._rendering = Rendering(names.AGENT_METRICS_ERRORS, _collectors(agent))
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
        yield family(names.NODE_HEALTHY, [(state is State.HEALTHY,)])
        yield family(names.VERDICT, [(each, each is state) for each in State])
        gpus = [(gpu.uuid, each, each is gpu.verdict) for gpu in (verdict.gpus if verdict else ()) for each in State]
        yield family(names.GPU_VERDICT, gpus)

    def findings(self) -> Iterator[Metric]:
        agent = self._agent
        findings = agent.findings.active()
        yield family(
            names.FINDING, [(finding.code, finding.severity, finding.component, finding.gpu, 1) for finding in findings]
        )
        counts = agent.counts
        yield family(names.FINDINGS, counts.findings.items())
        xids = [(*key, value) for key, value in counts.xids.items()]
        yield family(names.XID_ERRORS, xids)
        yield family(names.KERNEL_EVENTS, counts.kernel_events.items())

    def checks(self) -> Iterator[Metric]:
        agent = self._agent
        missing = {(check, reason.reason) for (check, _), reason in agent.findings.measured.unmeasured.items()}
        yield family(names.NOT_CHECKED, [(*m, 1) for m in missing])
        reasons = agent.release.current.reasons if agent.release.current else ()
        yield family(nvidia.RELEASED, [(reason, 1) for reason in reasons])
        yield family(
            names.CHECK_LAST_SUCCESS,
            [(check, when.timestamp()) for check, when in agent.findings.measured.last_measured().items()],
        )
        yield family(names.AGENT_JUDGE_SECONDS, [(agent.check_seconds,)])
        held = agent.keeper.writer.held if agent.keeper.writer else None
        yield family(
            names.QUARANTINE_BLOCKED,
            [(held[0].budget, held[0].limit, held[1], 1)] if held and held[0].limit != NO_BUDGET else [],
        )

    def agent(self) -> Iterator[Metric]:
        agent, counts = self._agent, self._agent.counts
        yield family(names.AGENT_INFO, [(__version__, agent.settings.node_name, 1)])
        if agent.readings is not None:
            read_at = [(agent.readings.time.timestamp(),)]
            yield family(names.AGENT_LAST_ROUND, read_at)
        yield family(names.AGENT_ROUNDS, [(counts.rounds,)])
        yield family(names.AGENT_ROUND_SECONDS, [(agent.round_seconds,)])
        yield family(names.AGENT_KMSG_RECORDS, [(agent.kernel_log.records,)])
        yield family(names.AGENT_KMSG_LOST_RECORDS, [(agent.kernel_log.lost_records,)])
        yield family(names.AGENT_KMSG_LAG, [(agent.kernel_log.lag_seconds,)])
        failures = dict.fromkeys(_LOOPS, 0) | counts.failures
        yield family(names.LOOP_FAILURES, failures.items())
        yield family(names.AGENT_JOURNAL_ERRORS, [(agent.journal.errors,)])
        api = [(method, status, value) for (method, status), value in counts.api_calls.items()]
        yield family(names.KUBE_REQUESTS, api)
        unreadable = agent.keeper.writer.unreadable if agent.keeper.writer else {}
        yield family(names.AGENT_UNREADABLE_OBJECTS, unreadable.items())
        yield family(names.AGENT_CONFIG_VALID, [(agent.config_valid,)])

    def nvml(self) -> Iterator[Metric]:
        agent = self._agent
        nvml = agent.readings.nvml if agent.readings else None
        if nvml is not None and not isinstance(nvml, Missing):
            waiting = nvml.waiting_seconds
            yield family(nvidia.NVML_SECONDS, [(waiting,)])
        yield family(nvidia.NVML_PROCESSES, [(len(agent.probe.nvml.pids),)])
        starts = [(agent.probe.nvml.starts,)]
        yield family(nvidia.NVML_PROCESS_STARTS, starts)
        yield family(nvidia.DRIVER_RELEASED, [(agent.probe.nvml.released,)])

    def memory(self) -> Iterator[Metric]:
        yield family(names.AGENT_MEMORY, _resident(self._agent.probe.nvml.pids))


def _resident(children: Iterable[int]) -> Iterator[tuple[str, int]]:
    yield "agent", psutil.Process().memory_info().rss
    total = 0
    for pid in children:
        with contextlib.suppress(psutil.Error):  # it has just ended
            total += psutil.Process(pid).memory_info().rss
    yield "nvml", total


# Metric, the field of GpuReadings, and the factor to the base unit.
_PLAIN = (
    (nvidia.TEMPERATURE, "temperature_celsius", 1.0),
    (nvidia.TEMPERATURE_MARGIN, "temperature_margin_celsius", 1.0),
    (nvidia.MEMORY_TEMPERATURE, "memory_celsius", 1.0),
    (nvidia.POWER, "power_milliwatts", 1e-3),
    (nvidia.POWER_LIMIT, "power_limit_milliwatts", 1e-3),
    (nvidia.SM_CLOCK, "sm_clock_mhz", 1e6),
    (nvidia.UTILIZATION, "utilization_percent", 1e-2),
    (nvidia.MEMORY_USED, "memory_used_bytes", 1.0),
    (nvidia.MEMORY_TOTAL, "memory_total_bytes", 1.0),
    (nvidia.PCIE_WIDTH, "pcie_width", 1.0),
    (nvidia.RECOVERY_ACTION, "recovery_action", 1.0),
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
    rows = [(g.component, g.index, *(getattr(g, name) for name in identity), nvml.driver_version) for g in nvml.gpus]
    known = [(*("" if isinstance(value, Missing) else value for value in row), 1) for row in rows]
    yield family(nvidia.GPU_INFO, known)


def _gpu_readings(nvml: NvmlReadings) -> Iterator[Metric]:
    for metric, field, factor in _PLAIN:
        values = ((g.component, getattr(g, field)) for g in nvml.gpus)
        scaled = [(gpu, value * factor) for gpu, value in values if not isinstance(value, Missing)]
        yield family(metric, scaled)


def _gpu_counters(nvml: NvmlReadings) -> Iterator[Metric]:
    gpus = nvml.gpus
    replays = [(g.component, g.pcie_replays) for g in gpus]
    yield family(nvidia.PCIE_REPLAYS, replays)
    throttled = [
        (g.component, reason, value / 1e9)
        for g in gpus
        for reason, value in g.throttle_nanoseconds.items()
        if not isinstance(value, Missing)
    ]
    yield family(nvidia.THROTTLE_SECONDS, throttled)
    yield family(nvidia.ECC_ERRORS, _ecc_errors(gpus))
    yield family(nvidia.REMAPPED_ROWS, _remapped(gpus))
    pending = [(g.component, g.remap_pending) for g in gpus]
    yield family(nvidia.ROW_REMAP_PENDING, pending)
    failed = [(g.component, g.remap_failed) for g in gpus]
    yield family(nvidia.ROW_REMAP_FAILURE, failed)


def _links(nvml: NvmlReadings) -> Iterator[Metric]:
    yield family(nvidia.NVLINK_UP, _links_up(nvml.gpus))


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
