"""A simulated node with its agent, and a Prometheus that scrapes it: one of each for all these tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import yaml
from kube.control_plane import free_port
from testing.prometheus import PROGRAM, Prometheus
from testing.simnode import SimulatedNode

_NO_API_SERVER = {
    "apiVersion": "v1",
    "kind": "Config",
    "current-context": "away",
    "contexts": [{"name": "away", "context": {"cluster": "away", "user": "nobody"}}],
    "clusters": [{"name": "away", "cluster": {"server": "http://127.0.0.1:1"}}],
    "users": [{"name": "nobody", "user": {}}],
}
SETTINGS = {
    "interval": "1s",
    "unknown_after": "10s",
    "nvml": {"warn_after": "5s", "critical_after": "10s"},  # a hang is noticed soon; a busy machine is slow at times
    "thermal": {"critical_after": "0s"},
    "findings": {"*": {"clear_after": "0s"}},
}


@pytest.fixture(scope="package")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SimulatedNode, Prometheus]]:
    """Both, running. The agent's API server is not there."""
    if PROGRAM is None:
        pytest.skip("needs prometheus (Debian package prometheus)")
    folder = tmp_path_factory.mktemp("node")
    kubeconfig = folder / "kubeconfig"
    kubeconfig.write_text(yaml.safe_dump(_NO_API_SERVER))
    port = free_port()  # the same after a restart, as on a real node
    settings = SETTINGS | {"http": {"port": port}}
    with SimulatedNode(folder, kubeconfig=kubeconfig, settings=settings) as node:
        prometheus = Prometheus(folder, f"127.0.0.1:{port}")
        try:
            yield node, prometheus
        finally:
            prometheus.stop()


@pytest.fixture(scope="package")
def prometheus(running: tuple[SimulatedNode, Prometheus]) -> Prometheus:
    """The Prometheus that scrapes the node."""
    return running[1]


@pytest.fixture(scope="module")
def node(running: tuple[SimulatedNode, Prometheus]) -> SimulatedNode:
    """The node, healthy and with nothing remembered."""
    renew(running[0])
    return running[0]


@pytest.fixture
def healthy(node: SimulatedNode) -> Iterator[SimulatedNode]:
    """The node, made healthy again after the test."""
    yield node
    renew(node)


def renew(node: SimulatedNode) -> None:
    """Every fault is taken back, and the agent starts with no memory."""
    node.stop()
    node.driver.clear()
    node.driver.release()
    node.kmsg.write_text("")
    for file in node.folder.glob("journal.sqlite*"):
        file.unlink()
    node.start()
