"""Places that the controller takes for nodes that others took out.

Where a budget says `countUnavailable`, a place is taken for each node that people have cordoned or that is not ready,
while there is a free one: the API server then bounds the agents by what is left. Nothing is taken from anybody.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime

import structlog

from gpuhealth.api.names import RESERVED_SLOT_PREFIX
from gpuhealth.fleet.views import Budget, Place
from gpuhealth.kube.client import Client
from gpuhealth.kube.errors import AlreadyExistsError, ConflictError, NotFoundError
from gpuhealth.kube.kinds import LEASES
from gpuhealth.quarantine.slots import Limit, open_names, sets_of, taken_place

log = structlog.get_logger()


async def stand_in(
    client: Client, namespace: str, budget: Budget, size: int, places: Collection[Place], unavailable: Collection[str]
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
            await give_back(client, namespace, place)
    (of_budget,) = [each for each in sets_of(budget.body, size, "") if each.kind is Limit.UNAVAILABLE]
    held = {place.key for place in places}
    free = (name for name in open_names(of_budget, held) if name not in held)
    for node, name in zip(sorted(wanted - standing), free, strict=False):
        lease = taken_place(of_budget, name, f"{RESERVED_SLOT_PREFIX}{node}", datetime.now(UTC))
        try:
            await client.create(LEASES, lease, namespace)
        except AlreadyExistsError:  # an agent was quicker; the next look finds another
            continue
        log.info("slot reserved for unavailable node", node=node, slot=name)


async def give_back(client: Client, namespace: str, place: Place) -> None:
    """Free a place that the controller has taken."""
    try:
        await client.delete(LEASES, place.key, namespace, uid=place.uid, resource_version=place.version)
    except (ConflictError, NotFoundError):
        return
    log.info("reserved slot released", node=place.stands_for, slot=place.key)
