"""Manual commands in the agent's container: memory for two, and where there is too little, the command ends."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from testing.memory_cgroup import MemoryCgroup, memory_cgroup
from testing.paths import BASE
from testing.simnode import SimulatedNode
from testing.waiting import wait_for

_ENVIRONMENT = {"PYTHONOPTIMIZE": "2", "MALLOC_ARENA_MAX": "1"}  # as in the manifest; also makes each start an exec


def limit_of_the_manifest() -> int:
    """The memory limit of the agent's container, in mebibytes."""
    daemon_set = yaml.safe_load((BASE / "agent.yaml").read_text())
    (container,) = daemon_set["spec"]["template"]["spec"]["containers"]
    return int(container["resources"]["limits"]["memory"].removesuffix("Mi"))


@pytest.fixture
def group() -> Iterator[MemoryCgroup]:
    """A memory cgroup with the limit of the manifest."""
    with memory_cgroup() as made:
        made.limit(limit_of_the_manifest())
        yield made


@pytest.fixture
def node(tmp_path: Path, group: MemoryCgroup) -> Iterator[SimulatedNode]:
    """A node whose agent runs in the group."""
    made = SimulatedNode(tmp_path, environment=_ENVIRONMENT)
    made.start(group.enter)
    yield made
    made.stop()


def test_two_commands_at_once_fit(node: SimulatedNode, group: MemoryCgroup) -> None:
    """Within the manifest's limit two checks at once end as usual, and leave half of what is left of it unused."""
    with ThreadPoolExecutor() as pool:
        checks = [pool.submit(node.command, "check", "--json", code=group.enter) for _ in range(2)]
        most = 0

        def have_ended() -> bool:
            nonlocal most
            most = max(most, group.anonymous())
            return all(check.done() for check in checks)

        wait_for("the checks", have_ended)
    assert [check.result().returncode for check in checks] == [0, 0]
    assert most < limit_of_the_manifest() * 3 // 4
    assert node.get("/readyz")[0] == 200


@pytest.mark.parametrize("words", [("check",), ("capture", "-o", "c.tar.gz")], ids=lambda words: words[0])
def test_without_memory_the_command_ends(node: SimulatedNode, group: MemoryCgroup, words: tuple[str, ...]) -> None:
    """With room for neither, the kernel kills the command, or only its NVML child; the agent goes on."""
    pid = node.pid
    group.limit(group.anonymous() + 20)
    said = node.command(*(str(node.folder / word) if "." in word else word for word in words), code=group.enter)
    assert said.returncode in (-signal.SIGKILL, 3), said.stderr
    assert node.pid == pid
    assert node.get("/readyz")[0] == 200
    assert wait_for("another round", lambda: node.metric("gpuhealth_node_healthy")) == 1
