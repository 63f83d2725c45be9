"""Nodes to run the command on."""

from pathlib import Path

import pytest
from testing.command import Node


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """A node without GPUs and without a driver."""
    return Node(tmp_path)


@pytest.fixture
def gpu_node(tmp_path: Path) -> Node:
    """A healthy node with eight GPUs."""
    return Node(tmp_path).with_gpus()
