"""The installation of the manifests on a control plane."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kube import ControlPlane
from testing.command import Node
from testing.installation import Installation


@pytest.fixture
def installation(plane: ControlPlane) -> Iterator[Installation]:
    """The installation of the manifests, on the control plane without a scheduler."""
    made = Installation(plane)
    yield made
    made.close()


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """A machine without GPUs, on which commands are run."""
    return Node(tmp_path)
