"""Pass rules: turn the measurements of the workers and the telemetry of a test into results.

A wrong bit always fails. Throughput is compared with the floor of the GPU's model, which finds a node that is slow as
a whole, and with the best GPU of the same model on the node, which finds one slow GPU among others. Where the model is
not known, or the node has no other GPU of that model, the message mentions it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime

import msgspec

from gpuhealth.burnin.figures import (
    ALL_REDUCE,
    DEVICE_TO_HOST,
    HOST_TO_DEVICE,
    MEMORY_COPY,
    P2P,
    RANKS,
    TFLOPS,
    format_figure,
    is_pair_figure,
    pair_figure,
)
from gpuhealth.burnin.protocol import DeviceResult
from gpuhealth.burnin.registry import TESTS
from gpuhealth.burnin.telemetry_faults import find_faults
from gpuhealth.burnin.telemetry_window import TelemetryWindow
from gpuhealth.model.burnin_run import TestResult, TestStatus, summarize
from gpuhealth.model.missing import Missing, MissingReason
from gpuhealth.monitors.nvidia.catalog.gpu_models import GpuModel, gpu_model
from gpuhealth.runtime.settings import BurninLimits

_STEADY_CELSIUS = 2.0  # rise within a fifth of a soak; less is the noise of a sensor with whole degrees


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One execution of one test on all devices of a node."""

    test: str
    results: tuple[DeviceResult, ...]
    started: datetime
    seconds: float
    stopped: bool = False  # stopped before its end: its figures say little about speed
    telemetry: Mapping[str, TelemetryWindow] = {}  # by GPU
    models: Mapping[str, str] = {}  # GPU -> model as NVML names it; a processor has none
    device_ids: Mapping[str, int] = {}  # GPU -> PCI device id, where it is known

    def model(self, gpu: str) -> GpuModel | None:
        """The catalogue's entry for the GPU's model; None where it has none."""
        return gpu_model(self.models[gpu], self.device_ids.get(gpu)) if gpu in self.models else None


def judge(attempt: Attempt, limits: BurninLimits) -> tuple[TestResult, ...]:
    """A result for each device. Its message is one sentence: the faults, or the figures with their limits."""
    slow_pairs = {} if attempt.stopped else _slow_pairs(attempt, limits)
    return tuple(_result(attempt, measured, slow_pairs.get(measured.gpu, []), limits) for measured in attempt.results)


def _result(attempt: Attempt, measured: DeviceResult, slow_pairs: Sequence[str], limits: BurninLimits) -> TestResult:
    window = attempt.telemetry.get(measured.gpu)
    faults = list(_test_faults(measured))
    if window is not None:
        faults += find_faults(window, attempt.seconds, limits)
    elif measured.gpu in attempt.models:
        faults.append("no telemetry of this GPU during the test, so throttling and errors are unknown")
    throughput = list(_throughput(attempt, measured, limits))
    if not attempt.stopped and not measured.skipped:
        faults += [sentence for sentence, slow in throughput if slow]
        faults += slow_pairs
        if window is not None and attempt.test == "soak":
            faults += _power(window, attempt.model(measured.gpu), limits)
    if faults:
        status, message = TestStatus.FAILED, "; ".join(faults)
    elif measured.skipped:
        status, message = TestStatus.SKIPPED, measured.skipped
    elif attempt.stopped:
        status, message = TestStatus.STOPPED, f"stopped after {attempt.seconds:.0f} s: no errors so far, inconclusive"
    else:
        status = TestStatus.PASSED
        message = "; ".join(sentence for sentence, _ in throughput) or _no_errors(measured)
        message += _not_steady(attempt, window)
    return TestResult(
        test=attempt.test,
        gpu=measured.gpu,
        status=status,
        message=message,
        started=attempt.started,
        seconds=attempt.seconds,
        figures=measured.figures,
        miscompares=measured.miscompares,
        digests=measured.digests,
        telemetry={} if window is None else window.spans,
        evidence=measured.evidence,
    )


def _no_errors(measured: DeviceResult) -> str:
    figures = [format_figure(figure, value) for figure, value in measured.figures.items() if not is_pair_figure(figure)]
    return ": ".join(["no errors", *([", ".join(figures)] if figures else [])])


def _not_steady(attempt: Attempt, window: TelemetryWindow | None) -> str:
    """A remark on a soak that was too short to reach a steady temperature; else nothing."""
    if attempt.test != "soak" or window is None or window.temperature_rise_celsius < _STEADY_CELSIUS:
        return ""
    rise = window.temperature_rise_celsius
    return f"; the temperature was still rising ({rise:.1f} °C) at the end: run a longer soak for a steady state"


def _test_faults(measured: DeviceResult) -> Iterator[str]:
    """Faults that the test itself found."""
    if measured.failure:
        yield measured.failure.rstrip(".")
    elif measured.miscompares:
        yield summarize(measured.miscompares)


