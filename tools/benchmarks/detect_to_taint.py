"""From a line in the kernel log to the taint on the API server: one node, the agent in the loop, its own rights."""

from __future__ import annotations

import json
import ssl
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

from kube import ControlPlane
from kube.control_plane import ADMIN_TOKEN
from testing.plane_with_node import NODE, plane_with_node
from testing.simnode import REAL_KMSG, SimulatedNode
from testing.waiting import wait_for

from benchmarks import Figures, Settings, percentile

_TAINT = "gpuhealth.io/unhealthy"
_MOST = 200
# A GPU that has been reset clears at once, so that the next sample can begin; detection does not wait for rounds.
_QUICK = {
    "interval": "500ms",
    "kmsg": {"lookback": 0, "since_boot": False},  # the machine's own log may hold lines of an earlier run
    "findings": {"gpu.recovery_action": {"clear_after": 0}, "xid.95": {"clear_after": 0}},
}


class _Taints:
    """Watches the node, and knows when the taint was last put on and taken off."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self.tainted = False
        self.changed_at = 0.0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        url = f"{self._plane.server}/api/v1/nodes?watch=true&fieldSelector=metadata.name%3D{NODE}"
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {ADMIN_TOKEN}"})
        context = ssl.create_default_context(cafile=str(self._plane.ca))
        with urllib.request.urlopen(request, context=context) as answer:
            for line in answer:
                node: dict[str, Any] = json.loads(line)["object"]
                tainted = any(taint["key"] == _TAINT for taint in node["spec"].get("taints", []))
                if tainted is not self.tainted:
                    self.changed_at = time.monotonic()
                    self.tainted = tainted


def run(seconds: float) -> tuple[Figures, Settings]:
    """Samples for so long: an XID 95, the taint, a reset of the GPU, the taint gone."""
    times: list[float] = []
    kmsg = REAL_KMSG if REAL_KMSG.exists() else None
    with tempfile.TemporaryDirectory() as folder, plane_with_node() as (plane, kubeconfig):
        taints = _Taints(plane)
        with SimulatedNode(Path(folder), NODE, kubeconfig=kubeconfig, kmsg=kmsg, settings=_QUICK) as node:
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline and len(times) < _MOST:
                gpu = len(times) % 8
                line = f"NVRM: Xid (PCI:{node.pci(gpu)}): 95, pid=7194, name=x, Uncontained: LTC TAG (0x2, 0x1)."
                began = time.monotonic()
                node.kernel_says(line)
                wait_for("the taint", lambda: taints.tainted, every=0.001)
                times.append(1000 * (taints.changed_at - began))
                node.driver.inject("recovery_action", gpu=gpu, value=1)
                wait_for("the reset wanted", lambda: "gpu.recovery_action" in node.findings())
                node.driver.clear("recovery_action", gpu=gpu)
                wait_for("the end of the taint", lambda: not taints.tainted)
    figures = {
        "p50_ms": percentile(times, 50),
        "p99_ms": percentile(times, 99),
        "max_ms": max(times),
        "min_ms": min(times),
    }
    return figures, {"samples": len(times), "kernel_log": str(kmsg or "file"), "budget": "maxUnavailable 1"}
