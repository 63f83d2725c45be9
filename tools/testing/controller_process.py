"""The command `gpuhealth controller` as a process of its own."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from testing import processes
from testing.managed_cluster import Cluster


class ControllerProcess:
    """A process of `gpuhealth controller`, and what it logs."""

    def __init__(self, config: Path, log: Path) -> None:
        self._log = log
        with log.open("wb") as stream:
            environment = {name: value for name, value in os.environ.items() if not name.startswith("GPUHEALTH_")}
            self.process = processes.start(["controller", "--config", str(config)], environment, stream, stream)

    def logged(self, event: str) -> bool:
        """Whether it has logged an event; every line is a JSON object."""
        lines = self._log.read_text(encoding="utf-8").splitlines(keepends=True)
        return any(json.loads(line)["event"] == event for line in lines if line.endswith("\n"))

    def end(self, number: signal.Signals) -> int:
        """Sends a signal; the exit code of the process."""
        self.process.send_signal(number)
        return self.process.wait(timeout=120)


@contextmanager
def controllers(cluster: Cluster, folder: Path) -> Iterator[Callable[[str], ControllerProcess]]:
    """Starts controllers of a cluster by name, of which one leads; at the end all are killed."""
    # A leader on a slow machine must not lose its Lease in passing, and a killed one not keep it for long.
    election = {"lease": cluster.name, "duration": 12, "renew_within": 10, "retry": 0.1}
    http = {"host": "127.0.0.1", "port": 0}
    settings = {
        "kubernetes": {"kubeconfig": str(cluster.kubeconfig()), "context": "controller"},
        "controller": {"election": election, "http": http, "drain_retry": "200ms"},
    }
    config = folder / "gpuhealth.yaml"
    config.write_text(yaml.safe_dump(settings))
    started: list[ControllerProcess] = []

    def start(name: str) -> ControllerProcess:
        started.append(ControllerProcess(config, folder / f"{name}.log"))
        return started[-1]

    try:
        yield start
    finally:
        for controller in started:
            controller.process.kill()
            controller.process.wait()
