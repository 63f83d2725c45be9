"""One control plane for all tests of the cluster; each test has nodes, a pool and budgets of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kube import ControlPlane, MissingBinariesError

from tests.cluster.builders import Pool

BASE = Path(__file__).parents[2] / "daemonset"


@pytest.fixture(scope="session")
def plane() -> Iterator[ControlPlane]:
    """A control plane with gpuhealth's manifests applied, and an audit log."""
    control_plane = ControlPlane(audit=True)
    try:
        control_plane.start()
    except MissingBinariesError as error:
        pytest.skip(str(error))
    try:
        control_plane.apply(BASE)
        yield control_plane
    finally:
        control_plane.stop()


@pytest.fixture
def pool(plane: ControlPlane) -> Iterator[Pool]:
    """A pool of nodes of the test's own."""
    made = Pool(plane)
    yield made
    made.remove()
