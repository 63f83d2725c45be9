"""Counts of the nodes of a budget that no controller has counted: how many it selects, and which are out without a
slot."""

from __future__ import annotations

from collections.abc import Sequence

from gpuhealth.api.names import STATE_LABEL
from gpuhealth.kube.client import Client, Object
from gpuhealth.kube.kinds import NODES
from gpuhealth.kube.selectors import query_text
from gpuhealth.quarantine.marks import may_be_out
from gpuhealth.quarantine.slots.lease import Slot
from gpuhealth.quarantine.state import IN_SERVICE

_MAY_BE_OUT = f"{STATE_LABEL} notin ({','.join(IN_SERVICE)})"
"""Selects the nodes that may be out, few of a fleet: the label is written in the same request as taint and cordon."""


async def size(client: Client, budget: Object) -> int:
    """How many nodes the budget selects."""
    pages = client.pages(NODES, labels=query_text(budget["spec"]["nodeSelector"]), metadata_only=True)
    return sum([len(page.items) async for page in pages])


async def out(client: Client, budget: Object) -> set[str]:
    """The nodes that the budget selects and that are out by our action, or may be."""
    selector = ",".join(filter(None, [query_text(budget["spec"]["nodeSelector"]), _MAY_BE_OUT]))
    return {
        node["metadata"]["name"]
        async for page in client.pages(NODES, labels=selector)
        for node in page.items
        if may_be_out(node)
    }


async def uncounted(client: Client, budget: Object, nodes: set[str], slots: Sequence[Slot]) -> set[str]:
    """Of the nodes that are out (`nodes`), or that the budget selects and that may go out, those without a slot of it.

    `slots` are those of all budgets that are held until they are released, listed at the same time as the nodes: a node
    that is not out and has none of any budget by then lists the budgets, this one included, before it goes out.
    """
    name = budget["metadata"]["name"]
    counted = {slot.node for slot in slots if slot.prefix == name}
    going = {slot.node for slot in slots} - counted
    if going - nodes:
        pages = client.pages(NODES, labels=query_text(budget["spec"]["nodeSelector"]), metadata_only=True)
        nodes = nodes | going & {node["metadata"]["name"] async for page in pages for node in page.items}
    return nodes - counted
