"""From what the workers measured and telemetry saw to results: the pass rules.

A wrong bit always fails. Throughput is held against the floor of the GPU's model and against the best GPU of the same
model on the node: the first finds a node that is slow as a whole, the second a GPU among others. Where the node's other
GPUs or the model are not known, the message says so.
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
    MEMORY_READ,
    MEMORY_WRITE,
    P2P,
    RANKS,
    TFLOPS,
    in_words,
    is_pair,
    pair,
)
from gpuhealth.burnin.protocol import GpuOutcome
from gpuhealth.burnin.telemetry_faults import signs
from gpuhealth.burnin.telemetry_window import Watched
from gpuhealth.model.burnin_run import TestResult, TestStatus
from gpuhealth.model.missing import Missing, MissingReason
from gpuhealth.monitors.nvidia.catalog.gpu_models import GpuModel, gpu_model
from gpuhealth.runtime.settings import BurninLimits

_JUDGED = {
    "bandwidth": (MEMORY_COPY, MEMORY_READ, MEMORY_WRITE, HOST_TO_DEVICE, DEVICE_TO_HOST),
    "p2p": (P2P,),
    "collectives": (ALL_REDUCE,),
}
"""The figures that are held against limits; of a soak those that end in TFLOPS. Sizes and samples of other tests are
too few to say how fast a GPU is."""

_STEADY_CELSIUS = 2.0  # in a fifth of a soak; less is the noise of a sensor that gives whole degrees


class Trial(msgspec.Struct, frozen=True):
    """One test of all devices of a node, as it went."""

    test: str
    outcomes: tuple[GpuOutcome, ...]
    started: datetime
    seconds: float
    stopped: bool = False  # told to stop before it was through: its figures say little of speed
    watched: Mapping[str, Watched] = {}  # GPU -> what telemetry saw
    models: Mapping[str, str] = {}  # GPU -> model as NVML names it; none of a processor
    device_ids: Mapping[str, int] = {}  # GPU -> PCI device id, where it is known

    def model(self, gpu: str) -> GpuModel | None:
        """What the catalogue has of this GPU's model."""
        return gpu_model(self.models[gpu], self.device_ids.get(gpu)) if gpu in self.models else None


def judge(trial: Trial, limits: BurninLimits) -> tuple[TestResult, ...]:
    """A result for each device. Its message is one sentence: what is wrong, or what was reached by which limits."""
    slow_pairs = {} if trial.stopped else _slow_pairs(trial, limits)
    return tuple(_result(trial, outcome, slow_pairs.get(outcome.gpu, []), limits) for outcome in trial.outcomes)


def _result(trial: Trial, outcome: GpuOutcome, slow_pairs: Sequence[str], limits: BurninLimits) -> TestResult:
    watched = trial.watched.get(outcome.gpu)
    faults = [*_own(outcome)]
    if watched is not None:
        faults += signs(watched, trial.seconds, limits)
    elif outcome.gpu in trial.models:
        faults.append("telemetry saw nothing of the GPU, so that throttling and errors are not known")
    reached = list(_throughput(trial, outcome, limits))
    if not trial.stopped and not outcome.skipped:
        faults += [sentence for sentence, slow in reached if slow]
        faults += slow_pairs
        if watched is not None and trial.test == "soak":
            faults += _power(watched, trial.model(outcome.gpu), limits)
    if faults:
        status, message = TestStatus.FAILED, "; ".join(faults)
    elif outcome.skipped:
        status, message = TestStatus.SKIPPED, outcome.skipped
    elif trial.stopped:
        status, message = TestStatus.STOPPED, f"told to stop after {trial.seconds:.0f} s; nothing wrong until then"
    else:
        status, message = TestStatus.PASSED, "; ".join(sentence for sentence, _ in reached) or _nothing_wrong(outcome)
        if trial.test == "soak" and watched is not None and watched.warming_celsius >= _STEADY_CELSIUS:
            message += f"; it was still getting warmer ({watched.warming_celsius:.1f} °C): a longer soak tells more"
    return TestResult(
        test=trial.test,
        gpu=outcome.gpu,
        status=status,
        message=message,
        started=trial.started,
        seconds=trial.seconds,
        figures=outcome.figures,
        miscompares=outcome.miscompares,
        digests=outcome.digests,
        telemetry={} if watched is None else watched.spans,
        evidence=outcome.evidence,
    )


def _nothing_wrong(outcome: GpuOutcome) -> str:
    figures = [in_words(figure, value) for figure, value in outcome.figures.items() if not is_pair(figure)]
    return ": ".join(["nothing wrong", *([", ".join(figures)] if figures else [])])


def _own(outcome: GpuOutcome) -> Iterator[str]:
    """What the test itself found."""
    if outcome.failure:
        yield outcome.failure.rstrip(".")
    elif outcome.miscompares:
        first, wrong = outcome.miscompares[0], sum(each.wrong for each in outcome.miscompares)
        yield f"{wrong} wrong values, the first in {first.what} at {first.index}"


