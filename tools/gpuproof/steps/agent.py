"""The agent on this machine: its memory and CPU, and how fast it closes the GPUs on request."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

import psutil

from gpuproof.step import Context, Outcome, TooLateError, disproved, end, not_proved, proved

_START_SECONDS, _STOP_SECONDS = 25.0, 5.0
_RELEASE_SECONDS = 1.0
_LIMIT_MIB = 120.0  # of agent and NVML child; the container's limit leaves room for two commands more


def run(context: Context) -> Outcome:
    """Proved where memory and CPU are within bounds, and no device of a GPU is open a second after SIGUSR1."""
    environment = {
        "GPUHEALTH_JOURNAL__PATH": str(context.folder / "agent" / "journal.sqlite"),
        "GPUHEALTH_HTTP__HOST": "127.0.0.1",
        "GPUHEALTH_HTTP__PORT": "0",
        "GPUHEALTH_KUBERNETES__ENABLED": "false",
        "PYTHONOPTIMIZE": "2",
        "MALLOC_ARENA_MAX": "1",
    }
    process = context.start(["agent"], **environment)
    try:
        began = time.monotonic()
        url = _ready(context, process)
        ready = time.monotonic() - began
        seconds = max(3.0, context.left - _STOP_SECONDS)
        rss, cpu = _cost(process.pid, url, seconds)
        held = _devices(process.pid)
        os.kill(process.pid, signal.SIGUSR1)
        released = _until_released(process.pid)
    finally:
        end(process)
    facts = {"ready_seconds": round(ready, 2), "rss_mib": round(rss, 1), "cpu_percent": round(cpu, 3),
             "measured_seconds": round(seconds), "devices_held": held, "released_after_seconds": released}  # fmt: skip
    sentence = f"{rss:.0f} MiB, {cpu:.2f} % of a CPU over {seconds:.0f} s, ready after {ready:.1f} s"
    if rss > _LIMIT_MIB:
        return disproved(f"{sentence}: more than {_LIMIT_MIB:.0f} MiB", **facts)
    if released is None:
        return disproved(
            f"GPU devices are still open {_RELEASE_SECONDS:g} s after SIGUSR1", *_devices(process.pid), **facts
        )
    if not held:
        return not_proved(f"{sentence}; it held no /dev/nvidia* that it could release", **facts)
    return proved(f"{sentence}; {len(held)} devices released within {released:.2f} s", **facts)


def _ready(context: Context, process: subprocess.Popen[bytes]) -> str:
    """The agent's address once it has judged the node. Raises TooLateError, also where the agent has ended."""
    deadline = time.monotonic() + min(_START_SECONDS, context.left)
    url = ""
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise TooLateError(f"the agent has ended with exit code {process.returncode}: see agent.log")
        for line in (context.folder / "agent.log").read_text(errors="replace").splitlines():
            with suppress(ValueError, KeyError, TypeError):
                event = json.loads(line)
                url = f"http://127.0.0.1:{event['port']}" if event["event"] == "serving" else url
        if url and _get(f"{url}/readyz"):
            return url
        time.sleep(0.1)
    raise TooLateError("the agent was not ready in time: see agent.log")


def _get(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.read())
    except (urllib.error.URLError, OSError):
        return False


def _processes(pid: int) -> list[psutil.Process]:
    with suppress(psutil.Error):
        agent = psutil.Process(pid)
        return [agent, *agent.children(recursive=True)]
    return []


def _cost(pid: int, url: str, seconds: float) -> tuple[float, float]:
    """The largest memory of agent and children in MiB, and per cent of a CPU, with a scrape every 15 s."""

    def cpu() -> float:
        total = 0.0
        for process in _processes(pid):
            with suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    before, began, most = cpu(), time.monotonic(), 0.0
    while (spent := time.monotonic() - began) < seconds:
        _get(f"{url}/metrics")
        with suppress(psutil.Error):
            most = max(most, sum(process.memory_info().rss for process in _processes(pid)) / 2**20)
        time.sleep(min(15.0, seconds - spent))
    return most, 100 * (cpu() - before) / (time.monotonic() - began)


def _devices(pid: int) -> list[str]:
    """The GPU devices that agent and children have open."""
    found = set()
    for process in _processes(pid):
        for link in Path(f"/proc/{process.pid}/fd").glob("*"):
            with suppress(OSError):
                target = str(link.readlink())
                found |= {target} if target.startswith("/dev/nvidia") else set()
    return sorted(found)


def _until_released(pid: int) -> float | None:
    """Seconds until no GPU device is open; None after too long."""
    began = time.monotonic()
    while (spent := time.monotonic() - began) <= _RELEASE_SECONDS:
        if not _devices(pid):
            return round(spent, 3)
        time.sleep(0.01)
    return None
