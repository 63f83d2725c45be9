"""A real agent on a node whose driver is installed, upgraded and removed while it runs, as its pod sees the node.

The node's root is a folder, and the agent's own loader finds no library, as in its image. Each library works with the
kernel module of its own version only.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kube import ControlPlane
from testing.host_root import NEW, OLD, HostRoot
from testing.marked_node import Marked
from testing.simnode import ROUNDS, SimulatedNode, entries, healthy
from testing.waiting import wait_for

GRACE = {"raise_after": "10m"}
UNKNOWN = 'gpuhealth_verdict{verdict="unknown"}'
PATIENT = {"nvml": {"warn_after": "60s", "critical_after": "120s", "reinit_interval": "200ms"}}
NODE_FAULTS = {"driver.not_loaded", "driver.version_mismatch"}


class Container:
    """What the agent's pod has of a node: its root below another one, and no library of its own."""

    def __init__(self, sim: SimulatedNode) -> None:
        self.sim = sim
        self.host = HostRoot(sim.folder / "host")
        sim._environment["LD_LIBRARY_PATH"] = "/nonexistent"
        sim._environment["COLUMNS"] = "400"  # a path is longer than a line
        findings = {"*": {"clear_after": "400ms", "raise_after": 0}, **dict.fromkeys(NODE_FAULTS, GRACE)}
        sim.configure({"host": {"root": str(self.host.path)}, "findings": findings, "unknown_after": "2s"})
        self.unload()

    def load(self, version: str) -> None:
        """Loads the kernel module of a version."""
        self.sim.driver.set({"node.driver_version": version})

    def unload(self) -> None:
        """Unloads the kernel module."""
        self.load("")

    def end_grace(self) -> None:
        """The grace of faults of the driver is over at once."""
        at_once = {code: {"raise_after": 0} for code in NODE_FAULTS}
        self.sim.configure({"findings": self.sim.settings["findings"] | at_once})

    def library(self) -> str:
        """The libnvidia-ml that the agent's NVML process has mapped; empty without one."""
        for child in Path(f"/proc/{self.sim.pid}/task/{self.sim.pid}/children").read_text().split():
            try:
                maps = Path(f"/proc/{child}/maps").read_text().splitlines()
            except OSError:
                continue
            for line in maps:
                if "libnvidia-ml" in line:
                    return line.split(maxsplit=5)[5]
        return ""

    def rounds(self, more: int) -> None:
        """Waits for so many rounds more."""
        before = self.sim.metric(ROUNDS) or 0.0
        wait_for("rounds", lambda: (self.sim.metric(ROUNDS) or 0.0) >= before + more)

    def raised(self) -> set[str]:
        """The codes that were raised since the journal began."""
        return {code for kind, code in entries(self.sim) if kind == "raised"}


@pytest.fixture
def container(tmp_path: Path) -> Iterator[Container]:
    """A node without driver, whose agent the test starts."""
    made = Container(SimulatedNode(tmp_path, settings={"interval": "200ms", **PATIENT}))
    yield made
    made.sim.stop()


class OnCluster(Container):
    """Such a node with a Node object and a budget that lets it go out of service."""

    def __init__(self, marked: Marked) -> None:
        super().__init__(marked.sim)
        self.marked = marked
        marked.budget(1)

    def is_in_service(self) -> bool:
        """Whether nothing has ever taken the Node out: no mark, and no quarantine in the journal."""
        kinds = {kind for kind, _ in entries(self.sim)}
        spec = self.marked.node()["spec"]
        return not (self.marked.taint() or spec.get("unschedulable") or kinds & {"taint", "cordon"})


@pytest.fixture
def cluster_node(plane: ControlPlane, tmp_path: Path) -> Iterator[OnCluster]:
    """A node of a cluster without driver, whose agent the test starts."""
    marked = Marked(plane, tmp_path)
    made = OnCluster(marked)
    yield made
    marked.sim.stop()
    marked.remove()


@pytest.mark.parametrize(
    "install",
    [HostRoot.debian, HostRoot.red_hat, HostRoot.gke, HostRoot.driver_container],
    ids=lambda place: place.__name__,
)
def test_an_installed_driver(container: Container, install: Callable[[HostRoot, str], Path]) -> None:
    """Wherever the driver is installed, the NVML process loads its library, and the node is healthy."""
    library = install(container.host, OLD)
    container.load(OLD)
    with container.sim as sim:
        wait_for("healthy", lambda: healthy(sim))
        assert container.library() == str(library)
    assert container.raised() == set()


def test_of_several_libraries_the_one_that_fits_is_loaded(container: Container) -> None:
    """A driver container of another version, and what an upgrade left behind, do not matter."""
    container.host.driver_container(NEW)
    container.host.debian(NEW)
    library = container.host.red_hat(OLD)
    container.load(OLD)
    with container.sim as sim:
        wait_for("healthy", lambda: healthy(sim))
        assert container.library() == str(library)
    assert container.raised() == set()


