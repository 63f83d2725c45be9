"""The demo, as `tools/demo` runs it once everything is set up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from kube import MissingBinariesError
from kube.control_plane import find_binaries

_TOP = Path(__file__).parents[1]
_STEPS = [
    "A healthy node",
    "GPUHealthy=True",
    *(
        "Fault 1",
        "NVRM: Xid",
        '"finding raised"',
        "gpuhealth.io/unhealthy=xid.95:NoSchedule",
        "GPUHealthy=False  Xid95",
    ),
    *("$ gpuhealth check", "CRITICAL  gpu.recovery_action", "CRITICAL  xid.95", 'gpuhealth_finding{code="xid.95"'),
    *('"finding cleared"', "Taints:      <none>", "GPUHealthy=True", "Back in service"),
    *("Fault 2", "gpuhealth.io/unhealthy=nvlink.down:NoSchedule", "GPUHealthy=False  NvlinkDown"),
    *("$ gpuhealth check", "CRITICAL  nvlink.down", "gpuhealth_nvlink_up{", '"finding cleared"'),
    *("Taints:      <none>", "GPUHealthy=True", "Back in service"),
    *("Fault 3", "Unschedulable: true", "GPUHealthy=False  DriverUnresponsive"),
    *("times: all answered", '"finding cleared"', "Taints:      <none>", "GPUHealthy=True", "Back in service"),
    *("What was seen", "xid.95", "nvlink.down", "driver.unresponsive", "Everything came as expected"),
]
_MARK = "TEST_OF_THE_DEMO"


def _start(temporary: Path, **environment: str) -> subprocess.Popen[str]:
    inherited = {key: value for key, value in os.environ.items() if key not in ("FORCE_COLOR", "COLUMNS")}
    ours = {"PYTHONPATH": f"{_TOP / 'tools'}:{_TOP}", "TMPDIR": str(temporary), _MARK: str(temporary)}
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "demonstration"],
        env={**inherited, **ours, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _check(process: subprocess.Popen[str], temporary: Path) -> str:
    output, _ = process.communicate(timeout=550)
    assert process.returncode == 0, output
    after = 0
    for step in _STEPS:
        assert step in output[after:], f"{step!r} is not where it should be in:\n{output}"
        after = output.index(step, after) + len(step)
    assert "\x1b" not in output
    assert all(len(line) <= 80 for line in output.splitlines())
    _nothing_is_left(temporary)
    return output


def _nothing_is_left(temporary: Path) -> None:
    processes = [each for each in psutil.process_iter() if _environment(each).get(_MARK) == str(temporary)]
    _, alive = psutil.wait_procs(processes, timeout=120)  # an NVML process ends a moment after its agent
    assert [each.name() for each in alive if each.status() != psutil.STATUS_ZOMBIE] == []
    assert list(temporary.iterdir()) == []


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:  # another user's, or it has ended
        return {}


def test_without_a_control_plane(tmp_path: Path) -> None:
    """Three faults are found, marked as they would be, and cleared, in this order; nothing is left behind."""
    output = _check(_start(tmp_path, KUBEBUILDER_ASSETS="", PATH="/usr/bin:/bin"), tmp_path)
    assert "No control plane" in output


def test_on_a_control_plane(tmp_path: Path) -> None:
    """With an API server the demonstration also shows the report and the budget slot."""
    try:
        find_binaries()
    except MissingBinariesError as error:
        pytest.skip(str(error))
    output = _check(_start(tmp_path), tmp_path)
    assert "No control plane" not in output
    assert "gpu-nodes.0  gpu-node-1" in output
    assert "nvlink.down  quarantined" in output


def test_interrupted(tmp_path: Path) -> None:
    """Ctrl-C in the middle ends it with 130, and nothing is left behind."""
    process = _start(tmp_path, KUBEBUILDER_ASSETS="", PATH="/usr/bin:/bin")
    assert process.stdout is not None
    assert any("Fault 1" in line for line in process.stdout)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 130
    _nothing_is_left(tmp_path)
