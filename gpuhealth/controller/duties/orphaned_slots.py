"""Places of budgets that nobody will give back: those of Nodes that were deleted, and those that an agent has left.

An agent gives its place back itself, also one that it finds after a restart. What is left is the place of an agent
that died between taking it and the taint, and has not come back. It is freed when for long enough, by our own clock,
the agent has been silent, the Lease unchanged and the Node without a mark of ours. An agent that was frozen at that
very point and goes on after all must not taint without a place, so the Node is written to first (its condition, which
is due anyway): the taint is a patch under the Node's resourceVersion and fails then, and before its next try the agent
writes its Lease anew, which fails if it is gone, and otherwise makes our deletion fail.
"""

from __future__ import annotations

import contextlib
import time

import structlog

from gpuhealth.controller.duty import Duty, DutyContext
from gpuhealth.controller.unknown_condition import set_condition_unknown
from gpuhealth.fleet.views import Place
from gpuhealth.kube.errors import ApiError, NotFoundError
from gpuhealth.kube.event_recorder import node_subject
from gpuhealth.kube.kinds import NODES
from gpuhealth.kube.objects import read
from gpuhealth.quarantine.marks import Object, has_taint, override, record
from gpuhealth.quarantine.slots.lease import SlotStore
from gpuhealth.runtime.supervisor import raise_if_cancelled

log = structlog.get_logger()


class OrphanedSlotCollector(Duty):
    """Frees places for which nobody is there any more."""

    name = "orphaned_slots"

    def __init__(self, context: DutyContext) -> None:
        super().__init__(context)
        settings = context.settings
        self._slots = SlotStore(context.client, context.fleet.namespace)
        # Freeing such a slot marks the Node, which mode observe does not.
        self._patience = None if settings.mode == "observe" else settings.controller.orphaned_slot_timeout
        self._seen: dict[str, tuple[str, float]] = {}  # by place, its version and since when on our steady clock

    async def run(self) -> None:
        """Until cancelled."""
        await self._fleet.rounds(self._round, self._timing.round_pause)

    async def _round(self) -> float | None:
        """Frees what is to be freed; seconds until something else may be. Places that run out need nobody."""
        due = []
        places = [place for place in self._fleet.places.items.values() if place.lasting and not place.stands_for]
        places = [place for place in places if place.holder]  # of one that names nobody nobody knows whether it is left
        before, self._seen = self._seen, {}
        for place in places:
            version, since = before.get(place.key, ("", 0.0))
            self._seen[place.key] = (place.version, since if version == place.version else time.monotonic())
        for place in places:
            try:
                due_in = await self._free_if_left(place)
            except ApiError as error:  # one that cannot be freed must not keep the others from it
                raise_if_cancelled()
                log.warning(
                    "orphaned slot release failed", slot=place.key, error=str(error), retry_in=self._timing.retry
                )
                due_in = self._timing.retry
            due += [] if due_in is None else [due_in]
        return min(due, default=None)

    async def _free_if_left(self, place: Place) -> float | None:
        """Frees a place that nobody will give back; seconds until it may be such."""
        if place.holder not in self._fleet.nodes.items:
            if await self._is_gone(place.holder):
                await self._free(place, "its node is deleted")
        elif (due_in := self._left_in(place)) is not None:
            if due_in > 0:
                return due_in
            if await self._is_left(place.holder):
                why = "its agent took it, did not take the node out of service, and is gone"
                await self._free(place, why)
                await self._recorder.post(
                    node_subject(place.holder), "SlotFreed", f"slot {place.key} is free again: {why}"
                )
        return None

    async def _is_gone(self, node: str) -> bool:
        # Two watches are not in step: the Lease of a Node that has just come may be known before the Node is.
        try:
            await self._client.get(NODES, node)
        except NotFoundError:
            return True
        return False

    def _left_in(self, place: Place) -> float | None:
        """Seconds until the place counts as left; None as long as something speaks against it."""
        node, silent_since = self._fleet.nodes.items[place.holder], self._fleet.silent.get(place.holder)
        if self._patience is None or silent_since is None or node.tainted or node.overridden or not node.readable:
            return None
        return max(silent_since, self._seen[place.key][1]) + self._patience - time.monotonic()

    async def _is_left(self, name: str) -> bool:
        """Whether the Node has no mark of ours, and cannot get one from what an agent has read before."""
        with contextlib.suppress(NotFoundError):
            node = await self._client.get(NODES, name)
            if not read(NODES.kind, node, _unmarked):
                return False
            message = "no agent is ready on this node: nobody looks at its GPUs"
            written = await set_condition_unknown(self._client, node, message, self._clock())
            is_new = written["metadata"]["resourceVersion"] != node["metadata"]["resourceVersion"]
            return is_new and read(NODES.kind, written, _unmarked)
        return False

    async def _free(self, place: Place, why: str) -> None:
        if await self._slots.free(place.key, uid=place.uid, version=place.version):  # else somebody else has it
            log.info("orphaned slot released", slot=place.key, node=place.holder, reason=why)


def _unmarked(node: Object) -> bool:
    return record(node) is None and not has_taint(node) and override(node) is None
