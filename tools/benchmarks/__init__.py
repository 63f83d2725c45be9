"""One module a benchmark: `run(seconds)` measures and returns the figures and the settings they were measured with."""

from __future__ import annotations

from collections.abc import Sequence

Figures = dict[str, float]
Settings = dict[str, object]


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that `percent` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(percent / 100 * (len(ordered) - 1)))]
