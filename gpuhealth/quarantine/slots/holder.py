"""The budget slots of one node: taken before it goes out of service, kept while it is out, released when it is back."""

from __future__ import annotations

import asyncio
import enum
import random
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import TypeAlias

import msgspec

from gpuhealth.api.names import BUDGET_LABEL, SLOT_NODE_LABEL
from gpuhealth.kube.client import Client, Object
from gpuhealth.kube.errors import AlreadyExistsError, ConflictError, NotFoundError
from gpuhealth.kube.kinds import BUDGETS
from gpuhealth.quarantine.slots import node_counts
from gpuhealth.quarantine.slots.budget import (
    BudgetError,
    Limit,
    SlotSet,
    counted_size,
    has_percentage,
    is_counted,
    label_value,
    selects,
    slot_sets,
)
from gpuhealth.quarantine.slots.lease import Slot, SlotStore, selector

MAX_TRIES = 4  # at slots that were free in the list and that others took first; and at budgets that change meanwhile
MAX_BLIND_TRIES = 6  # before the slots are listed: the more there are, the more expensive is the list
SLOTS_PER_BLIND_TRY = 100

UNREADABLE, NO_BUDGET, ERROR = "unreadable", "no_budget", "error"
"""What blocks a node where no limit of a budget does: the budget cannot be read, none selects the node, or no slot can
be requested."""


class Admitted(msgspec.Struct, frozen=True):
    """The node may be taken out of service."""

    slots: tuple[str, ...]  # that it holds
    taken: tuple[str, ...]  # just now; the others were held already


class Blocked(msgspec.Struct, frozen=True):
    """The node stays in service: it gets no slot."""

    code: str  # of the finding that requires the quarantine, or MANUAL
    budget: str  # empty where no budget's limit blocks it
    limit: str  # a Limit; or UNREADABLE, NO_BUDGET, ERROR
    reason: str


AcquireResult: TypeAlias = Admitted | Blocked


class SlotCheck(msgspec.Struct, frozen=True):
    """Changes made by a check of the slots of a node that is out."""

    taken: tuple[str, ...] = ()
    released: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()  # why it holds no slot, for each budget in which it holds none


class Knowledge(enum.Enum):
    """How much is known of the slots that the node holds."""

    UNKNOWN = "unknown"  # never listed
    STALE = "stale"  # a response was lost, or another client may have changed the Leases
    CURRENT = "current"


class _FullError(Exception):
    """A budget has no slot for a node that is out already."""


