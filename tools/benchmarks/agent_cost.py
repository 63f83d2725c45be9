"""What the agent costs a node: memory and CPU of agent and NVML child, 8 GPUs, rounds of 10 s, scraped every 15 s."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
from kube import MissingBinariesError
from testing.plane_with_node import plane_with_node
from testing.simnode import REAL_KMSG, SimulatedNode

from benchmarks import Figures, Settings

_SCRAPE_SECONDS = 15.0
_WARM_UP_SECONDS = 30.0
_AS_DEPLOYED = {"PYTHONOPTIMIZE": "2", "MALLOC_ARENA_MAX": "1"}  # daemonset/agent.yaml sets the same


def run(seconds: float) -> tuple[Figures, Settings]:
    """Measures a healthy node for so long, after a warm-up; with the API server where one can be started."""
    _compile_as_in_the_image()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        kubeconfig = None
        with suppress(MissingBinariesError):  # then without: the settings say so
            _, kubeconfig = stack.enter_context(plane_with_node())
        kmsg = REAL_KMSG if REAL_KMSG.exists() else None
        quiet = {"kmsg": {"lookback": 0, "since_boot": False}}  # the machine's own log may hold lines of other runs
        node = SimulatedNode(folder, kubeconfig=kubeconfig, kmsg=kmsg, environment=_AS_DEPLOYED, settings=quiet)
        stack.enter_context(node)
        _scraped(node, _WARM_UP_SECONDS)
        agent = psutil.Process(node.pid)
        processes = [agent, *agent.children()]
        began, cpu_before = time.monotonic(), [_cpu_seconds(process) for process in processes]
        rss = _scraped(node, seconds, processes)
        wall = time.monotonic() - began
        spent = [_cpu_seconds(process) - before for process, before in zip(processes, cpu_before, strict=True)]
        figures = {
            "rss_mib": max(sum(sample) for sample in rss) / 2**20,
            "cpu_percent": 100 * sum(spent) / wall,
            "agent_rss_mib": max(sample[0] for sample in rss) / 2**20,
            "child_rss_mib": max(sum(sample[1:]) for sample in rss) / 2**20,
            "agent_cpu_percent": 100 * spent[0] / wall,
            "child_cpu_percent": 100 * sum(spent[1:]) / wall,
        }
        settings: Settings = {
            "gpus": 8,
            "interval_s": 10,
            "seconds": round(wall),
            "scrape_every_s": _SCRAPE_SECONDS,
            "api_server": kubeconfig is not None,
            "kernel_log": str(node.kmsg),
            **_AS_DEPLOYED,
        }
        return figures, settings


def _compile_as_in_the_image() -> None:
    """daemonset/image/Containerfile does the same: compiling at the start would cost the agent 12 MiB for ever."""
    packages = [sysconfig.get_path("purelib"), str(Path(__file__).parents[2] / "gpuhealth")]
    subprocess.run([sys.executable, "-OO", "-m", "compileall", "-q", *packages], check=False, capture_output=True)


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _scraped(node: SimulatedNode, seconds: float, processes: list[psutil.Process] | None = None) -> list[list[int]]:
    """Scrapes the agent for so long; the memory of the processes after each scrape."""
    rss = []
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        node.get("/metrics")
        rss.append([process.memory_info().rss for process in processes or []])
        time.sleep(min(_SCRAPE_SECONDS, max(0.0, deadline - time.monotonic())))
    return rss
