"""The order of the tests when pytest-xdist runs several workers: few control planes, and short tests last.

A worker starts a control plane for the first test that uses one, and the control plane costs CPU until the session
ends. With `--dist worksteal`, each worker gets an equal part of the ordered tests, starts at the beginning of its part,
and takes tests from the end of another worker's part when it has none left. So the tests on the control plane with a
scheduler (fixture `managed`) stand at the beginning of the first part, those on the other one (`plane`) at the
beginning of the next parts, and the others that start processes in the rest: first those that wait for Prometheus, so
that others work meanwhile; the last part begins with the longest test, that on a real node (fixture `real_node`). The
tests that start no process stand at the end of each part.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import pytest

__all__ = ["ordered"]


def ordered(items: Sequence[pytest.Item], workers: int) -> list[pytest.Item]:
    """The tests, arranged for two or more workers. Tests of one file and of one kind stay together."""
    kinds = ["managed", "plane", "real_node", "waiting", "process", "fast"]
    managed, plane, real_node, waiting, process, fast = (
        [item for item in items if _kind(item) == kind] for kind in kinds
    )
    parts: list[list[pytest.Item]] = [managed, *([] for _ in range(1, workers))]
    planes = max(1, workers // 3)
    for number, (_, tests) in enumerate(groupby(plane, key=lambda item: item.path)):
        parts[1 + number % planes] += tests
    others = parts[1 + planes :] or parts
    others[0] += waiting
    others[-1] += real_node
    for number, part in enumerate(others):
        part += _take(process, len(process) // (len(others) - number))
    left = len(items)
    for number, part in enumerate(parts):
        size = left // (workers - number)  # as pytest-xdist divides them
        part += _take(fast, size - len(part))
        left -= size
    return [item for part in parts for item in part] + fast


def _kind(item: pytest.Item) -> str:
    fixtures = getattr(item, "fixturenames", ())
    if "managed" in fixtures or "plane" in fixtures:
        return "managed" if "managed" in fixtures else "plane"
    if "real_node" in fixtures:
        return "real_node"
    if "prometheus" in fixtures:
        return "waiting"
    return "fast" if item.get_closest_marker("fast") else "process"


def _take(items: list[pytest.Item], number: int) -> list[pytest.Item]:
    """Removes that many items from the beginning, and returns them."""
    taken = items[: max(0, number)]
    del items[: len(taken)]
    return taken
