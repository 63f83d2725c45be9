"""A control plane for a fixture, which skips the tests where its programs are missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from kube import ControlPlane, MissingBinariesError, find_binaries


@contextmanager
def started_plane(
    *programs: str, controller_manager: bool = False, scheduler: bool = False, audit: bool = False
) -> Iterator[ControlPlane]:
    """Runs a control plane until the end of the block. `programs` are further ones that the tests need."""
    plane = ControlPlane(controller_manager=controller_manager, scheduler=scheduler, audit=audit)
    try:
        find_binaries(programs)
        plane.start()
    except MissingBinariesError as error:
        pytest.skip(str(error))
    try:
        yield plane
    finally:
        plane.stop()
