"""The time of the whole suite, `tools/test`, and of the tests that start no process, `tools/test --fast`."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import Figures, Settings

_TEST = Path(__file__).parents[1] / "test"


def run(_: float) -> tuple[Figures, Settings]:
    """Runs both once, however long they take; their output goes to standard error. CalledProcessError if one fails."""
    load = os.getloadavg()[0]
    figures = {"seconds": _seconds("--fast"), "minutes": _seconds() / 60}
    return figures, {"cores": os.cpu_count(), "load_before": round(load, 1)}


def _seconds(*options: str) -> float:
    began = time.monotonic()
    subprocess.run([_TEST, *options], check=True, stdout=sys.stderr)
    return time.monotonic() - began
