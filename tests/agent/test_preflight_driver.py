"""A preflight whose container was created before the driver was loaded has no CUDA libraries, or others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gpuhealth.agent.preflight import Preflight
from gpuhealth.monitors.monitor import RestartRequiredError
from gpuhealth.monitors.settings import load


@pytest.mark.parametrize(("before", "now"), [("", "570.86.15"), ("550.54.15", "570.86.15")])
def test_a_burn_in_needs_a_container_of_the_present_driver(tmp_path: Path, before: str, now: str) -> None:
    """The burn-in starts only in a container that was created with the loaded kernel module."""
    client: Any = None  # nothing is sent
    settings = load(roots={"sys": str(tmp_path)}, node_name="node-1")

    def loaded(version: str) -> None:
        (tmp_path / "module/nvidia").mkdir(parents=True, exist_ok=True)
        (tmp_path / "module/nvidia/version").write_text(version)

    (tmp_path / "module").mkdir()
    if before:
        loaded(before)
    preflight = Preflight(settings, client)
    preflight._require_present_driver()
    loaded(now)
    with pytest.raises(RestartRequiredError, match="the burn-in needs a new one"):
        preflight._require_present_driver()
    Preflight(settings, client)._require_present_driver()
