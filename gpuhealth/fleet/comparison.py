"""What only the whole fleet shows: a GPU that computes another result than all of its kind, or is slower than they are.

Pure. A product of given operands has one right result for a given model and software, whatever it is: GPUs whose
digest is not that of the majority compute wrong, or are not what they seem. Throughput is compared by median and median
absolute deviation, which a few bad GPUs among many cannot move.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

import msgspec

from gpuhealth.monitors.fleet_findings import checks as fleet

FEWEST_DIGESTS = 3  # GPUs without which there is no majority that names one of them
FEWEST_SPEEDS = 8
_MAD_TO_SIGMA = 1.4826  # of a normal distribution
_SIGMAS = 5.0
_USUAL_SPREAD = 0.10  # GPUs of one model differ by 5 % and more in good health (Bekman, Machine Learning Engineering)

MISMATCH = fleet.MISMATCH.name
SLOW = fleet.SLOW.name


class Tested(msgspec.Struct, frozen=True):
    """What is kept of the last burn-in of one GPU."""

    __test__ = False  # no test of pytest's

    node: str
    gpu: str
    model: str
    level: str = ""
    software: str = ""  # digests are comparable within the same only
    digests: tuple[tuple[str, str], ...] = ()  # what was computed, and the result's digest
    speeds: tuple[tuple[str, float], ...] = ()  # figure and value; more is better


class Outlier(msgspec.Struct, frozen=True, order=True):
    """One GPU that differs from its kind."""

    node: str
    gpu: str
    code: str
    message: str


def outliers(tested: Iterable[Tested]) -> list[Outlier]:
    """All of them, by node and GPU; each GPU once a code."""
    gpus = list(tested)
    found: dict[tuple[str, str, str], Outlier] = {}
    for outlier in [*_mismatches(gpus), *_slow(gpus)]:
        found.setdefault((outlier.node, outlier.gpu, outlier.code), outlier)
    return sorted(found.values())


def _mismatches(gpus: list[Tested]) -> Iterator[Outlier]:
    groups: dict[tuple[str, str, str], list[tuple[Tested, str]]] = defaultdict(list)
    for gpu in gpus:
        for product, digest in gpu.digests:
            groups[gpu.model, gpu.software, product].append((gpu, digest))
    for (model, software, product), members in groups.items():
        (usual, count), *others = Counter(digest for _, digest in members).most_common()
        if not others or len(members) < FEWEST_DIGESTS or 2 * count <= len(members):
            continue
        for gpu, digest in members:
            if digest != usual:
                yield Outlier(
                    gpu.node,
                    gpu.gpu,
                    MISMATCH,
                    f"{product} gives {digest[:12]}, and {usual[:12]} on {count} of {len(members)} {model}"
                    f" with the same software ({software})",
                )


def _slow(gpus: list[Tested]) -> Iterator[Outlier]:
    groups: dict[tuple[str, str, str], list[tuple[Tested, float]]] = defaultdict(list)
    for gpu in gpus:
        for figure, value in gpu.speeds:
            groups[gpu.model, gpu.level, figure].append((gpu, value))
    for (model, _, figure), members in groups.items():
        if len(members) < FEWEST_SPEEDS:
            continue
        median = statistics.median(value for _, value in members)
        deviation = statistics.median(abs(value - median) for _, value in members)
        least = median - max(_SIGMAS * _MAD_TO_SIGMA * deviation, _USUAL_SPREAD * median)
        for gpu, value in members:
            if value < least:
                yield Outlier(
                    gpu.node,
                    gpu.gpu,
                    SLOW,
                    f"{figure} is {value:.4g}, {1 - value / median:.0%} below the median {median:.4g}"
                    f" of {len(members)} {model}",
                )
