"""What is seen of a hang of NVML under the running agent: scrapes, the finding, the kernel log, and the command."""

from __future__ import annotations

import tempfile
import threading
import time
from pathlib import Path

from testing.simnode import SimulatedNode
from testing.waiting import wait_for

from benchmarks import Figures, Settings

_SCRAPE_SECONDS = 0.5
_HANG = "driver.unresponsive"


def run(seconds: float) -> tuple[Figures, Settings]:
    """Default settings; the hang lasts `seconds` and ends by itself."""
    with tempfile.TemporaryDirectory() as folder, SimulatedNode(Path(folder)) as node:
        failed, stop = [0], threading.Event()
        scraper = threading.Thread(target=_scrape, args=(node, failed, stop))
        scraper.start()
        node.driver.inject("hang", seconds=seconds)
        began = time.monotonic()
        check: list[tuple[int, float]] = []
        command = threading.Thread(target=lambda: check.append(_checked(node)))
        command.start()
        node.xid(79, gpu=3, text="GPU has fallen off the bus.")
        wait_for("the kernel-log fault", lambda: "xid.79" in node.findings())
        kernel_fault_s = time.monotonic() - began
        wait_for("the finding", lambda: _HANG in node.findings(), seconds=90)
        reported_after_s = time.monotonic() - began
        wait_for("its end", lambda: _HANG not in node.findings(), seconds=seconds + 120)
        cleared_after_s = time.monotonic() - began
        command.join()
        stop.set()
        scraper.join()
        exit_code, check_s = check[0]
        figures = {
            "scrapes_failed": float(failed[0]),
            "reported_after_s": reported_after_s,
            "kernel_fault_after_s": kernel_fault_s,
            "cleared_after_s": cleared_after_s,
            "check_s": check_s,
            "check_exit_code": float(exit_code),
            "nvml_processes_started": node.metric("gpuhealth_agent_nvml_process_starts_total") or 0.0,
        }
        return figures, {"gpus": 8, "hang_s": seconds, "interval_s": 10, "scrape_every_s": _SCRAPE_SECONDS}


def _scrape(node: SimulatedNode, failed: list[int], stop: threading.Event) -> None:
    while not stop.wait(_SCRAPE_SECONDS):
        failed[0] += node.get("/metrics", seconds=1.0)[0] != 200


def _checked(node: SimulatedNode) -> tuple[int, float]:
    began = time.monotonic()
    return node.command("check", "--json").returncode, time.monotonic() - began
