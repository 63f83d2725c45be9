"""gpuhealth's whole life on a node with a real kubelet, and what is left of a node that has ended."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kube.single_node.cluster import SingleNodeCluster, why_not
from kube.single_node.supervisor import cgroups
from testing.kernel_log_lock import kernel_log_lock
from testing.node_walk import Walk
from testing.waiting import wait_for


@pytest.fixture(scope="session")
def real_node() -> Iterator[SingleNodeCluster]:
    """A node with 8 simulated GPUs; without one, the tests are skipped and the reason is printed."""
    if reason := why_not():
        pytest.skip(f"NO WALK ON A REAL NODE: {reason}")
    with SingleNodeCluster() as cluster:
        yield cluster


@pytest.mark.timeout(1800)  # with the images, on a machine that has much else to do
@pytest.mark.process
def test_from_installation_to_removal(real_node: SingleNodeCluster, tmp_path: Path) -> None:
    """Every step works on a real node: install, quarantine, restore, preflight, burn-in, upgrade, removal.

    After it nothing is left of the node: no process, no cgroup and no file.
    """
    walk = Walk(real_node, tmp_path)
    with kernel_log_lock():
        for step in walk.steps():
            try:
                step()
            except Exception as error:  # noqa: BLE001 - every failure is reported with pods, events and logs
                pytest.fail(f"{step.__name__}: {error!r}\n{walk.explain()}")
    print(walk.figures)  # noqa: T201 - shown with -s
    _nothing_outlives_its_creator(real_node)


def _nothing_outlives_its_creator(node: SingleNodeCluster) -> None:
    """The end of the supervisor's input ends every process, and removes the cgroups and the folder."""
    processes = [int(each.name) for each in Path("/proc").iterdir() if each.name.isdecimal() and _in(each, node)]
    assert len(processes) > 5
    node.stop()
    wait_for("the end of every process", lambda: not any(Path(f"/proc/{pid}").exists() for pid in processes))
    assert not node.folder.exists()
    assert not [group for group in cgroups(node.folder.name) if group.exists()]


def _in(process: Path, node: SingleNodeCluster) -> bool:
    try:
        return (process / "ns/pid").readlink() == Path(f"/proc/{node.init}/ns/pid").readlink()
    except OSError:
        return False
