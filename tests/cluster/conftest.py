"""Nodes and budgets for each test of its own, on the one control plane."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kube import ControlPlane

from tests.cluster.builders import Pool


@pytest.fixture
def pool(plane: ControlPlane) -> Iterator[Pool]:
    """A pool of nodes of the test's own."""
    made = Pool(plane)
    yield made
    made.remove()