def _throughput(attempt: Attempt, measured: DeviceResult, limits: BurninLimits) -> Iterator[tuple[str, bool]]:
    """(value and its limits in words, whether it is too low) for each figure that limits apply to."""
    model = attempt.model(measured.gpu)
    for figure, value in measured.figures.items():
        if not figure.endswith(TESTS[attempt.test].limited):
            continue
        remarks, slow = [], False
        floor = _floor(figure, measured, model, attempt.telemetry.get(measured.gpu), limits)
        if floor is not None:
            remarks.append(f"floor {floor:.4g}")
            slow = value < floor
        elif measured.gpu in attempt.models:
            remarks.append(f"no floor known for {attempt.models[measured.gpu]}")
        peers = _peers(attempt, measured.gpu, figure)
        if len(peers) > 1:
            best = max(peers.values())
            percent = 100 * value / best if best > 0 else 0.0
            remarks.append(f"{percent:.0f} % of the best of {len(peers)}")
            slow |= percent < limits.min_percent_of_best_peer
        yield format_figure(figure, value) + (f" ({', '.join(remarks)})" if remarks else ""), slow


def _peers(attempt: Attempt, gpu: str, figure: str) -> dict[str, float]:
    """GPU -> figure, for all GPUs of the same model that have it; only for this GPU where its model is not known."""
    model = attempt.models.get(gpu)
    return {
        peer.gpu: peer.figures[figure]
        for peer in attempt.results
        if figure in peer.figures and (peer.gpu == gpu or (model is not None and attempt.models.get(peer.gpu) == model))
    }


def _floor(
    figure: str, measured: DeviceResult, model: GpuModel | None, window: TelemetryWindow | None, limits: BurninLimits
) -> float | None:
    if model is None:
        return None
    floor: float | None = None
    if figure == f"{model.tensor_dtype}{TFLOPS}":
        floor = model.tensor_tflops_floor
    elif figure == MEMORY_COPY:
        floor = model.memory_floor
    elif figure in (HOST_TO_DEVICE, DEVICE_TO_HOST):
        floor = None if model.host_floor is None else model.host_floor * _slot_share(model, window)
    elif figure == P2P:
        floor = model.p2p_floor
    elif figure == ALL_REDUCE and measured.figures.get(RANKS) == model.all_reduce_ranks:
        floor = model.all_reduce_floor
    return None if floor is None else floor * limits.floor_percent / 100


def _slot_share(model: GpuModel, window: TelemetryWindow | None) -> float:
    """The share of the model's PCIe bandwidth that its slot supports: some servers and clouds wire eight lanes or a
    lower generation, which is not a fault of the GPU. Each generation doubles the rate of a lane."""
    if window is None:
        return 1.0
    lanes, generation = window.after.pcie_width_max, window.after.pcie_generation_max
    share = 1.0 if isinstance(lanes, Missing) else lanes / model.pcie_lanes
    return min(1.0, share * (1.0 if isinstance(generation, Missing) else 2.0 ** (generation - model.pcie_generation)))


def _power(window: TelemetryWindow, model: GpuModel | None, limits: BurninLimits) -> Iterator[str]:
    """A GPU that draws little power under full load is not working fully, even if it reports no fault."""
    if model is None:
        return
    limit = window.after.power_limit_milliwatts
    full = model.tdp_watts if isinstance(limit, Missing) else min(model.tdp_watts, limit / 1e3)
    expected = full * limits.power_percent / 100
    power = window.spans.get("power_watts")
    if power is None:
        reading = window.after.power_milliwatts
        if not isinstance(reading, Missing) or reading.reason is not MissingReason.NOT_SUPPORTED:
            yield "the power could not be read"
    elif power.max < expected:
        yield f"max power {power.max:.0f} W under full load, expected at least {expected:.0f} W of {full:.0f} W"


def _slow_pairs(attempt: Attempt, limits: BurninLimits) -> dict[str, list[str]]:
    """GPU -> sentences about its slow pairs.

    A GPU that is slow to most others already fails by its own figure. A slow pair counts against both its ends, unless
    one of them is such a GPU. Only models whose GPUs are connected by switches have a floor: elsewhere the speed of a
    pair depends on the wiring.
    """
    slow_gpus = {
        measured.gpu for measured in attempt.results if any(slow for _, slow in _throughput(attempt, measured, limits))
    }
    sentences: dict[str, list[str]] = {}
    for source in attempt.results:
        model = attempt.model(source.gpu)
        if attempt.test != "p2p" or model is None or model.p2p_floor is None:
            continue
        floor = model.p2p_floor * limits.floor_percent / 100
        for target in (measured.gpu for measured in attempt.results):
            speed = source.figures.get(pair_figure(target))
            if speed is not None and speed < floor:
                ends = {source.gpu, target}
                for end in ends & slow_gpus or ends:
                    sentence = f"{source.gpu} to {target} {speed:.4g} GB/s (floor {floor:.4g})"
                    sentences.setdefault(end, []).append(sentence)
    return sentences
