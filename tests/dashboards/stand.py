"""A simulated node with its agent, and a Prometheus that scrapes it every second: all real but the GPUs."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from nvmlsim.simulator import Simulator

from dashboards.generate import FOLDER

PROMETHEUS = shutil.which("prometheus")
NODE = "gpu-node-1"
_HOLD = "2s"  # in the place of what the rules say: that is tested with promtool, which need not wait for it
_UNREACHABLE = {
    "apiVersion": "v1",
    "kind": "Config",
    "current-context": "away",
    "contexts": [{"name": "away", "context": {"cluster": "away", "user": "nobody"}}],
    "clusters": [{"name": "away", "cluster": {"server": "http://127.0.0.1:1"}}],
    "users": [{"name": "nobody", "user": {}}],
}
_T = TypeVar("_T")


def until(condition: Callable[[], _T], what: str, seconds: float = 60.0) -> _T:
    """What the condition returns once it is true."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.1)
    return result


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


class Stand:
    """Everything below one folder. The API server that the agent is given is not there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.node = Simulator(folder)
        self.instance = f"127.0.0.1:{_free_port()}"
        self._prometheus = f"127.0.0.1:{_free_port()}"
        self._kmsg = folder / "kmsg"
        self._kmsg.touch()
        self._sequence = 0
        self._processes: list[subprocess.Popen[bytes]] = []
        self.config = folder / "gpuhealth.yaml"
        self.configure()

    def configure(self, **more: Any) -> None:
        """Writes the agent's configuration: quick rounds, short deadlines, findings that clear at once."""
        root, port = self.node.root, int(self.instance.rpartition(":")[2])
        kubeconfig = self.folder / "kubeconfig"
        kubeconfig.write_text(yaml.safe_dump(_UNREACHABLE))
        settings = {
            "node_name": NODE,
            "interval": "1s",
            "unknown_after": "2s",
            "nvml": {"warn_after": "2s", "critical_after": "3s"},
            "thermal": {"critical_after": "0s"},
            "findings": {"*": {"clear_after": "0s"}},
            "http": {"host": "127.0.0.1", "port": port},
            "journal": {"path": str(self.folder / "journal.sqlite")},
            "kubernetes": {"kubeconfig": str(kubeconfig)},
            "roots": {tree: str(root / tree) for tree in ("dev", "sys", "proc")} | {"kmsg": str(self._kmsg)},
        }
        written = self.config.with_suffix(".new")
        written.write_text(yaml.safe_dump(settings | more))
        written.replace(self.config)

    def start_agent(self) -> subprocess.Popen[bytes]:
        """Starts the agent and waits until it has looked once."""
        command = [str(Path(sys.executable).with_name("gpuhealth")), "agent", "--config", str(self.config)]
        agent = self._start(command, "agent.log", os.environ | self.node.env)
        until(lambda: _answers(f"http://{self.instance}/readyz"), f"the agent is ready, see {self.folder}/agent.log")
        return agent

    def start_prometheus(self) -> None:
        """Starts Prometheus with the rules, their `for` cut short, and waits for the first scrape."""
        assert PROMETHEUS
        rules = yaml.safe_load((FOLDER / "prometheus/rules.yaml").read_text())
        for rule in rules["groups"][0]["rules"]:
            rule["for"] = _HOLD
        (self.folder / "rules.yaml").write_text(yaml.safe_dump(rules))
        config = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules.yaml"],
            "scrape_configs": [{"job_name": "gpuhealth", "static_configs": [{"targets": [self.instance]}]}],
        }
        (self.folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        options = {
            "config.file": "prometheus.yaml",
            "storage.tsdb.path": "tsdb",
            "web.listen-address": self._prometheus,
            "log.level": "warn",
        }
        command = [PROMETHEUS, *(f"--{name}={value}" for name, value in options.items())]
        self._start(command, "prometheus.log", dict(os.environ))
        until(lambda: _answers(f"http://{self._prometheus}/-/ready"), "Prometheus is ready")
        until(lambda: self.query("gpuhealth_agent_info"), "the agent is scraped")

    def _start(self, command: list[str], log: str, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        with (self.folder / log).open("ab") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, env=environment, cwd=self.folder)
        self._processes.append(process)
        return process

    def stop(self) -> None:
        """Ends what was started."""
        self.node.release()
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait(30)

    def kernel_says(self, *texts: str, lost: int = 0) -> None:
        """Appends records to the kernel log; `lost` ones before them were never there to read."""
        self._sequence += lost
        with self._kmsg.open("a") as log:
            for text in texts:
                self._sequence += 1
                log.write(f"6,{self._sequence},{time.monotonic_ns() // 1000},-;{text}\n")

    def pci(self, gpu: int) -> str:
        """The PCI address of a GPU, as the kernel log writes it."""
        index = f'gpuhealth_gpu_info{{index="{gpu}"}}'
        address: str = until(lambda: self.query(index), "the GPU is scraped")[0]["metric"]["pci"]
        return address.rpartition(".")[0]

    def api(self, call: str, **parameters: object) -> Any:
        """Calls Prometheus' HTTP API; an error fails the test with Prometheus' own words."""
        url = f"http://{self._prometheus}/api/v1/{call}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{parameters}: {error.read().decode()}") from error
        assert not answer.get("warnings"), answer["warnings"]
        return answer["data"]

    def query(self, expr: str) -> list[Any]:
        """The expression now."""
        result: list[Any] = self.api("query", query=expr)["result"]
        return result

    def query_range(self, expr: str) -> list[Any]:
        """The expression over the last half minute."""
        now = time.time()
        result: list[Any] = self.api("query_range", query=expr, start=now - 30, end=now, step=1)["result"]
        return result

    def alert(self, name: str) -> dict[str, Any] | None:
        """An alert that is pending or firing."""
        return next((alert for alert in self.api("alerts")["alerts"] if alert["labels"]["alertname"] == name), None)

    def fires(self, name: str) -> dict[str, Any]:
        """Waits until an alert fires."""

        def firing() -> dict[str, Any] | None:
            alert = self.alert(name)
            return alert if alert and alert["state"] == "firing" else None

        return until(firing, f"{name} fires") or {}

    def clears(self, name: str) -> None:
        """Waits until an alert is gone."""
        until(lambda: self.alert(name) is None, f"{name} clears")


def _answers(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as response:
        return bool(response.status == 200)
    return False
