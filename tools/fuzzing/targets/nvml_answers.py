"""Lies of NVML, through the NVML process, its protocol, the parent, the checks, verdict, metrics and report."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import random
from datetime import timedelta
from itertools import chain
from typing import Any

import msgspec
from prometheus_client.core import Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from testing.readings import LOADED, START

from fuzzing import nvml_replay
from fuzzing.nvml_replay import ERRORS, VALUES, Lie, Node, Replay
from fuzzing.target import encoded, require, require_printable
from gpuhealth.api.report import Quarantine
from gpuhealth.api.resource import body
from gpuhealth.model.kernel_event import KernelLogStatus
from gpuhealth.model.missing import NOT_SUPPORTED, Missing
from gpuhealth.model.tracker import FindingTracker
from gpuhealth.model.verdict import State, Verdict
from gpuhealth.monitors.judge import Judge, Memory, tracker_rules
from gpuhealth.monitors.kernel_log.monitor import MONITOR as KERNEL_LOG
from gpuhealth.monitors.monitor import MetricsContext
from gpuhealth.monitors.nvidia.baseline import Baseline
from gpuhealth.monitors.nvidia.metrics import METRICS
from gpuhealth.monitors.nvidia.monitor import MONITOR as NVIDIA
from gpuhealth.monitors.nvidia.nvml import child as nvml_child
from gpuhealth.monitors.nvidia.nvml import process as nvml_process
from gpuhealth.monitors.nvidia.readings import NvidiaReadings, NvmlReadings, PciDevice
from gpuhealth.monitors.own_faults import MONITOR_FAILED
from gpuhealth.monitors.settings import Settings
from gpuhealth.quarantine.condition import summary
from gpuhealth.quarantine.report import Facts, status_of

_NODES = (("l40s", 4), ("h100-sxm", 2), ("b200", 2), ("t4", 1))
_MOST_BYTES = 1 << 20
_PIPE_BYTES = 1 << 20
_NAMES = {"nvmlDeviceGetHandleByIndex", "nvmlDeviceGetUUID", "nvmlDeviceGetPciInfo"}
_PARTS = {
    "nvmlDeviceGetFieldValues": ("nvmlReturn", "valueType", "value", "fieldId"),
    "nvmlDeviceGetMemoryInfo": ("total", "used", "free", "version"),
    "nvmlDeviceGetUtilizationRates": ("gpu", "memory"),
    "nvmlDeviceGetPciInfo": ("domain", "bus", "device", "busId"),
    "nvmlDeviceGetRowRemapperHistogram": ("max", "high", "partial", "low", "none"),
}
_CODES = (*range(31), 99, 123, 255, 998, 999, 1000, -1, -999, 2**31 - 1)
_NUMBERS = (
    0,
    1,
    2,
    3,
    4,
    7,
    15,
    16,
    64,
    255,
    256,
    257,
    1000,
    10**6,
    2**31,
    2**32 - 1,
    2**63,
    2**64 - 1,
    -1,
    -40,
    -(2**63),
    0.0,
    1e-12,
    1e300,
)
_MOST_SHOWN = 8  # GPUs whose metrics are rendered and parsed
_MANY = (64, 255, 256)
_FAULTS = {"gpu_memory.remap_failed": Lie(call="nvmlDeviceGetRemappedRows", gpu=0, place=3, kind="value", value=1)}


class Case(msgspec.Struct, forbid_unknown_fields=True):
    """What the driver answers in some rounds."""

    node: int
    rounds: list[list[Lie]]
    remembered: bool  # whether the agent knows the GPUs from before
    fault: str = ""  # a true fault of one GPU


class Target:
    """A case is one to three rounds of a node whose driver lies; the NVML process runs inside this one."""

    def __init__(self) -> None:
        self._replay = Replay(_NODES)
        self._loop = asyncio.new_event_loop()
        self._settings = Settings()
        self._descriptors: list[int] = []
        self._quarantined: set[str] = set()
        self._before = nvml_process._spawn, nvml_child._input_ended, nvml_child.ANSWER_FD, nvml_child.PROGRESS_FD
        nvml_process._spawn = self._spawned  # type: ignore[assignment]  # a method in place of a function
        nvml_child._input_ended = lambda: False
        self._honest = [self._honest_readings(node) for node in self._replay.nodes]

    # --- cases --------------------------------------------------------------------------------------------------------

    def make(self, chance: random.Random) -> bytes:
        """Lies about some calls of some GPUs."""
        number = chance.choices(range(len(_NODES)), (4, 2, 1, 2))[0]
        fault = "gpu_memory.remap_failed" if chance.random() < 0.3 and _NODES[number][0] != "t4" else ""
        rounds = []
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            lies = [self._lie(chance, _NODES[number][1]) for _ in range(chance.choice((1, 1, 2, 3, 5, 12)))]
            rounds.append([lie for lie in lies if not fault or lie.call != _FAULTS[fault].call])
        return msgspec.json.encode(Case(number, rounds, chance.random() < 0.5, fault))

    def _lie(self, chance: random.Random, gpus: int) -> Lie:
        call = chance.choice(nvml_replay.CALLS)
        gpu = chance.randrange(gpus) if chance.random() < 0.8 else -1
        roll = chance.random()
        if roll < 0.05:
            return Lie(call=call, gpu=gpu, kind="other")
        if roll < 0.25:
            return Lie(call=call, gpu=gpu, kind="code", value=chance.choice(_CODES))
        if roll < 0.35:
            return Lie(call=call, gpu=gpu, kind="raise", value=chance.choice([*ERRORS]))
        value = chance.choice([*VALUES]) if roll < 0.75 else chance.choice(_NUMBERS)
        if call == "nvmlDeviceGetCount" and value in _MANY and chance.random() < 0.9:
            value = gpus - 1  # a round of hundreds of GPUs takes as long as a hundred others
        part = chance.choice(_PARTS[call]) if call in _PARTS and chance.random() < 0.7 else ""
        place = chance.randrange(12) if chance.random() < 0.5 or call == "nvmlDeviceGetFieldValues" else -1
        return Lie(call=call, gpu=gpu, place=place, kind="value", value=value, part=part)

    # --- the check ----------------------------------------------------------------------------------------------------

    def check(self, case: bytes) -> int:
        """No lie ends a round, costs another GPU anything, hides a fault, or makes a node healthy that was not read."""
        plan = msgspec.json.decode(case, type=Case)
        node, honest = self._replay.nodes[plan.node], self._honest[plan.node]
        remembered = {str(gpu.uuid): gpu.pci for gpu in node.gpus}
        baseline = Baseline(gpus=remembered) if plan.remembered else Baseline()  # type: ignore[arg-type]
        judge = Judge(self._settings, Memory(baselines={"nvidia": baseline}), boot_id="boot-1", time=START)
        fault = [_FAULTS[plan.fault]] if plan.fault else []
        with self._probe() as (probe, child):
            for number, lies in enumerate(plan.rounds):
                with self._replay.telling(node, [*fault, *lies]):
                    nvml = self._round(probe, child)
                readings = msgspec.structs.replace(honest, nvml=nvml)
                verdict = self._judged(judge, readings, number)
                self._check_round(nvml, node, [*fault, *chain.from_iterable(plan.rounds[: number + 1])])
                self._check_verdict(verdict, readings, node, plan)
        return len(plan.rounds)

    def _round(self, probe: nvml_process.NvmlProbe, child: Any) -> NvmlReadings:
        async def read() -> NvmlReadings:
            reading = asyncio.ensure_future(probe.read(60.0))
            await asyncio.sleep(0)  # it has sent its request
            with contextlib.suppress(BrokenPipeError):  # the parent has closed this process, which ends then
                if "nvmlDeviceGetCount" in self._replay.lies:  # the answer may not fit in the pipe
                    await asyncio.to_thread(child().round)
                else:
                    child().round()
            return await reading

        return self._loop.run_until_complete(read())

    @contextlib.contextmanager
    def _probe(self) -> Any:
        """The probe, and the process that it has started: an object in this one, on the descriptors of the other."""
        self._descriptors = []
        made: list[Any] = []
        probe = nvml_process.NvmlProbe(self._settings.nvml)

        def child() -> Any:
            if not made:
                nvml_child.ANSWER_FD, nvml_child.PROGRESS_FD = self._descriptors[0], self._descriptors[1]
                made.append(nvml_child._Child(0.0, []))
            return made[0]

        try:
            yield probe, child
        finally:
            for child_process in made:
                child_process._page.close()
            self._loop.run_until_complete(_closed(probe))
            for each in self._descriptors:
                os.close(each)

    def _spawned(self, _: list[str], child_input: int, child_output: int, page: int) -> int:
        fcntl.fcntl(child_output, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._descriptors = [os.dup(child_output), os.dup(page), os.dup(child_input)]
        return os.getpid()

    def _judged(self, judge: Judge, readings: NvidiaReadings, number: int) -> Verdict:
        time = START + timedelta(seconds=10 * number)
        tracker = FindingTracker(tracker_rules(self._settings), one_look=True)
        judge.set_readings(KERNEL_LOG, KernelLogStatus("kmsg"), time)
        judge.set_readings(NVIDIA, readings, time)
        for monitor in (KERNEL_LOG, NVIDIA):
            judged = judge.round(monitor, judge.readings.of(monitor), time)  # type: ignore[misc]
            tracker.apply_round(monitor.name, judged, judge.facts())
        require(not judge.failures, f"checks failed: {dict(judge.failures)}")
        self._quarantined = {finding.code for finding in tracker.quarantine().findings}
        return tracker.verdict(judge.facts())

    def _check_round(self, nvml: NvmlReadings, node: Node, so_far: list[Lie]) -> None:
        require(nvml.answered or nvml.problem, "the round has not ended")
        encoded(nvml, 8 * _MOST_BYTES)
        require(nvml.problem is None or nvml.problem.reason != "agent_fault", f"the process failed: {nvml.problem}")
        if any(lie.call.startswith(("nvmlInit", "nvmlDeviceGetCount")) for lie in so_far):
            return
        require(len(nvml.gpus) == node.count, "a GPU is missing from the round")
        names_too = any(lie.call in _NAMES for lie in so_far)  # two GPUs that report one name lose it both
        touched = {-1} if names_too else {lie.gpu for lie in so_far}
        for gpu in nvml.gpus:
            require(gpu.error is None or gpu.error.reason != "agent_fault", f"not read by a bug: {gpu.error}")
            if -1 not in touched and gpu.index not in touched:
                read = msgspec.structs.replace(gpu, calls=node.gpus[gpu.index].calls)  # fixed properties are read once
                require(read == node.gpus[gpu.index], "a lie about one GPU has changed another")

    def _check_verdict(self, verdict: Verdict, readings: NvidiaReadings, node: Node, plan: Case) -> None:
        for finding in verdict.findings:
            require(finding.code != MONITOR_FAILED.name, f"{finding.code}: {finding.message}")
            require_printable(finding.message, f"the message of {finding.code}", 20_000)
            require_printable(finding.component.id, f"the component of {finding.code}", 300)
        text = summary(verdict)
        require_printable(text.message, "the condition's message")
        encoded(verdict, 8 * _MOST_BYTES)  # as many as 256 GPUs
        encoded(body(status_of(verdict, Quarantine(), Facts())), 256 << 10)
        if verdict.verdict in (State.HEALTHY, State.DEGRADED):
            listed = [gpu for gpu in verdict.gpus if gpu.index >= 0]
            seen, real = {gpu.uuid for gpu in listed}, {gpu.uuid for gpu in node.gpus}
            # By address, where its uuid is another one; by index, with a warning, where it has neither.
            named = all(gpu.uuid in seen or gpu.pci in {each.pci for each in listed} for gpu in node.gpus)
            require(
                len(seen) == len(real) and (named or verdict.verdict is State.DEGRADED),
                f"{verdict.verdict} with {len(seen & real)} of {len(real)} GPUs read",
            )
            require(not plan.fault, f"{verdict.verdict} in spite of {plan.fault}")
            require(readings.nvml.is_complete, f"{verdict.verdict} in a round that is not complete")
        lies = [lie for lies in plan.rounds for lie in lies]
        if not plan.fault and all(
            lie.kind == "raise" or (lie.value in VALUES and lie.value not in _PLAUSIBLE) for lie in lies
        ):
            require(not self._quarantined, f"answers of an unusable type quarantine: {self._quarantined}")
        if len(lies) % 4 == 1 and len(readings.nvml.gpus) <= _MOST_SHOWN:
            self._check_metrics(readings)

    def _check_metrics(self, readings: NvidiaReadings) -> None:
        context: Any = MetricsContext(
            readings=readings,
            last_readings=readings,
            settings=self._settings,
            probe=None,  # type: ignore[arg-type]
        )
        for name, collect in METRICS.items():
            if name != "nvml":  # which asks the probe
                for metric in collect(context):
                    text = generate_latest(_Alone(metric)).decode()
                    require(len(text) < _MOST_BYTES, f"{name} is {len(text)} bytes of metrics")
                    require(len([*text_string_to_metric_families(text)]) <= 2, f"{name} is not valid metrics")

    def _honest_readings(self, node: Node) -> NvidiaReadings:
        return NvidiaReadings(
            pci=tuple(
                PciDevice(gpu.pci, 0x030200, 0x2330, 0, 0, 0) for gpu in node.gpus if not isinstance(gpu.pci, Missing)
            ),
            device_nodes=tuple(range(node.count)),
            kernel_module=LOADED,
            live_pids=(),
            fabric_manager_running=NOT_SUPPORTED if node.name in ("l40s", "t4") else True,
        )

    def close(self) -> None:
        """Puts everything back that was replaced."""
        nvml_process._spawn, nvml_child._input_ended, nvml_child.ANSWER_FD, nvml_child.PROGRESS_FD = self._before
        self._replay.close()
        self._loop.close()


_PLAUSIBLE = {
    "true",
    "false",
    "zero",
    "one",
    "minus",
    "text",
    "bytes",
    "empty",
    "list",
    "tuple",
    "triple",
    "many",
    "max64",
    "min64",
    "huge",
    "none",
}
"""Odd values that some call takes as a number, a text or a list: what it says then counts."""


class _Alone:
    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> tuple[Metric, ...]:
        return (self._metric,)


async def _closed(probe: nvml_process.NvmlProbe) -> None:
    probe.close()
