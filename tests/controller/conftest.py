"""A cluster of the test's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kube import ControlPlane

from tests.controller.cluster import Cluster


@pytest.fixture
def cluster(managed: ControlPlane) -> Iterator[Cluster]:
    """Nodes, pods and budgets that nobody else uses."""
    made = Cluster(managed)
    yield made
    made.remove()
