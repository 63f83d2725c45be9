"""Comparison of burn-in results over the fleet: GPUs that compute another result than their model, or are slower.

Pure functions. A product of given operands has one right result for a given model and software, so a GPU whose digest
is not that of the majority computes wrong, or is not the model it reports. Throughput is compared by median and median
absolute deviation, which a few bad GPUs among many cannot shift. No node counts for more GPUs than the usual node
has: one report that lists many GPUs could otherwise make all others differ from it.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import TypeVar

import msgspec

from gpuhealth.monitors.fleet_findings import checks as fleet

MIN_DIGESTS = 3  # GPUs: of two that differ, there is no majority
MIN_SPEEDS = 8  # GPUs
_MAD_TO_SIGMA = 1.4826  # for a normal distribution
_SIGMAS = 5.0
_USUAL_SPREAD = 0.10  # GPUs of one model differ by 5 % and more in good health (Bekman, Machine Learning Engineering)

MISMATCH = fleet.MISMATCH.name
SLOW = fleet.SLOW.name


class GpuResult(msgspec.Struct, frozen=True, kw_only=True):
    """The last burn-in of one GPU, reduced to the data that the comparison needs."""

    node: str
    gpu: str  # UUID
    model: str
    level: str = ""
    software: str = ""  # digests of different software cannot be compared
    digests: tuple[tuple[str, str], ...] = ()  # product and digest of its result
    speeds: tuple[tuple[str, float], ...] = ()  # figure and value; higher is better


class Outlier(msgspec.Struct, frozen=True, order=True):
    """One GPU that differs from the others of its model."""

    node: str
    gpu: str  # UUID
    code: str
    message: str


def find_outliers(results: Iterable[GpuResult]) -> list[Outlier]:
    """Return the outliers, sorted by node and GPU; a GPU at most once for each finding code."""
    gpus = list(results)
    found: dict[tuple[str, str, str], Outlier] = {}
    for outlier in [*_mismatches(gpus), *_slow(gpus)]:
        found.setdefault((outlier.node, outlier.gpu, outlier.code), outlier)
    return sorted(found.values())


_T = TypeVar("_T")


def _at_most_usual(members: list[tuple[GpuResult, _T]]) -> list[tuple[GpuResult, _T]]:
    """The members without those by which a node has more of them than the median node."""
    by_node = Counter(gpu.node for gpu, _ in members)
    most = statistics.median_low(by_node.values())
    if max(by_node.values()) == most:
        return members
    seen: Counter[str] = Counter()
    counted = []
    for member in members:
        seen[member[0].node] += 1
        if seen[member[0].node] <= most:
            counted.append(member)
    return counted


def _mismatches(gpus: list[GpuResult]) -> Iterator[Outlier]:
    groups: dict[tuple[str, str, str], list[tuple[GpuResult, str]]] = defaultdict(list)
    for gpu in gpus:
        for product, digest in gpu.digests:
            groups[gpu.model, gpu.software, product].append((gpu, digest))
    for (model, software, product), members in groups.items():
        counted = _at_most_usual(members)
        (usual, count), *_ = Counter(digest for _, digest in counted).most_common()
        if len(counted) < MIN_DIGESTS or 2 * count <= len(counted):
            continue
        for gpu, digest in members:
            if digest != usual:
                yield Outlier(
                    gpu.node,
                    gpu.gpu,
                    MISMATCH,
                    f"{product} gives {digest[:12]}, but {usual[:12]} on {count} of {len(counted)} {model}"
                    f" with the same software ({software})",
                )


def _slow(gpus: list[GpuResult]) -> Iterator[Outlier]:
    groups: dict[tuple[str, str, str], list[tuple[GpuResult, float]]] = defaultdict(list)
    for gpu in gpus:
        for figure, value in gpu.speeds:
            groups[gpu.model, gpu.level, figure].append((gpu, value))
    for (model, _, figure), members in groups.items():
        counted = _at_most_usual(members)
        if len(counted) < MIN_SPEEDS:
            continue
        median = statistics.median(value for _, value in counted)
        deviation = statistics.median(abs(value - median) for _, value in counted)
        least = median - max(_SIGMAS * _MAD_TO_SIGMA * deviation, _USUAL_SPREAD * median)
        for gpu, value in members:
            if value < least:
                yield Outlier(
                    gpu.node,
                    gpu.gpu,
                    SLOW,
                    f"{figure} is {value:.4g}, {1 - value / median:.0%} below the median {median:.4g}"
                    f" of {len(counted)} {model}",
                )
