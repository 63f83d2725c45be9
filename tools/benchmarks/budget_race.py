"""A thousand agents want their nodes out at once, and a budget lets 25: how many are out at any moment, and how soon.

A tenth of the agents are killed at random moments of the race and started again. Then some nodes recover, others go
out in their place, and agents go on being killed, until the time is over. The figures count over everything that a
watch of all nodes has seen.
"""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path

from kube import ControlPlane
from testing.half_agents import Half, calls, first, fleet, most, plane_with_budget, quiet
from testing.waiting import until

from benchmarks import Figures, Settings

_AGENTS = 1000
_SLOTS = 25
_KILLED = _AGENTS // 10
_RACE_SECONDS = 2.0  # within which the first agents are killed
_RESTART_SECONDS = 0.3


def run(seconds: float) -> tuple[Figures, Settings]:
    """The race, and recoveries for so long."""
    quiet()
    with plane_with_budget(_SLOTS) as (plane, kubeconfig):
        return asyncio.run(_measure(plane, kubeconfig, seconds))


async def _measure(plane: ControlPlane, kubeconfig: Path, seconds: float) -> tuple[Figures, Settings]:
    async with fleet(plane, kubeconfig, _AGENTS) as all_of:
        client, halves, history = all_of.client, all_of.halves, all_of.history
        before, began = calls(client), time.monotonic()
        for half in halves:
            half.want(sick=True)
        kills = asyncio.gather(*[_kill(half, _RACE_SECONDS) for half in random.sample(halves, _KILLED)])
        await until(lambda: most(history.out) >= _SLOTS and all(half.settled or half.killed for half in halves))
        await kills
        last = first(history.slots, _SLOTS) - began
        spent = calls(client) - before
        killed = await _recoveries(halves, seconds)
        await until(lambda: history.out[-1].count == _SLOTS, seconds=300.0)  # the held try once a minute
    figures = {
        "max_out": most(history.out),
        "max_places": most(history.slots),
        "last_place_s": last,
        "last_taint_s": first(history.out, _SLOTS) - began,
        "calls": spent,
    }
    return figures, {"agents": _AGENTS, "slots": _SLOTS, "killed": _KILLED + killed, "recovering_s": seconds}


async def _kill(half: Half, within: float) -> None:
    await asyncio.sleep(random.uniform(0, within))
    await half.kill()
    await asyncio.sleep(random.uniform(_RESTART_SECONDS, 2 * _RESTART_SECONDS))
    half.start()


async def _recoveries(halves: list[Half], seconds: float) -> int:
    """Nodes recover and others fall ill while agents are killed; how many were."""
    killed = 0
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        chosen = random.sample(halves, _KILLED)
        for half in chosen:
            half.want(sick=not half.sick)
        await asyncio.gather(*[_kill(half, _RACE_SECONDS) for half in chosen[:_SLOTS]])
        killed += _SLOTS
    for half in halves:
        half.want(sick=True)
    return killed
