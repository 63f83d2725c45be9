"""The running agent behind a proxy that answers everything with a page of its own."""

from __future__ import annotations

import asyncio
from pathlib import Path

from kube import ControlPlane
from testing.marked_node import Marked
from testing.odd_server import PAGE, in_the_way
from testing.simnode import rounds
from testing.waiting import wait_for


def test_a_page_in_the_way_stops_no_round(plane: ControlPlane, tmp_path: Path) -> None:
    """Measuring goes on, a fault is found, and when the page is gone the node is marked."""
    marked = Marked(plane, tmp_path)
    marked.budget(1)
    sim = marked.sim
    true_kubeconfig = sim.settings["kubernetes"]["kubeconfig"]

    async def run() -> None:
        async with in_the_way(plane) as (page, _):
            for body in (PAGE, b"[]", b'"x"'):
                page.body = body
                sim.configure({"kubernetes": {"kubeconfig": str(plane.folder / f"page-{page.port}.kubeconfig")}})
                await asyncio.to_thread(sim.start)
                await asyncio.to_thread(measured)
                await asyncio.to_thread(sim.stop)

    def measured() -> None:
        began = rounds(sim)
        wait_for("rounds", lambda: rounds(sim) > began + 5)
        sim.driver.inject("remap_failed", gpu=2)
        wait_for("the finding", lambda: "gpu_memory.remap_failed" in sim.findings())
        assert not sim.metric('gpuhealth_loop_failures_total{loop="monitor_nvidia"}')
        assert not sim.metric('gpuhealth_loop_failures_total{loop="mark_node"}')

    try:
        asyncio.run(run())
        sim.configure({"kubernetes": {"kubeconfig": true_kubeconfig}})
        with sim:
            wait_for("the taint", lambda: marked.taint() == "gpu_memory.remap_failed")
    finally:
        sim.stop()
        marked.remove()