def _throughput(trial: Trial, outcome: GpuOutcome, limits: BurninLimits) -> Iterator[tuple[str, bool]]:
    """(what was reached against which limits, whether that is too little) of each figure that has limits."""
    model = trial.model(outcome.gpu)
    for figure, value in outcome.figures.items():
        if figure not in _JUDGED.get(trial.test, ()) and not (trial.test == "soak" and figure.endswith(TFLOPS)):
            continue
        words, slow = [], False
        floor = _floor(figure, outcome, model, trial.watched.get(outcome.gpu), limits)
        if floor is not None:
            words.append(f"floor {floor:.4g}")
            slow = value < floor
        elif outcome.gpu in trial.models:
            words.append(f"no floor known for {trial.models[outcome.gpu]}")
        peers = _peers(trial, outcome.gpu, figure)
        if len(peers) > 1:
            best = max(peers.values())
            share = 100 * value / best if best > 0 else 0.0
            words.append(f"{share:.0f} % of the best of {len(peers)}")
            slow |= share < limits.min_percent_of_best_peer
        yield in_words(figure, value) + (f" ({', '.join(words)})" if words else ""), slow


def _peers(trial: Trial, gpu: str, figure: str) -> dict[str, float]:
    """GPU -> figure, of all GPUs of the same model that have it; of the GPU alone where its model is not known."""
    model = trial.models.get(gpu)
    return {
        each.gpu: each.figures[figure]
        for each in trial.outcomes
        if figure in each.figures and (each.gpu == gpu or (model is not None and trial.models.get(each.gpu) == model))
    }


def _floor(
    figure: str, outcome: GpuOutcome, model: GpuModel | None, watched: Watched | None, limits: BurninLimits
) -> float | None:
    if model is None:
        return None
    floor: float | None = None
    if figure == f"{model.tensor_dtype}{TFLOPS}":
        floor = model.tensor_tflops_floor
    elif figure == MEMORY_COPY:
        floor = model.memory_floor
    elif figure in (HOST_TO_DEVICE, DEVICE_TO_HOST):
        floor = None if model.host_floor is None else model.host_floor * _slot_share(model, watched)
    elif figure == P2P:
        floor = model.p2p_floor
    elif figure == ALL_REDUCE and outcome.figures.get(RANKS) == model.all_reduce_ranks:
        floor = model.all_reduce_floor
    return None if floor is None else floor * limits.floor_percent / 100


def _slot_share(model: GpuModel, watched: Watched | None) -> float:
    """How much of the model's PCIe bandwidth its slot can give: some servers and clouds wire eight lanes or a lower
    generation, which is no fault of the GPU. Each generation doubles the rate of a lane."""
    if watched is None:
        return 1.0
    lanes, generation = watched.after.pcie_width_max, watched.after.pcie_generation_max
    share = 1.0 if isinstance(lanes, Missing) else lanes / model.pcie_lanes
    return min(1.0, share * (1.0 if isinstance(generation, Missing) else 2.0 ** (generation - model.pcie_generation)))


def _power(watched: Watched, model: GpuModel | None, limits: BurninLimits) -> Iterator[str]:
    """A GPU under full load that draws little does not work fully, whatever it reports."""
    if model is None:
        return
    limit = watched.after.power_limit_milliwatts
    most = model.tdp_watts if isinstance(limit, Missing) else min(model.tdp_watts, limit / 1e3)
    least = most * limits.power_percent / 100
    power = watched.spans.get("power_watts")
    if power is None:
        reading = watched.after.power_milliwatts
        if not isinstance(reading, Missing) or reading.reason is not MissingReason.NOT_SUPPORTED:
            yield "the power could not be read"
    elif power.max < least:
        yield f"at most {power.max:.0f} W drawn under full load where at least {least:.0f} W of {most:.0f} W are to be"


def _slow_pairs(trial: Trial, limits: BurninLimits) -> dict[str, list[str]]:
    """GPU -> sentences on its slow pairs.

    A GPU that is slow to most others is named by its own figure. A pair is blamed on both its ends unless one of them
    is such a GPU. Only models whose GPUs are joined by switches have a floor: elsewhere pairs differ by their wiring.
    """
    slow_gpus = {
        outcome.gpu for outcome in trial.outcomes if any(slow for _, slow in _throughput(trial, outcome, limits))
    }
    found: dict[str, list[str]] = {}
    for source in trial.outcomes:
        model = trial.model(source.gpu)
        if trial.test != "p2p" or model is None or model.p2p_floor is None:
            continue
        floor = model.p2p_floor * limits.floor_percent / 100
        for target in (each.gpu for each in trial.outcomes):
            speed = source.figures.get(pair(target))
            if speed is not None and speed < floor:
                ends = {source.gpu, target}
                for end in ends & slow_gpus or ends:
                    sentence = f"{source.gpu} to {target} {speed:.4g} GB/s (floor {floor:.4g})"
                    found.setdefault(end, []).append(sentence)
    return found
