"""The QuarantineBudgets: their status, and what they have to count beside the agents' places.

Agents do not need it: they count for themselves where no status says a size, and the API server bounds the places. The
status spares them the counting and tells people how it stands.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from datetime import UTC, datetime

import structlog

from gpuhealth.api import resource
from gpuhealth.api.budget import BudgetCondition, BudgetStatus
from gpuhealth.api.names import FAULT_LIMIT_REACHED
from gpuhealth.controller.reserved_slots import give_back, stand_in
from gpuhealth.fleet.fleet import Fleet
from gpuhealth.fleet.views import Budget, Node, Place
from gpuhealth.kube.client import Client, Object
from gpuhealth.kube.errors import ApiError, NotFoundError
from gpuhealth.kube.kinds import BUDGETS, LEASES
from gpuhealth.quarantine.marks import camel, written_time
from gpuhealth.quarantine.report import merge_patch
from gpuhealth.quarantine.slots import BudgetError, Limit, selects, sets_of
from gpuhealth.runtime.supervisor import raise_if_cancelled

log = structlog.get_logger()

NAMES = 100
"""How many nodes a status names: it is for people, and an object has its limits."""
SETTLED_SECONDS = 30.0
"""For which a budget has been as it is before it is said to be counted: until then our watches, and agents that were
about to take their nodes out, may not know of it. An agent has 20 s for its slots and takes its node out at once."""
GRACE_SECONDS = 5.0
"""In which a node that is out, or about to be, may take its slot itself before one is taken in its name."""
_PAUSE_SECONDS = 1.0  # a hundred nodes that come at once are one write
_RETRY_SECONDS = 5.0
_AT_ONCE = 500


class Budgets:
    """Keeps what is said of the budgets true."""

    def __init__(self, client: Client, fleet: Fleet, namespace: str) -> None:
        self.standings: dict[str, BudgetStatus] = {}  # as last computed, written or not
        self._client = client
        self._fleet = fleet
        self._namespace = namespace
        self._as_it_is: dict[str, tuple[tuple[str, int], float]] = {}  # by budget: uid and generation, and since when
        self._lacking: dict[str, dict[str, float]] = {}  # by budget: nodes that are out without a slot, and since when

    async def run(self) -> None:
        """Until cancelled."""
        await self._fleet.rounds(self._round, _PAUSE_SECONDS)

    async def _round(self) -> float | None:
        """Does what is to be done; seconds until it is tried again, if it could not be."""
        due = []
        unreadable = self._fleet.budgets.unreadable
        for budget in list(self._fleet.budgets.items.values()):
            try:
                due.append(await self._keep(budget))
            except ApiError as error:  # one that cannot be kept must not keep the others from it
                raise_if_cancelled()
                log.warning("budget update failed", budget=budget.key, error=str(error), retry_in=_RETRY_SECONDS)
                due.append(_RETRY_SECONDS)
            except (BudgetError, KeyError, TypeError, ValueError, AttributeError) as error:
                self._client.unreadable.note(BUDGETS, budget.body, f"{error!r}; agents take it to allow nothing")
        for place in list(self._fleet.places.items.values()):
            if place.fault:
                lease = {"metadata": {"name": place.key, "resourceVersion": place.version}}
                self._client.unreadable.note(LEASES, lease, f"{place.fault}; the slot counts as taken")
        try:
            for place in list(self._fleet.places.items.values()):
                if place.stands_for and place.budget not in self._fleet.budgets.items.keys() | unreadable:
                    await give_back(self._client, self._namespace, place)
        except ApiError as error:
            raise_if_cancelled()
            log.warning("slot release failed", error=str(error), retry_in=_RETRY_SECONDS)
            due.append(_RETRY_SECONDS)
        for known in (self.standings, self._as_it_is, self._lacking):
            for gone in known.keys() - self._fleet.budgets.items.keys():
                del known[gone]
        return min((seconds for seconds in due if seconds is not None), default=None)

    async def _keep(self, budget: Budget) -> float | None:
        """Keeps one; seconds until something about it is due, without any change."""
        body = budget.body
        places = [place for place in self._fleet.places.items.values() if place.budget == budget.key and place.lasting]
        held = self._fleet.held.get(budget.key, set())
        selected = await self._selected(body)
        size, unavailable = len(selected), set[str]()
        if budget.count_unavailable:  # our own taint: such a node has a place of its own
            unavailable = {node.key for node in selected if (node.cordoned or not node.ready) and not node.tainted}
        limit = sets_of(body, size, "")[0].limit
        due, late, lacking = self._without_slot(budget, selected, places)
        await stand_in(self._client, self._namespace, budget, size, places, unavailable | late)
        holders = sorted({place.holder for place in places if not place.stands_for})
        settles_in = self._settles_in(budget)
        due += [settles_in] if settles_in > 0 else []
        alike = {
            hold.code: count
            for hold, count in self._fleet.holds.items()
            if hold.budget == budget.key and hold.limit == Limit.PER_FAULT
        }
        status = BudgetStatus(
            observed_generation=body["metadata"]["generation"],
            size=size,
            limit=limit,
            used=len(places),
            unavailable=len(unavailable),
            uncounted=len(lacking),
            counted=settles_in <= 0 and not lacking,
            blocked=len(held),
            blocked_nodes=tuple(sorted(held)[:NAMES]),
            conditions=(_fault_limit(alike, budget, datetime.now(UTC)),),
            nodes=tuple(holders[:NAMES]),
        )
        self.standings[budget.key] = status
        if patch := merge_patch(body.get("status"), resource.body(status)):
            try:
                await self._client.patch(BUDGETS, budget.key, {"status": patch}, subresource="status")
            except NotFoundError:
                log.debug("budget deleted", budget=budget.key)
        return min(due, default=None)

    def _settles_in(self, budget: Budget) -> float:
        """Seconds until it has been as it is for long enough; not more than 0 if it has."""
        metadata, now = budget.body["metadata"], time.monotonic()
        version = (metadata["uid"], metadata["generation"])
        if self._as_it_is.get(budget.key, (None,))[0] != version:
            self._as_it_is[budget.key] = version, now
        return self._as_it_is[budget.key][1] + SETTLED_SECONDS - now

    def _without_slot(
        self, budget: Budget, selected: Collection[Node], places: Collection[Place]
    ) -> tuple[list[float], set[str], set[str]]:
        """Of the nodes that are out, or hold a slot of any budget and may go out, those that hold none of this one.

        In how many seconds the next of them is late; those for which a slot is or has to be taken; those without one.
        """
        own = {place.holder for place in places}
        standing = {place.stands_for for place in places}
        going = {place.holder for place in self._fleet.places.items.values() if place.lasting and not place.stands_for}
        without = {node.key for node in selected if node.out or node.key in going} - own
        now, before = time.monotonic(), self._lacking.get(budget.key, {})
        since = {node: before.get(node, now) for node in without - standing}
        self._lacking[budget.key] = since
        late = {node for node, began in since.items() if now - began >= GRACE_SECONDS}
        due = [began + GRACE_SECONDS - now for node, began in since.items() if node not in late]
        return due, late | (without & standing), set(since)

    async def _selected(self, budget: Object) -> list[Node]:
        selected = []
        for number, node in enumerate(list(self._fleet.nodes.items.values()), 1):
            if selects(budget, node.labels):
                selected.append(node)
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)  # a big fleet must not hold up what else the loop has to do
        return selected


def _fault_limit(alike: dict[str, int], budget: Budget, now: datetime) -> BudgetCondition:
    """The condition FaultLimitReached, given how many nodes maxPerFault blocks by their finding's code."""
    status = "True" if alike else "False"
    reason, message = "BelowLimit", "no node is blocked because too many failed alike"
    if alike:
        worst = max(alike, key=lambda code: alike[code])
        nodes = ", ".join(f"{code} on {count}" for code, count in sorted(alike.items()))
        reason = camel(worst)
        message = f"more nodes than maxPerFault allows failed alike: a suspect driver or check; blocked: {nodes}"
    known = next(iter(budget.conditions), None)  # there is no other
    since = written_time(now)
    if known is not None and known.status == status:
        since = known.last_transition_time
    return BudgetCondition(
        type=FAULT_LIMIT_REACHED,
        status=status,
        observed_generation=budget.body["metadata"]["generation"],
        last_transition_time=since,
        reason=reason,
        message=message,
    )
