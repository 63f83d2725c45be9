"""A real Prometheus that scrapes one agent every second."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import yaml
from kube.control_plane import free_port

from dashboards.generate import FOLDER
from testing.waiting import wait_for

PROGRAM = shutil.which("prometheus")
EVERY = 0.1  # seconds between looks: everything happens once a second
_HOLD = "2s"  # in the place of what the rules say: that is tested with promtool, which need not wait for it


class Prometheus:
    """A process of Prometheus with the project's rules; every alert's `for` is two seconds."""

    def __init__(self, folder: Path, target: str) -> None:
        assert PROGRAM
        rules = yaml.safe_load((FOLDER / "prometheus/rules.yaml").read_text())
        for rule in rules["groups"][0]["rules"]:
            rule["for"] = _HOLD
        (folder / "rules.yaml").write_text(yaml.safe_dump(rules))
        config = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules.yaml"],
            "scrape_configs": [{"job_name": "gpuhealth", "static_configs": [{"targets": [target]}]}],
        }
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        self._address = f"127.0.0.1:{free_port()}"
        options = {
            "config.file": "prometheus.yaml",
            "storage.tsdb.path": "tsdb",
            "web.listen-address": self._address,
            "log.level": "warn",
        }
        command = [PROGRAM, *(f"--{name}={value}" for name, value in options.items())]
        with (folder / "prometheus.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
        wait_for(f"the first scrape, see {folder}/prometheus.log", self._scraping, every=EVERY)

    def _scraping(self) -> bool:
        assert self._process.poll() is None, "Prometheus has ended"
        try:
            return bool(self.query("gpuhealth_agent_info"))
        except OSError:  # it does not listen yet
            return False

    def stop(self) -> None:
        """Ends the process, and waits for that."""
        self._process.terminate()
        self._process.wait(120)

    def api(self, call: str, **parameters: object) -> Any:
        """Calls the HTTP API; AssertionError with Prometheus' message for an error or a warning."""
        url = f"http://{self._address}/api/v1/{call}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 503:  # it is still reading its storage
                    raise OSError("not ready") from error
                raise AssertionError(f"{parameters}: {error.read().decode()}") from error
        assert not answer.get("warnings"), answer["warnings"]
        return answer["data"]

    def query(self, expr: str) -> list[Any]:
        """The value of an expression at this time."""
        result: list[Any] = self.api("query", query=expr)["result"]
        return result

    def query_range(self, expr: str) -> list[Any]:
        """The values of an expression over the last 30 seconds."""
        now = time.time()
        result: list[Any] = self.api("query_range", query=expr, start=now - 30, end=now, step=1)["result"]
        return result

    def alerts(self, name: str, state: str = "") -> list[dict[str, Any]]:
        """The alerts of a name that are pending or firing."""
        alerts: list[dict[str, Any]] = self.api("alerts")["alerts"]
        return [alert for alert in alerts if alert["labels"]["alertname"] == name and state in (alert["state"], "")]

    def fires(self, name: str) -> dict[str, Any]:
        """Waits until an alert fires, and returns it."""
        return wait_for(f"{name} fires", lambda: self.alerts(name, "firing"), every=EVERY)[0]

    def clears(self, name: str) -> None:
        """Waits until an alert is neither pending nor firing."""
        wait_for(f"{name} clears", lambda: not self.alerts(name), every=EVERY)
