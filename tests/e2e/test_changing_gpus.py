"""The running agent on a node whose GPUs change hands, or are others after a reboot."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from testing.simnode import QUICK, SimulatedNode, entries, healthy, rounds
from testing.waiting import wait_for


@pytest.fixture
def node(tmp_path: Path) -> Iterator[SimulatedNode]:
    """A node of eight H100 whose agent the test starts."""
    made = SimulatedNode(tmp_path, settings=QUICK)
    yield made
    made.driver.release()
    made.stop()


def reboot(node: SimulatedNode) -> None:
    """Stops the agent, and gives the node another boot id."""
    node.stop()
    (node.driver.root / "proc/sys/kernel/random/boot_id").write_text(f"{uuid.uuid4()}\n")


def replace_gpus(node: SimulatedNode, gpus: int = 8) -> None:
    """Gives GPUs other uuids and PCI domains, as those of another machine have them."""
    addresses = [node.pci(gpu) for gpu in range(gpus)]
    for gpu, address in enumerate(addresses):
        (node.driver.root / "sys/bus/pci/devices" / f"{address}.0").unlink()
        node.driver.set({f"gpu{gpu}.uuid": f"GPU-{uuid.uuid4()}", f"gpu{gpu}.pci.domain": gpu + 1})


def some_rounds(node: SimulatedNode) -> None:
    """Waits for some rounds of the agent."""
    before = rounds(node)
    wait_for("some rounds", lambda: rounds(node) > before + 3)


def test_other_gpus_after_a_reboot(node: SimulatedNode) -> None:
    """A virtual machine that starts on another host has other GPUs: one note, no finding of the old ones, no fault."""
    node.driver.inject("remap_failed", gpu=2)
    with node:
        wait_for("the finding", lambda: node.findings() == {"gpu_memory.remap_failed"})
        reboot(node)
        node.driver.clear()
        replace_gpus(node)
        node.start()
        some_rounds(node)
        wait_for("healthy", lambda: healthy(node) and not node.findings() - {"gpu.replaced"})
        assert ("raised", "gpu.replaced") in entries(node)
        assert ("raised", "gpu.missing") not in entries(node)
        reboot(node)
        node.start()
        some_rounds(node)
        assert entries(node).count(("raised", "gpu.replaced")) == 1


def test_fewer_other_gpus_after_a_reboot(node: SimulatedNode) -> None:
    """A virtual machine that comes up with fewer GPUs lacks some, until the setting says how many it should have."""
    with node:
        wait_for("healthy", lambda: healthy(node))
        reboot(node)
        replace_gpus(node)
        node.driver.inject("drop", gpu=[4, 5, 6, 7])
        node.start()
        wait_for("the finding", lambda: node.findings() == {"gpu.missing"})
        some_rounds(node)
        assert "8 GPUs expected" in node.command("check").stdout
        node.configure({"expected_gpus": 4})
        wait_for("healthy", lambda: healthy(node) and not node.findings())


def test_given_to_virtual_machines_and_back(node: SimulatedNode) -> None:
    """GPUs that are given to virtual machines one after another, up to the last one with its driver, are no fault."""
    with node:
        wait_for("healthy", lambda: healthy(node))
        for gpu in range(8):
            node.driver.inject("passthrough", gpu=gpu)
        wait_for("the note", lambda: node.findings() == {"gpu.unmanaged"})
        node.driver.inject("init_failure")
        some_rounds(node)
        node.stop()
        node.start()
        some_rounds(node)
        assert healthy(node)
        assert node.findings() == {"gpu.unmanaged"}
        node.driver.clear("init_failure")
        some_rounds(node)
        node.driver.clear()
        wait_for("all back", lambda: node.get("/metrics")[1].count("gpuhealth_gpu_info{") == 8)
        some_rounds(node)
        wait_for("healthy", lambda: healthy(node) and not node.findings())
        node.driver.inject("drop", gpu=3, bus=1)
        wait_for("the finding", lambda: node.findings() == {"gpu.missing"})
    raised = {code for kind, code in entries(node) if kind == "raised"}
    # A round in which GPUs leave may find odd answers of the driver.
    assert raised - {"agent.unexpected_reading"} == {"gpu.unmanaged", "gpu.missing"}
