"""The scripts for Slurm: real checks of a simulated node, and a scontrol that records its arguments."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from testing.paths import BASE
from testing.simnode import SimulatedNode

_SCONTROL = """#!/bin/sh
folder=$(dirname "$0")
[ -e "$folder/node" ] || exit 1
case $1 in
--oneliner) echo "$*" >> "$folder/shown"; cat "$folder/node" ;;
*) for word; do printf '%s|' "$word"; done >> "$folder/updates" ;;
esac
"""
DRAIN = "update|NodeName=gpu-1|State=DRAIN|Reason=gpuhealth: gpu_memory.remap_failed|"
UNDRAIN = "update|NodeName=gpu-1|State=UNDRAIN|"
_LINE = "NodeName=gpu-1 Arch=x86_64 CoresPerSocket=1 {} ThreadsPerCore=1 TmpDisk=0\n"
IDLE = _LINE.format("State=IDLE")
OURS = "NodeName=gpu-1 Arch=x86_64 State=IDLE+DRAIN Weight=1 Reason=gpuhealth: xid.79 [root@2026-11-28T20:00:00]\n"
OURS_DOWN = OURS.replace("IDLE+DRAIN", "DOWN+DRAIN")
THEIRS = "NodeName=gpu-1 Arch=x86_64 State=MIXED+DRAIN Weight=1 Reason=broken fan [ann@2026-11-28T20:00:00]\n"
DOWN = "NodeName=gpu-1 Arch=x86_64 State=DOWN* Weight=1 Reason=Not responding [slurm@2026-11-28T20:00:00]\n"


class Host:
    """A Slurm node whose checks see a simulated driver."""

    def __init__(self, folder: Path) -> None:
        self.sim = SimulatedNode(folder / "sim", gpus=2)
        self.folder = folder
        self.scripts = folder / "opt" / "slurm"
        self.scripts.mkdir(parents=True)
        for source in (BASE / "host" / "slurm").iterdir():
            (self.scripts / source.name).write_text(source.read_text().replace("@PYTHON@", sys.executable))
            shutil.copymode(source, self.scripts / source.name)
        self._program(folder / "opt" / "bin" / "gpuhealth", f'#!/bin/sh\nexec {sys.executable} -m gpuhealth "$@"\n')
        self._program(folder / "fake" / "scontrol", _SCONTROL)

    def _program(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True)
        path.write_text(text)
        path.chmod(0o755)

    def run(self, script: str, node: str | None = IDLE) -> tuple[int, str]:
        """Exit code and updates of a script, with slurmctld's line about the node; None: slurmctld does not answer."""
        fake = self.folder / "fake"
        for name in ("updates", "node"):
            (fake / name).unlink(missing_ok=True)
        if node is not None:
            (fake / "node").write_text(node)
        environment = {**self.sim.own_env, "PATH": f"{fake}:/usr/bin:/bin", "SLURMD_NODENAME": "gpu-1"}
        done = subprocess.run([self.scripts / script], env=environment, check=False, capture_output=True, text=True)
        assert done.stderr == ""
        updates = fake / "updates"
        return done.returncode, updates.read_text() if updates.exists() else ""


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """A healthy node with two GPUs."""
    made = Host(tmp_path)
    yield made
    made.sim.driver.release()


def test_a_healthy_node(host: Host) -> None:
    """No drain is set, ours is ended also where the node is down, and those of others stay."""
    assert host.run("health-check", IDLE) == (0, "")
    assert host.run("health-check", OURS) == (0, UNDRAIN)
    assert host.run("health-check", OURS_DOWN) == (0, UNDRAIN)
    assert host.run("health-check", THEIRS) == (0, "")
    assert host.run("health-check", DOWN) == (0, "")
    assert host.run("prolog", IDLE) == (0, "")
    assert host.run("epilog", OURS) == (0, "")


def test_an_unhealthy_node(host: Host) -> None:
    """It is drained once, with its finding as reason; a node that is out of service keeps the reason that it has."""
    host.sim.driver.inject("remap_failed", gpu=1)
    assert host.run("health-check", IDLE) == (0, DRAIN)
    for line in (OURS, OURS_DOWN, THEIRS, DOWN):
        assert host.run("health-check", line) == (0, "")
    assert host.run("prolog", IDLE) == (1, DRAIN)
    assert host.run("prolog", THEIRS) == (1, "")
    assert host.run("epilog", IDLE) == (0, DRAIN)


def test_slurmctld_that_does_not_answer(host: Host) -> None:
    """The exit codes of prolog and epilog make slurmd drain the node; that of the health check never blocks slurmd."""
    host.sim.driver.inject("remap_failed", gpu=1)
    assert [host.run(script, None)[0] for script in ("health-check", "prolog", "epilog")] == [0, 1, 1]


def test_what_cannot_be_checked(host: Host) -> None:
    """A node whose health is not known is neither drained nor returned, and jobs start on it."""
    host.sim.config.write_text("no_such_setting: 1\n")
    for script in ("health-check", "prolog", "epilog"):
        assert [host.run(script, line) for line in (IDLE, OURS)] == [(0, ""), (0, "")]


def test_scripts_are_sound() -> None:
    """ShellCheck has no remark about any script of the host package."""
    checker = shutil.which("shellcheck")
    if checker is None:
        pytest.skip("shellcheck is not installed")
    scripts = [BASE / "host" / "gpuhealth", *(BASE / "host" / "slurm").iterdir(), *(BASE / "host" / "debian").iterdir()]
    done = subprocess.run(
        [checker, "-x", "-P", BASE / "host" / "slurm", *scripts], check=False, capture_output=True, text=True
    )
    assert done.stdout == ""
