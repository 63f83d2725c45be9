"""What a healthy node writes to the API server in an hour, by the API server's own audit log.

A whole agent process with the rights of its manifest, its rounds fifty times as often as in service: an hour's 360
rounds take 72 seconds. Counted is everything after the first report that is not a read.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from kube import ControlPlane
from testing.cluster_objects import budget
from testing.paths import BASE
from testing.plane_with_node import LABELS, NODE
from testing.simnode import SimulatedNode
from testing.waiting import wait_for

from benchmarks import Figures, Settings

_INTERVAL = 0.2
_ROUNDS_PER_HOUR = 360
_USER = "system:serviceaccount:gpuhealth:gpuhealth-agent"
_READS = {"get", "list", "watch"}


def run(seconds: float) -> tuple[Figures, Settings]:
    """Count for so long, and at least the rounds of an hour."""
    with tempfile.TemporaryDirectory() as folder, ControlPlane(audit=True) as plane:
        plane.apply(BASE)
        plane.apply([budget("gpu-nodes", LABELS, 1)])
        plane.create_node(NODE, {"nvidia.com/gpu.present": "true"})
        token = plane.service_account_token("gpuhealth", "gpuhealth-agent", seconds=7200)
        kubeconfig = plane.write_kubeconfig("agent", token)
        settings = {"interval": _INTERVAL, "kmsg": {"lookback": 0, "since_boot": False}}
        with SimulatedNode(Path(folder), NODE, kubeconfig=kubeconfig, settings=settings) as node:
            wait_for("the first report", lambda: "gpuhealthreports" in str(_writes(plane)))
            settled = _rounds(node)
            wait_for("rounds after it", lambda: _rounds(node) > settled + 5)
            before, requests, first = len(_writes(plane)), _requests(plane), _rounds(node)
            time.sleep(seconds)
            wait_for("an hour's rounds", lambda: _rounds(node) >= first + _ROUNDS_PER_HOUR, seconds=600)
            rounds = _rounds(node) - first
            writes = len(_writes(plane)) - before
            figures = {
                "writes_per_hour": writes * _ROUNDS_PER_HOUR / rounds,
                "requests": _requests(plane) - requests,
                "writes_at_start": before,
                "rounds": rounds,
            }
    return figures, {"interval_s": _INTERVAL, "rounds_per_hour": _ROUNDS_PER_HOUR}


def _rounds(node: SimulatedNode) -> float:
    return node.metric("gpuhealth_agent_rounds_total") or 0.0


def _audited(plane: ControlPlane) -> list[tuple[str, str]]:
    """Verb and address of all that the agent has asked for."""
    events = (event for event in plane.audit() if event["user"].get("username") == _USER)
    return [(event["verb"], event["requestURI"]) for event in events]


def _requests(plane: ControlPlane) -> int:
    return len(_audited(plane))


def _writes(plane: ControlPlane) -> list[tuple[str, str]]:
    return [(verb, address) for verb, address in _audited(plane) if verb not in _READS]
