"""One agent for each node: the lock of the journal's folder."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from testing.simnode import QUICK, SimulatedNode
from testing.waiting import wait_for

from gpuhealth.runtime.single_instance import InstanceLock, refused_instance


def test_the_second_leaves_its_name(tmp_path: Path) -> None:
    """Only one has the lock; the other's name is there for it to read, cut to a bounded length."""
    first, second = InstanceLock(tmp_path / "new"), InstanceLock(tmp_path / "new")
    assert first.take("first", 0.0)
    assert refused_instance(tmp_path / "new") is None
    assert not second.take("second " + "x" * 10_000, 0.0)
    refused = refused_instance(tmp_path / "new")
    assert refused is not None
    assert refused.name.startswith("second x")
    assert len(refused.name) == 300
    first.release()
    assert second.take("second", 0.0)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """A file in its place, or a link instead of the lock, is an error, and nothing is overwritten."""
    (tmp_path / "file").write_text("kept")
    with pytest.raises(OSError, match="File exists"):
        InstanceLock(tmp_path / "file").take("first", 0.0)
    (tmp_path / "instance.lock").symlink_to(tmp_path / "file")
    with pytest.raises(OSError, match="symbolic links"):
        InstanceLock(tmp_path).take("first", 0.0)
    assert (tmp_path / "file").read_text() == "kept"


def test_two_agents_on_one_node(tmp_path: Path) -> None:
    """The second ends with one sentence and writes nothing; the first reports it, and another starts after its end."""
    with SimulatedNode(tmp_path, settings=QUICK) as node:
        wait_for("a first round", lambda: node.findings() == set() and node.get("/readyz")[0] == 200)
        second = node.command("agent")
        assert second.returncode == 3
        assert "another agent runs on this node" in second.stderr.splitlines()[-1]
        wait_for("the finding", lambda: node.findings() == {"agent.second_agent"})
        node.stop(signal.SIGKILL)
        node.start()
        assert node.get("/readyz")[0] == 200