class SlotHolder:
    """The slots of one node. Every method raises ApiError where the API server refuses or is away."""

    def __init__(
        self,
        client: Client,
        namespace: str,
        node: str,
        *,
        now: Callable[[], datetime] | None = None,
        choose: random.Random | None = None,
    ) -> None:
        """`now` is the API server's time: a node whose clock is off must not take over a slot that has not expired."""
        self._client = client
        self._store = SlotStore(client, namespace)
        self._node = node
        self._now = now or client.server_time
        self._choose = choose or random.Random()  # noqa: S311 - no secret
        self._slots: dict[str, Slot] = {}  # by name
        self._knowledge = Knowledge.UNKNOWN
        self._full = ""  # prefix of the set that had no slot for us

    @property
    def known(self) -> tuple[str, ...]:
        """The slots that the node is known to hold; none where that has to be asked first."""
        return tuple(sorted(self._slots)) if self._knowledge is Knowledge.CURRENT else ()

    async def recall(self) -> tuple[str, ...]:
        """The slots that this node holds; listed after a restart or a lost response."""
        if self._knowledge is not Knowledge.CURRENT:
            # A Node's name may be longer than a label's value: the label finds, the holder decides.
            found = await self._store.list_slots(selector({SLOT_NODE_LABEL: label_value(self._node)}))
            self._slots = {slot.name: slot for slot in found if slot.holder == self._node}
            self._knowledge = Knowledge.CURRENT
        return tuple(sorted(self._slots))

    async def acquire(self, labels: dict[str, str], code: str) -> AcquireResult:
        """Take a slot in every set of every budget that selects these labels, or none at all."""
        await self.recall()
        budgets = await self._budgets(labels)
        new: list[str] = []
        result: AcquireResult
        try:
            for _ in range(MAX_TRIES):
                result = await self._acquire(budgets, code, new)
                if isinstance(result, Blocked):
                    break
                # A budget created after the list may not have been counted with our slots (see `slots`).
                before, budgets = budgets, await self._budgets(labels)
                if _versions(before) == _versions(budgets):
                    break
            else:
                result = Blocked(code, "", NO_BUDGET, "the budgets that select this node keep changing")
            if isinstance(result, Blocked):
                await self._release(new)
        except BaseException:
            self._knowledge = Knowledge.STALE  # slots already taken are found again, and used or released
            raise
        return result

    async def _acquire(self, budgets: Sequence[Object], code: str, new: list[str]) -> AcquireResult:
        """Take a slot in every set of these budgets. Slots taken are added to `new`, even if some are not available."""
        if not budgets:
            return Blocked(code, "", NO_BUDGET, "no QuarantineBudget selects this node")
        sets: list[SlotSet] = []
        for budget in budgets:
            try:
                sets += slot_sets(budget, await self._size(budget), code)
            except BudgetError as error:
                self._client.unreadable.note(BUDGETS, budget, str(error))
                name = budget["metadata"]["name"]
                return Blocked(code, name, UNREADABLE, f"budget {name} cannot be read and allows nothing: {error}")
        uncounted = await self._uncounted([budget for budget in budgets if not is_counted(budget)])
        sets = [self._with_uncounted(slot_set, uncounted) for slot_set in sets]
        sets.sort(key=lambda slot_set: (slot_set.prefix != self._full, slot_set.limit, slot_set.prefix))
        for slot_set in sets:
            if (known := self._slot_in(slot_set)) is not None and (known in new or await self._renew(known)):
                continue
            if (name := await self._take(slot_set)) is None:
                self._full = slot_set.prefix
                return Blocked(code, slot_set.budget, slot_set.kind, slot_set.full_message)
            new.append(name)
        self._full = ""
        slots = [name for slot_set in sets if (name := self._slot_in(slot_set))]
        return Admitted(tuple(sorted(slots)), tuple(new))

    async def check(self, labels: dict[str, str]) -> SlotCheck:
        """For a node that is out: hold a slot of maxUnavailable in every budget that selects these labels now.

        Existing slots are never revoked, and the node stays out where there is none for it. Slots that it does not need
        are released once it holds all that it needs; while no budget selects it, it keeps what it has.
        """
        # One may have been deleted, or a request of a dead agent may have taken a second one.
        self._knowledge = Knowledge.STALE
        await self.recall()
        budgets = await self._budgets(labels)
        missing, new = list[str](), list[str]()
        try:
            for budget in budgets:
                try:
                    new += await self._slot_while_out(budget)
                except _FullError as error:
                    missing.append(str(error))
                except BudgetError as error:
                    self._client.unreadable.note(BUDGETS, budget, str(error))
                    missing.append(f"budget {budget['metadata']['name']} cannot be read: {error}")
            surplus = self._surplus()
            if budgets and not missing:
                surplus += self._unneeded({budget["metadata"]["name"] for budget in budgets})
            await self._release(surplus)
        except BaseException:  # also when cancelled: a request may have been carried out
            self._knowledge = Knowledge.STALE
            raise
        return SlotCheck(tuple(new), tuple(surplus), tuple(missing))

    async def _slot_while_out(self, budget: Object) -> list[str]:
        """The slot that was taken where the node held none of the budget. Raises _FullError, BudgetError."""
        name = budget["metadata"]["name"]
        if any(slot.prefix == name and not slot.seconds for slot in self._slots.values()):
            return []
        slot_set = slot_sets(budget, await self._size(budget), "")[0]
        if (taken := await self._take(slot_set)) is not None:
            return [taken]
        found = await self._store.list_slots(selector(slot_set.labels))
        if any(slot.node == self._node for slot in found if slot_set.has_name(slot.name)):
            return []  # the controller has reserved it for us
        raise _FullError(f"budget {name} has no free slot for this node, which is out already")

    def _surplus(self) -> list[str]:
        """Slots of sets of which the node holds another one."""
        seen: set[str] = set()
        surplus = []
        for name, slot in sorted(self._slots.items()):
            if not slot.has_expired(self._now()):
                if slot.prefix in seen:
                    surplus.append(name)
                seen.add(slot.prefix)
        return surplus

    def _unneeded(self, budgets: set[str]) -> list[str]:
        return [name for name, slot in self._slots.items() if not slot.seconds and slot.prefix not in budgets]

    async def releasable(self) -> tuple[str, ...]:
        """The slots that are held until they are released."""
        return tuple(name for name in await self.recall() if not self._slots[name].seconds)

    async def release(self) -> tuple[str, ...]:
        """Release the slots that are held until they are released, and return them."""
        names = await self.releasable()
        await self._release(names)
        return names

    # --- budgets and counts -------------------------------------------------------------------------------------------

    async def _budgets(self, labels: dict[str, str]) -> list[Object]:
        """The budgets that select these labels. One whose selector cannot be read is left out."""
        selected = []
        for budget in (await self._client.list(BUDGETS)).items:
            try:
                if selects(budget, labels):
                    selected.append(budget)
            except BudgetError as error:
                self._client.unreadable.note(BUDGETS, budget, str(error))
        return selected

    async def _uncounted(self, budgets: Sequence[Object]) -> dict[str, int]:
        """By budget, how many other nodes are out or may go out and hold no slot of it."""
        if not budgets:
            return {}
        listing = asyncio.gather(*[node_counts.out(self._client, budget) for budget in budgets])
        slots, out = await asyncio.gather(self._store.list_slots(BUDGET_LABEL), listing)
        lasting = [slot for slot in slots if not slot.seconds]
        counts = {}
        for budget, nodes in zip(budgets, out, strict=True):
            found = await node_counts.uncounted(self._client, budget, nodes, lasting)
            counts[budget["metadata"]["name"]] = len(found - {self._node})
        return counts

    @staticmethod
    def _with_uncounted(slot_set: SlotSet, uncounted: dict[str, int]) -> SlotSet:
        count = uncounted.get(slot_set.budget, 0) if slot_set.kind is Limit.UNAVAILABLE else 0
        return msgspec.structs.replace(slot_set, uncounted=count) if count else slot_set

    async def _size(self, budget: Object) -> int:
        """How many nodes the budget selects; counted only where a percentage needs it and no status has it."""
        if not has_percentage(budget):
            return 0
        size = counted_size(budget)
        return await node_counts.size(self._client, budget) if size is None else size

    # --- one slot -----------------------------------------------------------------------------------------------------

    async def _renew(self, name: str) -> bool:
        """Renew a slot that is needed now; whether it is still ours.

        The controller frees slots that seem to be orphaned. So this one is written again: a deletion that is under way
        is for the previous version, and fails.
        """
        slot = self._slots.pop(name)
        if slot.seconds:  # it expires by itself, and the controller does not free it
            self._slots[name] = slot
            return True
        try:
            self._slots[name] = await self._store.renew(slot, self._now())
        except NotFoundError:
            return False
        except ConflictError:  # also when the response to our own request was lost
            return await self._is_ours_now(name)
        return True

    async def _take(self, slot_set: SlotSet) -> str | None:
        """The name of the slot that was taken; None when there is none."""
        if slot_set.room < 1:
            return None
        # A set that was full or changed is listed first; in any other a slot is tried blindly, as long as that pays.
        list_first = slot_set.changed or slot_set.uncounted or slot_set.prefix == self._full
        for _ in range(0 if list_first else 1 + min(MAX_BLIND_TRIES, slot_set.limit // SLOTS_PER_BLIND_TRY)):
            name = f"{slot_set.prefix}.{self._choose.randrange(slot_set.limit)}"
            if await self._create(slot_set, name):
                return name
        for _ in range(MAX_TRIES):
            now = self._now()
            found = await self._store.list_slots(selector(slot_set.labels))
            slots = {slot.name: slot for slot in found if slot_set.has_name(slot.name)}
            held = [name for name, slot in slots.items() if not slot.has_expired(now)]
            for name in held:
                if slots[name].holder == self._node:  # the response to a take-over was lost
                    self._slots[name] = slots[name]
                    return name
            if not (free := slot_set.free_names(held)):
                return None
            name = self._choose.choice(free)
            if await (self._take_over(slot_set, slots[name], now) if name in slots else self._create(slot_set, name)):
                return name
        return None  # so much demand that the next try may as well come later

    async def _create(self, slot_set: SlotSet, name: str) -> bool:
        try:
            self._slots[name] = await self._store.take(slot_set, name, self._node, self._now())
        except AlreadyExistsError as error:
            return error.unanswered and await self._is_ours_now(name)
        return True

    async def _is_ours_now(self, name: str) -> bool:
        """Whether we took the slot, and the response was lost."""
        slot = await self._store.get(name)
        if slot is None or slot.holder != self._node or slot.has_expired(self._now()):
            return False
        self._slots[name] = slot
        return True

    async def _take_over(self, slot_set: SlotSet, slot: Slot, expired_at: datetime) -> bool:
        """Take a slot that has expired, unless another client is faster."""
        # The server's time is known to a second: the next estimate may be earlier than the one by which it has expired.
        now = max(expired_at, self._now())
        try:
            self._slots[slot.name] = await self._store.take_over(slot_set, slot, self._node, now)
        except (ConflictError, NotFoundError):
            return False
        return True

    async def _release(self, names: Iterable[str]) -> None:
        for name in names:
            metadata = self._slots[name].lease["metadata"]
            try:
                await self._store.release(name, uid=metadata["uid"], version=metadata["resourceVersion"])
            except NotFoundError:
                pass
            except ConflictError:  # it was changed: list the slots again before the next try
                self._knowledge = Knowledge.STALE
                raise
            self._slots.pop(name, None)

    def _slot_in(self, slot_set: SlotSet) -> str | None:
        now = self._now()
        for name, slot in self._slots.items():
            if slot.prefix == slot_set.prefix and not slot.has_expired(now):
                return name
        return None


def _versions(budgets: Sequence[Object]) -> set[tuple[str, str, int]]:
    metadata = (budget["metadata"] for budget in budgets)
    return {(found["name"], found.get("uid", ""), found.get("generation", 0)) for found in metadata}
