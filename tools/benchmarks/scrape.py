"""How long a scrape of /metrics takes while every NVML call hangs, with 8 GPUs."""

from __future__ import annotations

import http.client
import tempfile
import time
from pathlib import Path

from testing.simnode import SimulatedNode
from testing.waiting import wait_for

from benchmarks import Figures, Settings, percentile

_PAUSE_SECONDS = 0.02


def run(seconds: float) -> tuple[Figures, Settings]:
    """Scrapes one connection after the other, as Prometheus would, before the hang and during it."""
    with tempfile.TemporaryDirectory() as folder, SimulatedNode(Path(folder), settings={"interval": "1s"}) as node:
        healthy = _scrapes(node, seconds / 2)
        node.driver.inject("hang")
        wait_for("the hang", lambda: (node.metric("gpuhealth_agent_nvml_seconds") or 0) > 1)
        hung = _scrapes(node, seconds / 2)
        assert node.metric("gpuhealth_node_healthy") is not None
        figures = {
            "p99_ms": percentile(hung, 99),
            "p50_ms": percentile(hung, 50),
            "max_ms": max(hung),
            "healthy_p99_ms": percentile(healthy, 99),
            "healthy_p50_ms": percentile(healthy, 50),
        }
        settings: Settings = {
            "gpus": 8,
            "interval_s": 1,
            "scrapes": len(hung),
            "healthy_bytes": len(node.get("/metrics")[1]),
        }
        return figures, settings


def _scrapes(node: SimulatedNode, seconds: float) -> list[float]:
    """The time of each scrape in milliseconds."""
    connection = http.client.HTTPConnection(node.url.removeprefix("http://"), timeout=10)
    times = []
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        began = time.perf_counter()
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        answer.read()
        times.append(1000 * (time.perf_counter() - began))
        assert answer.status == 200
        time.sleep(_PAUSE_SECONDS)
    connection.close()
    return times
