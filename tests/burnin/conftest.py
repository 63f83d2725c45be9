"""What tests that use torch in this process share."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """The sizes in tests are too small for several threads: on a busy machine these mostly wait for each other."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
