"""Budget slots: how many nodes may be out of service by our action at once, bounded by the API server itself.

A slot of a QuarantineBudget is a Lease in our namespace. The names of a budget's slots are fixed: `<budget>.<k>` for
0 <= k < limit. A name exists once, so there are never more holders than names, despite crashes and races. A node takes
a slot by creating the Lease, at a random k first: one request when there is room, and no object that all nodes write.

A budget has up to three sets of slots:

    <budget>.<k>                 maxUnavailable: held while the node is out, deleted when it is back
    <budget>.window.<k>          maxPerWindow: how many nodes may go out within `window`
    <budget>.fault.<code>.<k>    maxPerFault: the same for one finding code

The slots of the last two expire after `window` and may then be taken over. They count what happened, so they are not
released when the node recovers. A node must get a slot in every set of every budget that selects it; a node that is
blocked releases what it took on the way. The smallest set comes first, and a node that was blocked looks at the set
that blocked it before it takes a slot in another: a driver that fails everywhere does not fill the slots that other
faults need. No node waits for a slot while it holds one, so no two nodes can wait for each other.

A percentage is of the number of nodes that the budget selects. It is rounded down, to one node at least unless it is
0 %: a PodDisruptionBudget rounds up, which in a small pool is a larger share than was allowed.

A lower limit does not bring back nodes that are out; no other node goes out before there is room again. For a budget
that was ever changed the slots are listed first, and those beyond the limit count (`SlotSet.open_names`). Only where a
percentage became less because its pool shrank may nodes stay out in addition to as many as are allowed now.

For a budget with `countUnavailable` the controller reserves slots for the nodes that others took out.

A node that is out holds a slot of maxUnavailable in every budget that selects it now. Budgets and labels change while
it is out: its agent checks when its labels change and about once a minute (`SlotHolder.check`), and the controller
reserves slots for nodes whose agent has not. Existing slots are never revoked: the node stays out in addition to those
that hold the slots, which the budget's status shows as `uncounted`. The bounds:

* One budget that does not change: never more nodes out than its limit, despite crashes and races, without a controller.
* A budget that is new, renamed, or selects other nodes: the same from its first moment. Until the controller has
  written in its status that every node that is out holds a slot (`is_counted`), a node that requests a slot first
  counts the nodes that are out, or hold a slot of any budget, and have none of this one (`node_counts`); as many names
  fewer are open. A node that took its slots before the budget existed lists the budgets again before its taint
  (`SlotHolder.acquire`), and so either holds a slot of the new one or was counted. Without a controller this is done
  for every slot.
* A node that gets other labels while it is out: where the controller has counted the budget, another node may go out in
  the moment until the agent (by its watch) or the controller (within seconds) has taken the slot. A node whose agent
  is gone, in a cluster whose controller is gone too, is not counted in a budget that was counted before.
* A manual quarantine, and a surplus that a lower limit or other labels leave, exceed the limit; both count against it.
"""
