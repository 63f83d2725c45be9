"""`tools/demo --cluster`: gpuhealth's life on a node with a real kubelet, as a person would see it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from kube.single_node.cluster import SingleNodeCluster, why_not
from testing.node_walk import Walk

from demonstration.screen import Screen

_MOST_LINES = 40  # of the output of one command


def demonstrate(screen: Screen) -> int:
    """0 when every step came as expected, 1 when this machine cannot run a node."""
    if reason := why_not():
        screen.say(f"No cluster can be shown here: {reason}.")
        return 1
    screen.say("Setting up: images, a control plane, containerd, a kubelet. The first time takes some minutes …")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gpuhealth-demo-") as folder, SingleNodeCluster() as cluster:
        walk = Walk(cluster, Path(folder), show=lambda line, output: _show(screen, line, output))
        for step in walk.steps():
            _tell(screen, step)
    screen.heading("What was measured")
    screen.lines(screen.table([[name, f"{value:.1f}"] for name, value in walk.figures.items()]))
    seconds = time.monotonic() - began
    screen.say(f"Everything came as expected, in {seconds:.0f} s. Nothing of it is left behind.")
    return 0


def _tell(screen: Screen, step: Callable[[], None]) -> None:
    title, _, text = (step.__doc__ or "").partition(": ")
    screen.heading(title)
    screen.say(f"{text[:1].upper()}{text[1:]}")
    step()


def _show(screen: Screen, line: str, output: str) -> None:
    lines = output.splitlines()
    omitted = [f"… {len(lines) - _MOST_LINES} more lines"] if len(lines) > _MOST_LINES else []
    screen.command(line, lines[:_MOST_LINES] + omitted)