def test_check_uses_the_node_s_library(container: Container) -> None:
    """The command in the agent's pod reads the GPUs; without a library that can be used it says which were tried."""
    library = container.host.driver_container(OLD)
    container.load(OLD)
    assert container.sim.command("check").returncode == 0
    library.write_bytes(library.read_bytes()[:1000])
    done = container.sim.command("check")
    assert done.returncode == 3
    assert "agent.nvml_library" in done.stdout
    assert f"{library}: truncated" in " ".join(done.stdout.split())
    container.host.red_hat(NEW)
    done = container.sim.command("check")
    assert done.returncode == 2
    assert f"libnvidia-ml.so.{NEW} and kernel module ({OLD})" in " ".join(done.stdout.split())


def test_an_agent_before_the_driver(cluster_node: OnCluster) -> None:
    """Started on a node whose driver is not there yet, it runs, is unknown, and is right once the driver is loaded. It
    never marks the node as unhealthy, and is never started again."""
    node, marked = cluster_node, cluster_node.marked
    with node.sim as sim:
        pid = sim.pid
        wait_for("unknown", lambda: marked.condition()[0] == "Unknown")
        node.rounds(5)
        assert (sim.findings(), sim.metric(UNKNOWN)) == (set(), 1)
        assert sim.metric('gpuhealth_not_checked{check="gpu.lost",reason="not_installed"}') == 1
        node.load(OLD)  # the module is first, as in an installation
        node.rounds(3)
        library = node.host.driver_container(OLD)
        wait_for("a healthy condition", lambda: marked.condition() == ("True", "Healthy"))
        assert node.library() == str(library)
        assert (sim.pid, sim.findings()) == (pid, set())
        assert node.is_in_service()
    assert node.raised() <= {"agent.nvml_library"}


def test_a_driver_container_is_upgraded_and_removed(cluster_node: OnCluster) -> None:
    """Up and down between two versions, each with a time without driver: healthy with the library of each, unknown in
    between, and in service throughout. Without a driver for longer than the grace it is out of service until one is
    installed."""
    node, marked = cluster_node, cluster_node.marked
    node.host.driver_container(OLD)
    node.load(OLD)
    with node.sim as sim:
        pid = sim.pid
        wait_for("a healthy condition", lambda: marked.condition() == ("True", "Healthy"))
        for version in (NEW, OLD):
            node.unload()
            node.host.remove_driver_container()
            wait_for("unknown", lambda: marked.condition()[0] == "Unknown")
            library = node.host.driver_container(version)
            node.load(version)
            wait_for("a healthy condition", lambda: marked.condition() == ("True", "Healthy"))
            assert node.library() == str(library)
            assert node.is_in_service()
        assert (sim.pid, node.raised() - {"agent.nvml_library"}) == (pid, set())
        node.unload()
        node.host.remove_driver_container()
        node.rounds(3)
        assert not NODE_FAULTS & sim.findings()
        node.end_grace()
        wait_for("the quarantine", lambda: marked.quarantine() == "quarantined")
        assert "driver.not_loaded" in sim.findings()
        node.host.driver_container(NEW)
        node.load(NEW)
        wait_for("a healthy condition", lambda: marked.condition() == ("True", "Healthy"))
        assert sim.pid == pid


def test_a_host_in_the_middle_of_an_upgrade(cluster_node: OnCluster) -> None:
    """A new library with the old module is a fault of the node only after the grace, and only if the old library is
    gone."""
    node, marked = cluster_node, cluster_node.marked
    old = node.host.red_hat(OLD)
    node.load(OLD)
    with node.sim as sim:
        wait_for("a healthy condition", lambda: marked.condition() == ("True", "Healthy"))
        node.host.red_hat(NEW)  # the package of another version, with the old file still there
        node.unload()
        node.load(OLD)
        node.rounds(3)
        wait_for("a healthy condition", lambda: marked.condition() == ("True", "Healthy"))
        assert node.library() == str(old)
        old.unlink()
        node.unload()
        node.rounds(2)
        node.load(OLD)  # loaded again, without its library
        wait_for("unknown", lambda: marked.condition()[0] == "Unknown")
        node.rounds(5)
        assert sim.findings() == set()
        assert node.is_in_service()
        node.end_grace()
        wait_for("the quarantine", lambda: marked.quarantine() == "quarantined")
        assert sim.findings() == {"driver.version_mismatch"}
        node.load(NEW)
        wait_for("a healthy condition", lambda: marked.condition() == ("True", "Healthy"))


def test_a_library_that_only_our_container_lacks(cluster_node: OnCluster) -> None:
    """A loaded module, and a root without any library: our fault, whatever the grace; the setting names the folder."""
    node, marked = cluster_node, cluster_node.marked
    node.load(OLD)
    node.end_grace()
    library = node.host.install("srv/nvidia", OLD)
    with node.sim as sim:
        wait_for("the finding", lambda: sim.findings() == {"agent.nvml_library"})
        wait_for("unknown", lambda: marked.condition()[0] == "Unknown")
        node.rounds(5)
        assert node.is_in_service()
        sim.configure({"nvml": {"library_paths": ["/srv/nvidia"]}})
        wait_for("a healthy condition", lambda: marked.condition() == ("True", "Healthy"))
        assert node.library() == str(library)
        shutil.rmtree(node.host.path / "srv")
    assert not NODE_FAULTS & node.raised()
