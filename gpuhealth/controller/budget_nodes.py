"""The nodes and slots of one QuarantineBudget, as the watches show them."""

from __future__ import annotations

import asyncio

import msgspec

from gpuhealth.fleet.fleet import Fleet
from gpuhealth.fleet.views import BudgetView, SlotView
from gpuhealth.quarantine.slots.budget import selects

_BATCH = 500  # nodes that are checked before other tasks get a turn


class BudgetNodes(msgspec.Struct, frozen=True, kw_only=True):
    """The nodes and slots of one budget; nodes are given by name."""

    size: int  # nodes that it selects
    slots: tuple[SlotView, ...]  # those of maxUnavailable that are taken
    unavailable: frozenset[str]  # cordoned or not ready by others, where countUnavailable is set
    without_slot: frozenset[str]  # out of service by our action, or about to be, and not the holder of a slot

    @property
    def reserved_for(self) -> set[str]:
        """The nodes for which the controller has reserved a slot."""
        return {slot.reserved_for for slot in self.slots if slot.reserved_for}

    @property
    def uncounted(self) -> frozenset[str]:
        """The nodes of `without_slot` for which no slot is reserved either."""
        return self.without_slot - self.reserved_for


async def nodes_of(budget: BudgetView, fleet: Fleet) -> BudgetNodes:
    """Find the nodes and slots of a budget. Raises BudgetError where its selector cannot be read."""
    selected = []
    for number, node in enumerate(list(fleet.nodes.items.values()), 1):
        if selects(budget.body, node.labels):
            selected.append(node)
        if number % _BATCH == 0:
            await asyncio.sleep(0)  # a large fleet must not stall the event loop
    lasting = [slot for slot in fleet.slots.items.values() if slot.lasting]
    slots = tuple(slot for slot in lasting if slot.budget == budget.key)
    unavailable = set()
    if budget.count_unavailable:  # a node that we took out has a slot of its own
        unavailable = {node.key for node in selected if (node.cordoned or not node.ready) and not node.marked}
    # A node that holds a slot of any budget may go out of service, and needs one of this budget, too.
    going = {slot.holder for slot in lasting if not slot.reserved_for}
    holders = {slot.holder for slot in slots}
    without_slot = {node.key for node in selected if node.out or node.key in going} - holders
    return BudgetNodes(
        size=len(selected),
        slots=slots,
        unavailable=frozenset(unavailable),
        without_slot=frozenset(without_slot),
    )
