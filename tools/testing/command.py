"""The command as a user runs it: a process of its own on a simulated node, with or without a driver."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from nvmlsim.simulator import Simulator

from testing import processes

BOOT_ID = "11111111-2222-3333-4444-555555555555\n"
_OURS = ("GPUHEALTH_", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "NVMLSIM", "LD_LIBRARY_PATH", "TERM")


class Said(NamedTuple):
    """Exit code and output of a run of the command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as one JSON value."""
        return json.loads(self.out)


Run = Callable[..., Said]
"""Runs a command with arguments and environment variables, and returns what it printed."""


class Node:
    """A simulated node for commands: its trees, kernel log, journal and settings are files in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "root"
        self.kmsg = folder / "kmsg"
        self.config = folder / "gpuhealth.yaml"
        self.journal = folder / "journal.sqlite"
        self.simulator: Simulator | None = None
        self._records = 0
        for name in ("dev", "proc/sys/kernel/random", "sys/bus/pci/devices", "sys/module"):
            (self.root / name).mkdir(parents=True)
        (self.root / "proc/self").mkdir()
        (self.root / "proc/sys/kernel/random/boot_id").write_text(BOOT_ID)
        self.kmsg.touch()
        self.configure()

    def with_gpus(self, model: str = "h100-sxm", gpus: int = 8, mig: int = 0) -> Node:
        """Gives the node GPUs, and the service that its NVSwitches need."""
        self.simulator = Simulator(self.folder, model, gpus, mig=mig)
        self.root = self.simulator.root
        for name in ("proc/self", "proc/sys/kernel/random"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        (self.root / "proc/sys/kernel/random/boot_id").write_text(BOOT_ID)
        (self.root / "proc/4711").mkdir(exist_ok=True)
        (self.root / "proc/4711/comm").write_text("nv-fabricmanage\n")
        self.configure()
        return self

    def configure(self, more: str = "") -> None:
        """Writes the settings file; `more` is YAML that is appended."""
        roots = {name: str(self.root / name) for name in ("dev", "sys", "proc")} | {"kmsg": str(self.kmsg)}
        self.config.write_text(
            f"node_name: gpu-node-17\nroots: {json.dumps(roots)}\njournal: {{path: {self.journal}}}\n{more}\n"
        )

    def log(self, text: str, seconds_ago: float = 1.0, priority: int = 4) -> None:
        """Adds a record to the kernel log; with a priority from 8 on one that a program has written."""
        micros = int((time.monotonic() - seconds_ago) * 1e6)
        with self.kmsg.open("a") as kmsg:
            kmsg.write(f"{priority},{self._records},{micros},-;{text}\n")
        self._records += 1

    def env(self, **more: str) -> dict[str, str]:
        """The environment of the command on this node, in which warnings are errors."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
        simulated = self.simulator.env if self.simulator else {}
        return inherited | simulated | {"GPUHEALTH_CONFIG": str(self.config), "PYTHONWARNINGS": "error"} | more

    def run(self, *arguments: str | Path, stdin: str = "", code: str = "", **more: str) -> Said:
        """Runs the command to its end, after the code in its process; `more` is added to its environment."""
        done = processes.run([*map(str, arguments)], self.env(**more), stdin, code=code)
        return Said(done.returncode, done.stdout, done.stderr)
