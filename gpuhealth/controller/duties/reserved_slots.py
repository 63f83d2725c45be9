"""Reserves slots of budgets in the name of nodes that hold none themselves.

These are nodes that others took out of service (cordoned, or not ready), if a budget has `countUnavailable`; and nodes
that are out by our action and whose agent has not taken a slot of a new or changed budget. The API server then bounds
the agents by the slots that are left. Slots that others hold are never revoked.
"""

from __future__ import annotations

import time

import structlog

from gpuhealth.controller.budget_nodes import BudgetNodes, nodes_of
from gpuhealth.controller.duty import Duty, DutyContext
from gpuhealth.fleet.views import BudgetView, SlotView
from gpuhealth.kube.errors import ApiError
from gpuhealth.kube.kinds import BUDGETS
from gpuhealth.quarantine.slots.budget import BudgetError, slot_sets
from gpuhealth.quarantine.slots.lease import SlotStore
from gpuhealth.runtime.supervisor import raise_if_cancelled

log = structlog.get_logger()


class SlotReserver(Duty):
    """Reserves and releases slots as nodes become unavailable and come back."""

    name = "reserved_slots"

    def __init__(self, context: DutyContext) -> None:
        super().__init__(context)
        self._slots = SlotStore(context.client, context.fleet.namespace)
        self._uncounted_since: dict[str, dict[str, float]] = {}  # by budget and node, on the monotonic clock

    async def run(self) -> None:
        """Reserve and release after each change in the fleet, until cancelled."""
        await self._fleet.repeat_on_change(self._round, self._timing.round_pause)

    async def _round(self) -> float | None:
        """Bring the reserved slots of every budget up to date; seconds until that is due again without any change."""
        due = []
        budgets = self._fleet.budgets.items
        for budget in list(budgets.values()):
            try:
                due.append(await self._reserve(budget))
            except ApiError as error:  # one budget must not delay the others
                raise_if_cancelled()
                retry = self._timing.retry
                log.warning("slot reservation failed", budget=budget.key, error=str(error), retry_in=retry)
                due.append(retry)
            except (BudgetError, KeyError, TypeError, ValueError, AttributeError) as error:
                self._client.unreadable.note(BUDGETS, budget.body, f"{error!r}; for agents it allows nothing")
        for gone in self._uncounted_since.keys() - budgets.keys():
            del self._uncounted_since[gone]
        try:
            await self._release_slots_of_deleted_budgets()
        except ApiError as error:
            raise_if_cancelled()
            log.warning("slot release failed", error=str(error), retry_in=self._timing.retry)
            due.append(self._timing.retry)
        return min((seconds for seconds in due if seconds is not None), default=None)

    async def _release_slots_of_deleted_budgets(self) -> None:
        budgets = self._fleet.budgets
        for slot in list(self._fleet.slots.items.values()):
            if slot.reserved_for and slot.budget not in budgets.items.keys() | budgets.unreadable:
                await self._release(slot)

    async def _reserve(self, budget: BudgetView) -> float | None:
        """Reserve and release slots of one budget; seconds until the grace of the next node is over."""
        nodes = await nodes_of(budget, self._fleet)
        late, due_in = self._late(budget, nodes)
        out = late | (nodes.without_slot & nodes.reserved_for)
        wanted = (nodes.unavailable | out) - {slot.holder for slot in nodes.slots}
        kept: set[str] = set()
        for slot in nodes.slots:
            if not slot.reserved_for:
                continue
            if slot.reserved_for in wanted - kept:
                kept.add(slot.reserved_for)
            else:
                await self._release(slot)
        unavailable = slot_sets(budget.body, nodes.size, "")[0]
        free = unavailable.free_names(slot.key for slot in nodes.slots)
        for node, name in zip(sorted(wanted - kept), free, strict=False):
            if await self._slots.reserve(unavailable, name, node):  # else an agent was faster; the next round retries
                log.info("slot reserved for unavailable node", node=node, slot=name)
        return due_in

    def _late(self, budget: BudgetView, nodes: BudgetNodes) -> tuple[set[str], float | None]:
        """The nodes that have had time to take a slot themselves, and seconds until the next node has."""
        now, before, grace = time.monotonic(), self._uncounted_since.get(budget.key, {}), self._timing.slot_grace
        since = {node: before.get(node, now) for node in nodes.uncounted}
        self._uncounted_since[budget.key] = since
        due = {node: began + grace - now for node, began in since.items()}
        return (
            {node for node, seconds in due.items() if seconds <= 0},
            min((seconds for seconds in due.values() if seconds > 0), default=None),
        )

    async def _release(self, slot: SlotView) -> None:
        if await self._slots.free(slot.key, uid=slot.uid, version=slot.version):
            log.info("reserved slot released", node=slot.reserved_for, slot=slot.key)
