"""A whole simulated GPU node: the simulated driver, a kernel log, and a real agent process on them.

For tests, the demo and the benchmarks. The kernel log is a plain file in the form of /dev/kmsg, or the real one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from nvmlsim.simulator import Simulator

from gpuhealth.runtime.journal import Journal
from testing import processes
from testing.waiting import wait_for

REAL_KMSG = Path("/dev/kmsg")


# Rounds are quick. Only who hangs the driver is impatient with it: on a busy machine it may be slow without a fault.
QUICK: dict[str, Any] = {
    "interval": "200ms",
    "unknown_after": "60s",
    "nvml": {"warn_after": "60s", "critical_after": "120s", "reinit_interval": "200ms"},
    "findings": {"*": {"clear_after": "400ms", "raise_after": 0}},
}
IMPATIENT = {"nvml": {"warn_after": "1s", "critical_after": "3s"}}


class SimulatedNode:
    """A node in a folder of its own; the agent runs between start() and stop()."""

    def __init__(
        self,
        folder: Path,
        name: str = "gpu-node-1",
        model: str = "h100-sxm",
        gpus: int = 8,
        *,
        kubeconfig: Path | None = None,
        kmsg: Path | None = None,
        settings: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`kmsg` is REAL_KMSG, or None for a file; `settings` are merged into those that the node needs here."""
        folder.mkdir(parents=True, exist_ok=True)
        self.name = name
        self.folder = folder
        self.driver = Simulator(folder, model, gpus)
        self._make_proc()
        self.kmsg = kmsg or folder / "kmsg"
        if kmsg is None:
            self.kmsg.touch()
        self._sequence = 0
        self._environment = dict(environment or {})
        self._process: processes.Process | None = None
        self.log_file = folder / "agent.log"
        self.config = folder / "gpuhealth.yaml"
        self.settings: dict[str, Any] = {
            "node_name": name,
            "roots": {
                "dev": str(self.driver.root / "dev"),
                "sys": str(self.driver.root / "sys"),
                "proc": str(self.driver.root / "proc"),
                "kmsg": str(self.kmsg),
            },
            "journal": {"path": str(folder / "journal.sqlite")},
            "burnin": {"results_dir": str(folder / "burnin")},
            "http": {"host": "127.0.0.1", "port": 0},
            "kubernetes": {"enabled": kubeconfig is not None} | ({"kubeconfig": str(kubeconfig)} if kubeconfig else {}),
        }
        if self.kmsg == REAL_KMSG:
            self.settings["kernel_log"] = {"accept_user_records": True}
        self.configure(settings or {})

    def _make_proc(self) -> None:
        """Writes the parts of /proc that are read: the boot id, mounts, and the process of the fabric manager."""
        proc = self.driver.root / "proc"
        texts = {"self/comm": "agent\n", "900/comm": "nv-fabricmanage\n", "1/mounts": "overlay / overlay rw 0 0\n"}
        for name, text in (texts | {"sys/kernel/random/boot_id": f"{uuid.uuid4()}\n"}).items():
            (proc / name).parent.mkdir(parents=True, exist_ok=True)
            (proc / name).write_text(text)

    def configure(self, settings: Mapping[str, Any]) -> None:
        """Changes settings in the file, which a running agent reads again by itself."""
        for key, value in settings.items():
            section = self.settings.get(key)
            self.settings[key] = {**section, **value} if isinstance(section, dict) else value
        part = self.config.with_suffix(".part")
        part.write_text(yaml.safe_dump(self.settings))
        part.replace(self.config)

    @property
    def own_env(self) -> dict[str, str]:
        """The variables by which a program sees this node, whatever other nodes this process has seen."""
        return {**self.driver.env, "GPUHEALTH_CONFIG": str(self.config), **self._environment}

    @property
    def env(self) -> dict[str, str]:
        """The environment in which a program sees this node."""
        return {**os.environ, **self.own_env}

    # -- the agent -----------------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """The process id of the running agent."""
        assert self._process is not None, "the agent is not running"
        return self._process.pid

    def start(self, code: str = "") -> None:
        """Starts the agent, whose process runs the code before it, and waits until its first round is complete."""
        since = self.log_file.stat().st_size if self.log_file.exists() else 0
        with self.log_file.open("ab") as log:
            self._process = processes.start(["agent"], self.env, log, log, code)
        try:
            serving = wait_for("the agent's HTTP server", lambda: self._logged("serving", since))
            self.url = f"http://127.0.0.1:{serving['port']}"
            wait_for("the agent's first round", lambda: self.get("/readyz")[0] == 200)
        except BaseException:  # also on Ctrl-C: no orphans
            self.stop(signal.SIGKILL)
            raise

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Stops the agent; its exit code."""
        if self._process is None:
            return 0
        process, self._process = self._process, None
        process.send_signal(number)
        try:
            return process.wait(120)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise

    def __enter__(self) -> SimulatedNode:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.driver.release()
        self.stop()

    def _logged(self, event: str, since: int) -> dict[str, Any] | None:
        if self._process and self._process.poll() is not None:
            raise RuntimeError(f"the agent has ended with {self._process.returncode}:\n{self.log_file.read_text()}")
        return next((line for line in self.log(since) if line.get("event") == event), None)

    def log(self, since: int = 0) -> list[dict[str, Any]]:
        """The agent's log from a byte on: one dict a line."""
        if not self.log_file.exists():
            return []
        complete, _, _ = self.log_file.read_bytes()[since:].rpartition(b"\n")  # the last line may be on its way
        lines = complete.decode().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def get(self, path: str, seconds: float = 60.0) -> tuple[int, str]:
        """An HTTP answer of the agent: status and text; status 0 where there is none."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=seconds) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def metric(self, sample: str) -> float | None:
        """The value of one sample, such as `gpuhealth_verdict{verdict="healthy"}`; None if it is not there."""
        for line in self.get("/metrics")[1].splitlines():
            if line.startswith(f"{sample} "):
                return float(line.rpartition(" ")[2])
        return None

    def findings(self) -> set[str]:
        """The codes of the active findings."""
        lines = self.get("/metrics")[1].splitlines()
        return {line.split('code="')[1].split('"')[0] for line in lines if line.startswith("gpuhealth_finding{")}

    def command(self, *words: str, seconds: float = 120.0, code: str = "") -> subprocess.CompletedProcess[str]:
        """Runs `gpuhealth WORDS…` on this node, after the code in its process."""
        return processes.run(words, self.env, seconds=seconds, code=code)

    # -- the kernel ----------------------------------------------------------------------------------------------------

    def kernel_says(self, text: str, level: int = 3, seconds_ago: float = 0.0) -> None:
        """Adds a record to the kernel log; only one in a file can be older than now."""
        if self.kmsg == REAL_KMSG:
            with self.kmsg.open("w") as log:
                log.write(f"<{level}>{text}\n")
            return
        with self.kmsg.open("a") as log:
            log.write(f"{level},{self._sequence},{(time.monotonic() - seconds_ago) * 1e6:.0f},-;{text}\n")
        self._sequence += 1

    def pci(self, gpu: int) -> str:
        """A GPU's address as the kernel writes it in an XID: dddd:bb:dd."""
        domain, bus, device = (self.driver.get(f"gpu{gpu}.pci.{part}") for part in ("domain", "bus", "device"))
        return f"{domain:04x}:{bus:02x}:{device:02x}"

    def xid(
        self, code: int, gpu: int = 0, text: str = "pid=1234, name=python", level: int = 3, seconds_ago: float = 0.0
    ) -> None:
        """Adds the record of an XID to the kernel log."""
        self.kernel_says(f"NVRM: Xid (PCI:{self.pci(gpu)}): {code}, {text}", level, seconds_ago)


def healthy(node: SimulatedNode) -> bool:
    """Whether the verdict of the agent is healthy."""
    return node.metric("gpuhealth_node_healthy") == 1


def entries(node: SimulatedNode) -> list[tuple[str, str]]:
    """Kind and code of the entries of the node's journal."""
    journal = Journal(node.folder / "journal.sqlite", 1e9, 1000, read_only=True)
    try:
        return [(entry.kind, entry.code) for entry in journal.entries()]
    finally:
        journal.close()


ROUNDS = 'gpuhealth_agent_rounds_total{monitor="nvidia"}'
"""The sample that counts the rounds of the GPUs."""


def rounds(node: SimulatedNode) -> float:
    """How many rounds the agent has completed since its start."""
    return node.metric(ROUNDS) or 0.0
