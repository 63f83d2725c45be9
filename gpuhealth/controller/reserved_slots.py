"""Places that the controller takes for nodes that others took out.

Where a budget says `countUnavailable`, a place is taken for each node that people have cordoned or that is not ready,
while there is a free one: the API server then bounds the agents by what is left. Nothing is taken from anybody.
"""

from __future__ import annotations

from collections.abc import Collection

import structlog

from gpuhealth.fleet.views import Budget, Place
from gpuhealth.quarantine.slots.budget import slot_sets
from gpuhealth.quarantine.slots.lease import SlotStore

log = structlog.get_logger()


async def stand_in(
    slots: SlotStore, budget: Budget, size: int, places: Collection[Place], unavailable: Collection[str]
) -> None:
    """Take and give back what is needed. `places`: the lasting ones of the budget; `unavailable`: nodes that count."""
    wanted = set(unavailable) - {place.holder for place in places}
    standing: set[str] = set()
    for place in places:
        if not place.stands_for:
            continue
        if place.stands_for in wanted - standing:
            standing.add(place.stands_for)
        else:
            await give_back(slots, place)
    of_budget = slot_sets(budget.body, size, "")[0]
    free = of_budget.free_names(place.key for place in places)
    for node, name in zip(sorted(wanted - standing), free, strict=False):
        if await slots.reserve(of_budget, name, node):  # else an agent was quicker; the next look finds another
            log.info("slot reserved for unavailable node", node=node, slot=name)


async def give_back(slots: SlotStore, place: Place) -> None:
    """Free a place that the controller has taken."""
    if await slots.free(place.key, uid=place.uid, version=place.version):
        log.info("reserved slot released", node=place.stands_for, slot=place.key)
