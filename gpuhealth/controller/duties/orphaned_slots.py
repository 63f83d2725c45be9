"""Frees budget slots whose holder will never release them: of deleted Nodes, and of agents that are gone.

An agent releases its slot itself, also one that it finds after a restart. What is left is the slot of an agent that
died between taking it and writing the taint, and has not come back. It is freed when, for long enough by our own clock,
the agent has been silent, the Lease unchanged and the Node without a mark of ours. An agent that was frozen at that
very point, and continues after all, must not taint without a slot. So the Node is written to first (its condition,
which is due anyway): the taint is a patch under the Node's resourceVersion and fails then, and before its next attempt
the agent renews its Lease, which fails if that is gone, and otherwise makes our deletion fail.
"""

from __future__ import annotations

import contextlib
import time

import structlog

from gpuhealth.controller.duty import Duty, DutyContext
from gpuhealth.controller.unknown_condition import set_condition_unknown
from gpuhealth.fleet.views import SlotView
from gpuhealth.kube.client import Object
from gpuhealth.kube.errors import ApiError, NotFoundError
from gpuhealth.kube.event_recorder import node_subject
from gpuhealth.kube.kinds import NODES
from gpuhealth.kube.objects import read
from gpuhealth.quarantine.marks import has_taint, may_be_out, override, record
from gpuhealth.quarantine.slots.lease import SlotStore
from gpuhealth.runtime.supervisor import raise_if_cancelled

log = structlog.get_logger()


class OrphanedSlotCollector(Duty):
    """Frees orphaned slots. Slots that expire by themselves are left alone."""

    name = "orphaned_slots"

    def __init__(self, context: DutyContext) -> None:
        super().__init__(context)
        settings = context.settings
        self._slots = SlotStore(context.client, context.fleet.namespace)
        # Freeing the slot of an agent marks its Node. In mode observe only deleted Nodes lose their slots.
        self._timeout = None if settings.mode == "observe" else settings.controller.orphaned_slot_timeout
        self._seen: dict[str, tuple[str, float]] = {}  # by slot: version, and since when on the monotonic clock

    async def run(self) -> None:
        """Free slots after each change in the fleet and as timeouts pass, until cancelled."""
        await self._fleet.repeat_on_change(self._round, self._timing.round_pause)

    async def _round(self) -> float | None:
        """Free the slots that are orphaned; seconds until another one may be."""
        due = []
        slots = [slot for slot in self._fleet.slots.items.values() if slot.lasting and not slot.reserved_for]
        slots = [slot for slot in slots if slot.holder]  # without a holder, a slot cannot be shown to be orphaned
        before, self._seen = self._seen, {}
        for slot in slots:
            version, since = before.get(slot.key, ("", 0.0))
            self._seen[slot.key] = (slot.version, since if version == slot.version else time.monotonic())
        for slot in slots:
            try:
                due_in = await self._free_if_orphaned(slot)
            except ApiError as error:  # one slot that cannot be freed must not delay the others
                raise_if_cancelled()
                due_in = self._timing.retry
                log.warning("orphaned slot release failed", slot=slot.key, error=str(error), retry_in=due_in)
            if due_in is not None:
                due.append(due_in)
        return min(due, default=None)

    async def _free_if_orphaned(self, slot: SlotView) -> float | None:
        """Free a slot if it is orphaned; seconds until it may be. Raises ApiError."""
        if slot.holder not in self._fleet.nodes.items:
            if await self._is_deleted(slot.holder):
                await self._free(slot, "its node is deleted")
        elif (due_in := self._orphaned_in(slot)) is not None:
            if due_in > 0:
                return due_in
            if await self._is_unmarked(slot.holder):
                reason = "its agent took it, did not take the node out of service, and is gone"
                await self._free(slot, reason)
                message = f"slot {slot.key} is free again: {reason}"
                await self._recorder.post(node_subject(slot.holder), "SlotFreed", message)
        return None

    async def _is_deleted(self, node: str) -> bool:
        # The two watches are not in step: the Lease of a new Node may be shown before the Node.
        try:
            await self._client.get(NODES, node)
        except NotFoundError:
            return True
        return False

    def _orphaned_in(self, slot: SlotView) -> float | None:
        """Seconds until the slot counts as orphaned; None while there is evidence that it is in use."""
        node, silent_since = self._fleet.nodes.items[slot.holder], self._fleet.silent_nodes.get(slot.holder)
        if self._timeout is None or silent_since is None or node.marked or node.overridden or not node.readable:
            return None
        return max(silent_since, self._seen[slot.key][1]) + self._timeout - time.monotonic()

    async def _is_unmarked(self, name: str) -> bool:
        """Whether the Node has no mark of ours, and cannot get one by a patch based on what an agent has read before.

        Writes the Node's condition to ensure the latter.
        """
        with contextlib.suppress(NotFoundError):
            node = await self._client.get(NODES, name)
            if not read(NODES.kind, node, _has_no_mark):
                return False
            message = "no agent is ready on this node: its GPUs are not being checked"
            written = await set_condition_unknown(self._client, node, message, self._clock())
            is_new = written["metadata"]["resourceVersion"] != node["metadata"]["resourceVersion"]
            return is_new and read(NODES.kind, written, _has_no_mark)
        return False

    async def _free(self, slot: SlotView, reason: str) -> None:
        if await self._slots.free(slot.key, uid=slot.uid, version=slot.version):  # else it has changed
            log.info("orphaned slot released", slot=slot.key, node=slot.holder, reason=reason)


def _has_no_mark(node: Object) -> bool:
    return record(node) is None and not has_taint(node) and not may_be_out(node) and override(node) is None
