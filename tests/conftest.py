"""What tests of several folders share: one control plane for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kube import ControlPlane, MissingBinariesError

BASE = Path(__file__).parents[1] / "daemonset"


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
