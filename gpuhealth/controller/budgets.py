"""The QuarantineBudgets: their status, and what they have to count beside the agents' places.

Agents do not need it: they count for themselves where no status says a size, and the API server bounds the places. The
status spares them the counting and tells people how it stands.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import msgspec
import structlog

from gpuhealth.cluster.budget import Limit, limit_of
from gpuhealth.cluster.client import Client, Object
from gpuhealth.cluster.errors import ApiError, NotFoundError
from gpuhealth.cluster.kinds import BUDGETS
from gpuhealth.cluster.node import camel, written_time
from gpuhealth.cluster.report import merge_patch
from gpuhealth.cluster.selectors import matches
from gpuhealth.controller.facts import Budget, Node
from gpuhealth.controller.fleet import Fleet
from gpuhealth.controller.standins import give_back, stand_in
from gpuhealth.tasks import raise_if_cancelled

log = structlog.get_logger()

FAULT_LIMIT_REACHED = "FaultLimitReached"
"""Condition of a budget: nodes stay in service because as many as maxPerFault allows went out for the same fault."""
NAMES = 100
"""How many nodes a status names: it is for people, and an object has its limits."""
_PAUSE_SECONDS = 1.0  # a hundred nodes that come at once are one write
_RETRY_SECONDS = 5.0
_AT_ONCE = 500


class Standing(msgspec.Struct, frozen=True):
    """How it stands with a budget."""

    size: int
    limit: int
    used: int
    held: int
    unavailable: int = 0  # cordoned or not ready without our taint, where they count


class Budgets:
    """Keeps what is said of the budgets true."""

    def __init__(self, client: Client, fleet: Fleet, namespace: str) -> None:
        self.standings: dict[str, Standing] = {}
        self._client = client
        self._fleet = fleet
        self._namespace = namespace

    async def run(self) -> None:
        """Until cancelled."""
        await self._fleet.rounds(self._round, _PAUSE_SECONDS)

    async def _round(self) -> float | None:
        """Does what is to be done; seconds until it is tried again, if it could not be."""
        retry_in = None
        unreadable = self._fleet.budgets.unreadable
        for budget in list(self._fleet.budgets.items.values()):
            try:
                await self._keep(budget)
            except ApiError as error:  # one that cannot be kept must not keep the others from it
                raise_if_cancelled()
                log.warning("a budget could not be kept; it is tried again", budget=budget.key, error=str(error))
                retry_in = _RETRY_SECONDS
        try:
            for place in list(self._fleet.places.items.values()):
                if place.stands_for and place.budget not in self._fleet.budgets.items.keys() | unreadable:
                    await give_back(self._client, self._namespace, place)
        except ApiError as error:
            raise_if_cancelled()
            log.warning("a place could not be given back; it is tried again", error=str(error))
            retry_in = _RETRY_SECONDS
        for gone in self.standings.keys() - self._fleet.budgets.items.keys():
            del self.standings[gone]
        return retry_in

    async def _keep(self, budget: Budget) -> None:
        body = budget.body
        places = [place for place in self._fleet.places.items.values() if place.budget == budget.key and place.lasting]
        held = self._fleet.held.get(budget.key, set())
        selected = await self._selected(body)
        size, unavailable = len(selected), set[str]()
        if body["spec"].get("countUnavailable"):  # our own taint: such a node has a place of its own
            unavailable = {node.key for node in selected if (node.cordoned or not node.ready) and not node.tainted}
        await stand_in(self._client, self._namespace, budget, size, places, unavailable)
        holders = sorted({place.holder for place in places if not place.stands_for})
        limit = limit_of(body["spec"]["maxUnavailable"], size)
        standing = Standing(size, limit, len(places), len(held), len(unavailable))
        self.standings[budget.key] = standing
        status: Object = msgspec.to_builtins(standing)
        status["observedGeneration"] = body["metadata"]["generation"]
        status["heldNodes"], status["nodes"] = sorted(held)[:NAMES], holders[:NAMES]
        alike = {
            hold.code: count
            for hold, count in self._fleet.holds.items()
            if hold.budget == budget.key and hold.limit == Limit.PER_FAULT
        }
        status["conditions"] = [_fault_limit(alike, body, datetime.now(UTC))]
        if patch := merge_patch(body.get("status"), status):
            try:
                await self._client.patch(BUDGETS, budget.key, {"status": patch}, subresource="status")
            except NotFoundError:
                log.debug("a budget is gone", budget=budget.key)

    async def _selected(self, budget: Object) -> list[Node]:
        selector, selected = budget["spec"]["nodeSelector"], []
        for number, node in enumerate(list(self._fleet.nodes.items.values()), 1):
            if matches(selector, node.labels):
                selected.append(node)
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)  # a big fleet must not hold up what else the loop has to do
        return selected


def _fault_limit(alike: dict[str, int], budget: Object, now: datetime) -> Object:
    """The condition FaultLimitReached, given how many nodes maxPerFault holds by their finding's code."""
    known: Object = next(iter(budget.get("status", {}).get("conditions") or []), {})  # there is no other
    status = "True" if alike else "False"
    reason, message = "BelowLimit", "no node is held because too many failed alike"
    if alike:
        worst = max(alike, key=lambda code: alike[code])
        nodes = ", ".join(f"{code} on {count}" for code, count in sorted(alike.items()))
        reason = camel(worst)
        message = f"more nodes than maxPerFault allows failed alike: a suspect driver or check; held: {nodes}"
    since = known["lastTransitionTime"] if known.get("status") == status else written_time(now)
    generation = budget["metadata"]["generation"]
    return {
        "type": FAULT_LIMIT_REACHED,
        "status": status,
        "observedGeneration": generation,
        "lastTransitionTime": since,
        "reason": reason,
        "message": message,
    }
