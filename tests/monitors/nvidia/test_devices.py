"""Device nodes and processes, on trees of the test's own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpuhealth.model.missing import Missing, MissingReason
from gpuhealth.monitors.nvidia import devices
from gpuhealth.monitors.nvidia.devices import ProcessProbe, device_nodes, live_pids


def test_device_nodes_are_the_numbered_ones(tmp_path: Path) -> None:
    """Only /dev/nvidiaN counts, by number and not by name."""
    for name in ("nvidia10", "nvidia2", "nvidiactl", "nvidia-uvm", "nvidia-caps", "nvidia2x", "null"):
        (tmp_path / name).touch()
    assert device_nodes(tmp_path) == (2, 10)
    assert isinstance(device_nodes(tmp_path / "none"), Missing)


def test_live_pids_are_those_that_exist(tmp_path: Path) -> None:
    """Of the processes asked for, those that /proc shows."""
    for pid in (7, 4711):
        (tmp_path / str(pid)).mkdir()
    assert live_pids(tmp_path, [4711, 7, 8, 7]) == (7, 4711)
    assert live_pids(Path("/proc"), [os.getpid()]) == (os.getpid(),)
    assert isinstance(live_pids(tmp_path / "none", [7]), Missing)


def test_a_pid_namespace_of_our_own_tells_nothing(tmp_path: Path) -> None:
    """Where the node's first process lives in another pid namespace, that no process shows means nothing."""
    (tmp_path / "1" / "ns").mkdir(parents=True)
    (tmp_path / "1" / "ns" / "pid").symlink_to("pid:[1]")
    found = live_pids(tmp_path, [])
    assert isinstance(found, Missing)
    assert found.reason is MissingReason.NO_PERMISSION


def test_the_fabric_manager_is_found_and_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nv-fabricmanager is found by its name, missed when it ends, and found again under another pid."""
    monkeypatch.setattr(devices, "_RESCAN_SECONDS", 0.0)
    probe = ProcessProbe(tmp_path, "nv-fabricmanager")
    assert probe.read() is False
    _process(tmp_path, 100, "nv-fabricmanage")
    _process(tmp_path, 101, "bash")
    assert probe.read() is True
    (tmp_path / "100" / "comm").unlink()
    assert probe.read() is False
    _process(tmp_path, 200, "nv-fabricmanage")
    assert probe.read() is True
    assert isinstance(ProcessProbe(tmp_path / "none", "nvlsm").read(), Missing)


def _process(proc: Path, pid: int, name: str) -> None:
    (proc / str(pid)).mkdir()
    (proc / str(pid) / "comm").write_text(f"{name}\n")
