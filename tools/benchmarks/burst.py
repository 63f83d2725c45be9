"""A thousand nodes faulted at once, with a slot for each: how long until the last of them is tainted.

The agents' cluster halves are in the loop, with the rights and all the writes of real ones: slot, taint, condition,
Events and report.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from kube import ControlPlane
from testing.half_agents import calls, first, fleet, most, plane_with_budget, quiet
from testing.waiting import until

from benchmarks import Figures, Settings

_AGENTS = 1000
_SLOTS = 10_000  # a budget that does not bind; of its last slots most would be found taken at first


def run(seconds: float) -> tuple[Figures, Settings]:
    """One burst, given up after so long."""
    quiet()
    with plane_with_budget(_SLOTS) as (plane, kubeconfig):
        return asyncio.run(_measure(plane, kubeconfig, seconds))


async def _measure(plane: ControlPlane, kubeconfig: Path, seconds: float) -> tuple[Figures, Settings]:
    async with fleet(plane, kubeconfig, _AGENTS, in_turn=True) as all_of:
        client, halves, out = all_of.client, all_of.halves, all_of.history.out
        before, began = calls(client), time.monotonic()
        for half in halves:
            half.want(sick=True)
        await until(lambda: most(out) == _AGENTS, seconds)
        until_tainted = calls(client) - before
        await until(lambda: all(half.settled for half in halves), seconds)
        figures = {
            "last_taint_s": first(out, _AGENTS) - began,
            "median_taint_s": first(out, _AGENTS // 2) - began,
            "all_written_s": time.monotonic() - began,
            "calls_until_tainted": until_tainted,
            "calls": calls(client) - before,
        }
    return figures, {"agents": _AGENTS, "slots": _SLOTS}
