"""The budget slots of one node: sought before it is taken out, kept while it is out, given back when it is back."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta

import msgspec

from gpuhealth.api.names import BUDGET_LABEL, SLOT_NODE_LABEL, SLOT_SET_LABEL
from gpuhealth.kube.client import Client, Object
from gpuhealth.kube.errors import AlreadyExistsError, ConflictError, NotFoundError
from gpuhealth.kube.kinds import BUDGETS, LEASES
from gpuhealth.quarantine import node_counts as census
from gpuhealth.quarantine.slots import (
    NO_BUDGET,
    UNREADABLE,
    Admitted,
    BudgetError,
    Held,
    Limit,
    NoBudget,
    Outcome,
    Set,
    Taken,
    counted_size,
    has_percentage,
    is_counted,
    is_slot_of,
    label,
    lease_spec,
    lease_time,
    open_names,
    renewed,
    selects,
    set_label,
    sets_of,
    taken,
    taken_place,
    why_held,
)

TRIES = 4  # at slots that were free in the list and that others took first; and at budgets that change meanwhile
BLIND = 6  # tries, at the most, before the slots are listed: the more there are, the dearer is the list
MANY = 100


class Kept(msgspec.Struct, frozen=True):
    """What became of the slots of a node that is out."""

    taken: tuple[str, ...] = ()
    returned: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()  # why there is none, for each budget of which it holds none


class _FullError(Exception):
    """A budget has no slot for a node that is out already."""


class Places:
    """The slots of one node."""

    def __init__(
        self,
        client: Client,
        namespace: str,
        node: str,
        *,
        now: Callable[[], datetime] | None = None,
        choose: random.Random | None = None,
    ) -> None:
        """`now` is the API server's time: a node whose clock is off must not take over what has not run out."""
        self._client = client
        self._namespace = namespace
        self._node = node
        self._now = now or client.server_time
        self._choose = choose or random.Random()  # noqa: S311 - no secret
        self._held: dict[str, Taken] | None = None  # by name; None: to be asked for
        self._full = ""  # prefix of the set that had no slot for us

    @property
    def held(self) -> tuple[str, ...] | None:
        """The slots that the node is known to hold; None when they have to be recalled first."""
        return None if self._held is None else tuple(sorted(self._held))

    async def recall(self) -> tuple[str, ...]:
        """Find the slots that this node holds, after a restart or an answer that was lost."""
        if self._held is None:
            # A Node's name may be longer than a label's value: the label finds, the holder decides.
            found = await self._slots(f"{SLOT_NODE_LABEL}={label(self._node)}")
            self._held = {slot.name: slot for slot in found if slot.holder == self._node}
        return tuple(sorted(self._held))

    async def acquire(self, labels: dict[str, str], code: str) -> Outcome:
        """A slot in every set of every budget that selects these labels, or none at all."""
        await self.recall()
        budgets = await self._budgets(labels)
        new: list[str] = []
        outcome: Outcome
        try:
            for _ in range(TRIES):
                outcome = await self._acquired(budgets, code, new)
                # A budget that came after they were listed may not have been told of us by anybody (see `budget`).
                before, budgets = budgets, await self._budgets(labels) if isinstance(outcome, Admitted) else budgets
                if _versions(before) == _versions(budgets):
                    break
            else:
                outcome = Held("", NO_BUDGET, "the budgets that select this node change all the time")
            if not isinstance(outcome, Admitted):
                await self._give_back(new)
        except BaseException:
            self._held = None  # what was taken is found again, and used or given back
            raise
        return outcome

    async def _acquired(self, budgets: Sequence[Object], code: str, new: list[str]) -> Outcome:
        """The same for budgets as they were listed; what is taken is added to `new`, also where not all can be had."""
        if not budgets:
            return NoBudget()
        sets = []
        for budget in budgets:
            try:
                sets += sets_of(budget, await self._size(budget), code)
            except BudgetError as error:
                self._client.unreadable.note(BUDGETS, budget, str(error))
                name = budget["metadata"]["name"]
                return Held(name, UNREADABLE, f"budget {name} cannot be read and allows nothing: {error}")
        uncounted = await self._uncounted([budget for budget in budgets if not is_counted(budget)])
        sets = [self._with_uncounted(each, uncounted) for each in sets]
        sets.sort(key=lambda s: (s.prefix != self._full, s.limit, s.prefix))
        for needed in sets:
            if (known := self._slot_in(needed)) is not None and (known in new or await self._is_kept(known)):
                continue
            if (name := await self._take(needed)) is None:
                self._full = needed.prefix
                return Held(needed.budget, needed.kind, why_held(needed))
            new.append(name)
        self._full = ""
        return Admitted(tuple(sorted(name for s in sets if (name := self._slot_in(s)))), tuple(new))

    async def keep(self, labels: dict[str, str]) -> Kept:
        """For a node that is out: a slot of maxUnavailable in every budget that selects these labels now.

        Nothing is taken from anybody, and the node stays out where there is none for it. Slots that it does not need
        are given back once it holds all that it needs; while no budget selects it, it keeps what it has.
        """
        self._held = None  # somebody may have deleted one, or a request of a dead agent may have taken a second one
        await self.recall()
        budgets = await self._budgets(labels)
        lacking, new = list[str](), list[str]()
        try:
            for budget in budgets:
                try:
                    new += await self._kept_in(budget)
                except _FullError as error:
                    lacking.append(str(error))
                except BudgetError as error:
                    self._client.unreadable.note(BUDGETS, budget, str(error))
                    lacking.append(f"budget {budget['metadata']['name']} cannot be read: {error}")
            returned = self._surplus()
            if budgets and not lacking:
                returned += self._unneeded({budget["metadata"]["name"] for budget in budgets})
            await self._give_back(returned)
        except BaseException:
            self._held = None
            raise
        return Kept(tuple(new), tuple(returned), tuple(lacking))

    async def _kept_in(self, budget: Object) -> list[str]:
        """The slot that was taken where we held none of the budget. Raises _FullError, BudgetError."""
        name = budget["metadata"]["name"]
        if any(slot.prefix == name and not slot.seconds for slot in self._slots_held().values()):
            return []
        needed = sets_of(budget, await self._size(budget), "")[0]
        if (got := await self._take(needed)) is not None:
            return [got]
        found = await self._slots(_of_set(needed))
        if any(slot.node == self._node for slot in found if is_slot_of(needed, slot.name)):
            return []  # the controller has taken it for us
        raise _FullError(f"budget {name} has no free slot for this node, which is out already")

    def _surplus(self) -> list[str]:
        """Slots of sets of which we hold another one."""
        seen: set[str] = set()
        surplus = []
        for name, slot in sorted(self._slots_held().items()):
            if not slot.has_run_out(self._now()):
                if slot.prefix in seen:
                    surplus.append(name)
                seen.add(slot.prefix)
        return surplus

    def _unneeded(self, budgets: set[str]) -> list[str]:
        return [name for name, slot in self._slots_held().items() if not slot.seconds and slot.prefix not in budgets]

    async def to_return(self) -> tuple[str, ...]:
        """The slots that last until they are given back."""
        return tuple(name for name in await self.recall() if not self._slots_held()[name].seconds)

    async def release(self) -> tuple[str, ...]:
        """Give back the slots that last until they are given back; what was given back."""
        names = await self.to_return()
        await self._give_back(names)
        return names

    # --- what there is ------------------------------------------------------------------------------------------------

    async def _budgets(self, labels: dict[str, str]) -> list[Object]:
        """The budgets that select these labels. One whose selector cannot be read is left out."""
        chosen = []
        for budget in (await self._client.list(BUDGETS)).items:
            try:
                if selects(budget, labels):
                    chosen.append(budget)
            except BudgetError as error:
                self._client.unreadable.note(BUDGETS, budget, str(error))
        return chosen

    async def _slots(self, labels: str) -> list[Taken]:
        found = [taken(lease) for lease in (await self._client.list(LEASES, self._namespace, labels=labels)).items]
        for slot in found:
            if slot.fault:
                self._client.unreadable.note(LEASES, slot.body, f"{slot.fault}; the slot counts as taken")
        return found

    async def _uncounted(self, budgets: Sequence[Object]) -> dict[str, int]:
        """By budget, how many other nodes are out or may go out and hold no slot of it."""
        if not budgets:
            return {}
        listing = asyncio.gather(*[census.out(self._client, budget) for budget in budgets])
        slots, out = await asyncio.gather(self._slots(BUDGET_LABEL), listing)
        lasting = [slot for slot in slots if not slot.seconds]
        counts = {}
        for budget, nodes in zip(budgets, out, strict=True):
            found = await census.uncounted(self._client, budget, nodes, lasting)
            counts[budget["metadata"]["name"]] = len(found - {self._node})
        return counts

    @staticmethod
    def _with_uncounted(needed: Set, uncounted: dict[str, int]) -> Set:
        count = uncounted.get(needed.budget, 0) if needed.kind is Limit.UNAVAILABLE else 0
        return msgspec.structs.replace(needed, uncounted=count) if count else needed

    async def _size(self, budget: Object) -> int:
        """How many nodes the budget selects; asked for only where a percentage needs it and no controller says."""
        if not has_percentage(budget):
            return 0
        size = counted_size(budget)
        return await census.size(self._client, budget) if size is None else size

    # --- one slot -----------------------------------------------------------------------------------------------------

    async def _is_kept(self, name: str) -> bool:
        """Whether a slot that we remember is ours yet, now that it is needed.

        The controller frees slots that nobody seems to need. So this one is written again: a deletion that is under way
        is for its last version, and fails.
        """
        slot = self._slots_held().pop(name)
        if slot.seconds:  # it runs out by itself and is freed by nobody
            self._slots_held()[name] = slot
            return True
        now = self._now()
        with suppress(ValueError, OverflowError):  # the same time again would be no change to the server
            now = max(now, renewed(slot.body) + timedelta.resolution)
        body = {**slot.body, "spec": slot.body["spec"] | {"renewTime": lease_time(now)}}
        try:
            self._slots_held()[name] = taken(await self._client.replace(LEASES, name, body, self._namespace))
        except NotFoundError:
            return False
        except ConflictError:  # also when the answer to our own request was lost
            return await self._is_ours_now(name)
        return True

    async def _take(self, needed: Set) -> str | None:
        """The name of the slot that was taken; None when there is none."""
        if needed.room < 1:
            return None
        # A set that was full or changed is looked at; in any other a slot is taken blindly, as long as that pays.
        look = needed.changed or needed.uncounted or needed.prefix == self._full
        for _ in range(0 if look else 1 + min(BLIND, needed.limit // MANY)):
            name = f"{needed.prefix}.{self._choose.randrange(needed.limit)}"
            if await self._create(needed, name):
                return name
        for _ in range(TRIES):
            now = self._now()
            found = await self._slots(_of_set(needed))
            slots = {slot.name: slot for slot in found if is_slot_of(needed, slot.name)}
            held = [name for name, slot in slots.items() if not slot.has_run_out(now)]
            for name in held:
                if slots[name].holder == self._node:  # the answer to a take-over was lost
                    self._slots_held()[name] = slots[name]
                    return name
            free = sorted(set(open_names(needed, held)) - set(held))
            if not free:
                return None
            name = self._choose.choice(free)
            if await (self._take_over(needed, slots[name]) if name in slots else self._create(needed, name)):
                return name
        return None  # so much demand that the next try may as well come later

    async def _create(self, needed: Set, name: str) -> bool:
        lease = taken_place(needed, name, self._node, self._now())
        try:
            self._slots_held()[name] = taken(await self._client.create(LEASES, lease, self._namespace))
        except AlreadyExistsError as error:
            return error.unanswered and await self._is_ours_now(name)
        return True

    async def _is_ours_now(self, name: str) -> bool:
        """Whether it was we who took the slot, and the answer was lost."""
        for lease in (await self._client.list(LEASES, self._namespace, fields=f"metadata.name={name}")).items:
            slot = taken(lease)
            if slot.holder == self._node and not slot.has_run_out(self._now()):
                self._slots_held()[name] = slot
                return True
        return False

    async def _take_over(self, needed: Set, slot: Taken) -> bool:
        """Takes a slot whose time has run out, unless somebody else is quicker."""
        metadata = slot.body["metadata"]
        labels = (metadata.get("labels") or {}) | {SLOT_NODE_LABEL: label(self._node)}
        spec = lease_spec(needed, self._node, self._now())
        new = {**slot.body, "metadata": {**metadata, "labels": labels}, "spec": spec}
        try:
            self._slots_held()[slot.name] = taken(await self._client.replace(LEASES, slot.name, new, self._namespace))
        except (ConflictError, NotFoundError):
            return False
        return True

    async def _give_back(self, names: Iterable[str]) -> None:
        for name in names:
            metadata = self._slots_held()[name].body["metadata"]
            try:
                # The version that we wrote: a slot that somebody took over meanwhile is not ours to delete.
                await self._client.delete(
                    LEASES, name, self._namespace, uid=metadata["uid"], resource_version=metadata["resourceVersion"]
                )
            except NotFoundError:
                pass
            except ConflictError:
                self._held = None  # somebody changed it: look again, and try again if it is still ours
                raise
            self._slots_held().pop(name, None)

    def _slots_held(self) -> dict[str, Taken]:
        if self._held is None:
            self._held = {}
        return self._held

    def _slot_in(self, needed: Set) -> str | None:
        now = self._now()
        for name, slot in self._slots_held().items():
            if slot.prefix == needed.prefix and not slot.has_run_out(now):
                return name
        return None


def _of_set(needed: Set) -> str:
    return f"{BUDGET_LABEL}={needed.budget},{SLOT_SET_LABEL}={set_label(needed)}"


def _versions(budgets: Sequence[Object]) -> set[tuple[str, str, int]]:
    each = (budget["metadata"] for budget in budgets)
    return {(metadata["name"], metadata.get("uid", ""), metadata.get("generation", 0)) for metadata in each}
