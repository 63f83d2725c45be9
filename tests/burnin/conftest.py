"""What tests that use torch in this process share."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
<<<<<<< HEAD
    """The sizes here are too small for several: on a busy machine they wait for one another most of the time."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
=======
    """The sizes in tests are too small for several threads: on a busy machine these mostly wait for each other."""
    torch.set_num_threads(1)
>>>>>>> burn
