"""QuarantineBudgets: how many nodes may be out at once by our hand, bounded by the API server itself.

A budget's places are Leases in our namespace with a fixed set of names, `<budget>.<k>` for 0 <= k < limit. A name
exists once, so there can never be more holders than names, whoever crashes or races. A node takes a place by creating
the Lease, at a random k first: one call when there is room, and no object that all of them write to.

A budget has up to three sets of places:

    <budget>.<k>                 maxUnavailable: held while the node is out, deleted when it is back
    <budget>.window.<k>          maxPerWindow: how many may go out within `window`, whatever became of them
    <budget>.fault.<code>.<k>    maxPerFault: the same, for one finding code

The places of the last two run out after `window` and may then be taken over, so they are not given back on recovery:
they count what happened. A node must get a place in every set of every budget that selects it; one that is held gives
back what it took on the way. The smallest set comes first, and a node that is held looks at the set that held it before
it takes a place in another: a driver that fails everywhere does not fill the places that other faults need. Nobody
waits for a place while holding one, so that no two nodes can wait for each other.

A percentage is of the number of nodes that the budget selects. It is rounded down, but is never less than one node
unless it is 0 %: a PodDisruptionBudget rounds up, which in a small pool is a larger share than was allowed.

A limit that is lowered takes nothing back from nodes that are out, and lets no other out before there is room again:
of a budget that was ever changed the places are looked at first, and those beyond the limit count (`open_names`). Only
where a percentage became less because its pool shrank may the surplus stay out beside as many as are allowed now.

For a budget that says `countUnavailable` the controller takes places for the nodes that others took out.
"""

from __future__ import annotations

import enum
import math
import random
import re
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

import msgspec

from gpuhealth.cluster.client import Client, Object
from gpuhealth.cluster.errors import AlreadyExistsError, ConflictError, NotFoundError
from gpuhealth.cluster.kinds import BUDGETS, GROUP, LEASES, NODES
from gpuhealth.cluster.selectors import matches, written
from gpuhealth.config import seconds

BUDGET_LABEL = f"{GROUP}/budget"
SET_LABEL = f"{GROUP}/place-set"
HOLDER_LABEL = f"{GROUP}/node"
TRIES = 4  # at places that were free in the list and that others took first
LATE_SECONDS = 30.0  # after which no request of an agent that was killed is done any more
BLIND = 6  # tries, at the most, before the places are listed: the more there are, the dearer is the list
MANY = 100


class Limit(enum.StrEnum):
    """What a set of places bounds, by the name of its field in the budget."""

    UNAVAILABLE = "maxUnavailable"
    PER_WINDOW = "maxPerWindow"
    PER_FAULT = "maxPerFault"


class Set(msgspec.Struct, frozen=True):
    """One set of places: `limit` names that begin with `prefix`."""

    prefix: str
    budget: str
    kind: Limit
    limit: int
    seconds: int = 0  # how long a place holds after it was taken; 0: until it is given back
    changed: bool = False  # whether the limit may once have been higher


class Admitted(msgspec.Struct, frozen=True):
    """The node may be taken out; these are its places."""

    places: tuple[str, ...]
    taken: tuple[str, ...]  # just now; the others were held already


class Held(msgspec.Struct, frozen=True):
    """The node stays in service: a budget has no place for it."""

    budget: str
    limit: Limit
    reason: str


class NoBudget(msgspec.Struct, frozen=True):
    """No budget selects the node, so nothing is taken out."""


Outcome: TypeAlias = Admitted | Held | NoBudget


def limit_of(amount: int | str, size: int) -> int:
    """A count, or a percentage of `size`."""
    if isinstance(amount, int):
        return amount
    percent = float(amount.rstrip("%"))
    return max(1, int(size * percent / 100)) if percent > 0 and size > 0 else 0


def sets_of(budget: Object, size: int, code: str) -> list[Set]:
    """The sets in which a quarantine for `code` needs a place."""
    name, spec = budget["metadata"]["name"], budget["spec"]
    window = math.ceil(float(str(seconds(spec.get("window", "1h")))))
    changed = budget["metadata"].get("generation", 1) != 1
    sets = [Set(name, name, Limit.UNAVAILABLE, limit_of(spec["maxUnavailable"], size), changed=changed)]
    if (per_window := spec.get("maxPerWindow")) is not None:
        sets.append(Set(f"{name}.window", name, Limit.PER_WINDOW, limit_of(per_window, size), window, changed))
    if (per_fault := spec.get("maxPerFault")) is not None:
        word = re.sub(r"[^a-z0-9.]+", "-", code.lower()).strip("-.")
        sets.append(Set(f"{name}.fault.{word}", name, Limit.PER_FAULT, limit_of(per_fault, size), window, changed))
    return sets


def open_names(needed: Set, held: Iterable[str]) -> list[str]:
    """The names of a set that may be taken or are, given the places that are held, some perhaps beyond the limit.

    For each place that is held beyond the names that are left, one name less is open: so there are never more holders
    than the limit, whichever of these names are taken at once by others who have seen the same or less held.
    """
    numbers = sorted((int(name.rpartition(".")[2]) for name in held), reverse=True)
    size = needed.limit
    for beyond, number in enumerate(numbers, 1):
        if number < size:
            break
        size = max(0, needed.limit - beyond)
    return [f"{needed.prefix}.{k}" for k in range(size)]


def taken_place(needed: Set, name: str, holder: str, now: datetime) -> Object:
    """The Lease of a place for its holder."""
    labels = {BUDGET_LABEL: needed.budget, SET_LABEL: _set_label(needed), HOLDER_LABEL: _label(holder)}
    return {"metadata": {"name": name, "labels": labels}, "spec": _spec(needed, holder, now)}


def _spec(needed: Set, holder: str, now: datetime) -> Object:
    spec: Object = {"holderIdentity": holder, "acquireTime": _written(now), "renewTime": _written(now)}
    return spec | ({"leaseDurationSeconds": needed.seconds} if needed.seconds else {})


def _written(now: datetime) -> str:
    return now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Places:
    """The places of one node."""

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
        self._held: dict[str, Object] | None = None  # Leases by name; None: to be asked for
        self._look_again_at: float | None = math.inf  # monotonic; inf: when a place has been taken; None: done
        self._full = ""  # prefix of the set that had no place for us

    @property
    def held(self) -> tuple[str, ...] | None:
        """The places that the node is known to hold; None when they have to be recalled first."""
        return None if self._held is None else tuple(sorted(self._held))

    async def recall(self) -> tuple[str, ...]:
        """Find the places again that this node holds, after a restart or an answer that was lost."""
        if self._held is None:
            # A Node's name may be longer than a label's value: the label finds, the holder decides.
            found = await self._client.list(LEASES, self._namespace, labels=f"{HOLDER_LABEL}={_label(self._node)}")
            self._held = {lease["metadata"]["name"]: lease for lease in found.items if self._is_ours(lease)}
        return tuple(sorted(self._held))

    async def acquire(self, labels: dict[str, str], code: str) -> Outcome:
        """A place in every set of every budget that selects these labels, or none at all."""
        await self.recall()
        budgets = (await self._client.list(BUDGETS)).items
        budgets = [budget for budget in budgets if matches(budget["spec"]["nodeSelector"], labels)]
        if not budgets:
            return NoBudget()
        sets = [s for budget in budgets for s in sets_of(budget, await self._size(budget), code)]
        sets.sort(key=lambda s: (s.prefix != self._full, s.limit, s.prefix))
        taken: list[str] = []
        try:
            for needed in sets:
                if (known := self._place_in(needed)) is not None and await self._is_kept(known):
                    continue
                if (place := await self._take(needed)) is None:
                    self._full = needed.prefix
                    await self._give_back(taken)
                    return Held(needed.budget, needed.kind, _why(needed))
                taken.append(place)
        except BaseException:
            self._held = None  # what was taken is found again, and used or given back
            raise
        self._full = ""
        if self._look_again_at == math.inf:
            self._look_again_at = time.monotonic() + LATE_SECONDS
        return Admitted(tuple(sorted(name for s in sets if (name := self._place_in(s)))), tuple(taken))

    async def _is_kept(self, name: str) -> bool:
        """Whether a place that we remember is ours yet, now that it is needed.

        The controller frees places that nobody seems to need. So this one is written anew: a deletion that is under way
        is for its last version, and fails.
        """
        lease = self._leases().pop(name)
        if self._seconds(lease):  # it runs out by itself and is freed by nobody
            self._leases()[name] = lease
            return True
        before = datetime.fromisoformat(lease["spec"]["renewTime"])
        now = max(self._now(), before + timedelta.resolution)  # the same time again would be no change to the server
        renewed = {**lease, "spec": lease["spec"] | {"renewTime": _written(now)}}
        try:
            self._leases()[name] = await self._client.replace(LEASES, name, renewed, self._namespace)
        except NotFoundError:
            return False
        except ConflictError:  # also when the answer to our own request was lost
            return await self._is_ours_now(name)
        return True

    async def drop_surplus(self) -> tuple[str, ...]:
        """Once, some time after our first place: gives back a second one in the same set.

        The agent before us may have died with a request under way that was done only after we had looked.
        """
        if self._look_again_at is None or time.monotonic() < self._look_again_at:
            return ()
        self._held = None
        seen: set[str] = set()
        surplus: list[str] = []
        for name in await self.recall():
            prefix = name.rpartition(".")[0]
            if not self._has_run_out(self._leases()[name]):
                if prefix in seen:
                    surplus.append(name)
                seen.add(prefix)
        await self._give_back(surplus)
        self._look_again_at = None
        return tuple(surplus)

    async def to_return(self) -> tuple[str, ...]:
        """The places that last until they are given back."""
        return tuple(name for name in await self.recall() if not self._seconds(self._leases()[name]))

    async def release(self) -> tuple[str, ...]:
        """Give back the places that last until they are given back; what was given back."""
        names = await self.to_return()
        await self._give_back(names)
        return names

    async def _size(self, budget: Object) -> int:
        """How many nodes the budget selects; asked for only where a percentage needs it and no controller says."""
        amounts = [budget["spec"].get(key) for key in ("maxUnavailable", "maxPerWindow", "maxPerFault")]
        if not any(isinstance(amount, str) for amount in amounts):
            return 0
        size = budget.get("status", {}).get("size")
        if size is not None:
            return int(size)
        selector = written(budget["spec"]["nodeSelector"])
        pages = self._client.pages(NODES, labels=selector, metadata_only=True)
        return sum([len(page.items) async for page in pages])

    async def _take(self, needed: Set) -> str | None:
        """The name of the place that was taken; None when there is none."""
        if needed.limit < 1:
            return None
        # A set that was full or changed is looked at; in any other a place is taken blindly, as long as that pays.
        look = needed.changed or needed.prefix == self._full
        for _ in range(0 if look else 1 + min(BLIND, needed.limit // MANY)):
            name = f"{needed.prefix}.{self._choose.randrange(needed.limit)}"
            if await self._create(needed, name):
                return name
        for _ in range(TRIES):
            labels = f"{BUDGET_LABEL}={needed.budget},{SET_LABEL}={_set_label(needed)}"
            found = (await self._client.list(LEASES, self._namespace, labels=labels)).items
            leases = {name: lease for lease in found if _is_place(needed, name := lease["metadata"]["name"])}
            for name, lease in leases.items():  # the answer to a take-over was lost
                if self._is_ours(lease) and not self._has_run_out(lease):
                    self._leases()[name] = lease
                    return str(name)
            held = [name for name, lease in leases.items() if not self._has_run_out(lease)]
            free = sorted(set(open_names(needed, held)) - set(held))
            if not free:
                return None
            name = self._choose.choice(free)
            if await (self._take_over(needed, leases[name]) if name in leases else self._create(needed, name)):
                return name
        return None  # so much demand that the next try may as well come later

    async def _create(self, needed: Set, name: str) -> bool:
        lease = taken_place(needed, name, self._node, self._now())
        try:
            self._leases()[name] = await self._client.create(LEASES, lease, self._namespace)
        except AlreadyExistsError as error:
            return error.unanswered and await self._is_ours_now(name)
        return True

    async def _is_ours_now(self, name: str) -> bool:
        """Whether it was we who took the place, and the answer was lost."""
        for lease in (await self._client.list(LEASES, self._namespace, fields=f"metadata.name={name}")).items:
            if self._is_ours(lease) and not self._has_run_out(lease):
                self._leases()[name] = lease
                return True
        return False

    async def _take_over(self, needed: Set, lease: Object) -> bool:
        """Takes a place whose time has run out, unless somebody else is quicker."""
        name = lease["metadata"]["name"]
        labels = lease["metadata"]["labels"] | {HOLDER_LABEL: _label(self._node)}
        spec = _spec(needed, self._node, self._now())
        new = {**lease, "metadata": {**lease["metadata"], "labels": labels}, "spec": spec}
        try:
            self._leases()[name] = await self._client.replace(LEASES, name, new, self._namespace)
        except (ConflictError, NotFoundError):
            return False
        return True

    async def _give_back(self, names: Iterable[str]) -> None:
        for name in names:
            metadata = self._leases()[name]["metadata"]
            try:
                # The version that we wrote: a place that somebody took over meanwhile is not ours to delete.
                await self._client.delete(
                    LEASES, name, self._namespace, uid=metadata["uid"], resource_version=metadata["resourceVersion"]
                )
            except NotFoundError:
                pass
            except ConflictError:
                self._held = None  # somebody changed it: look again, and try again if it is still ours
                raise
            self._leases().pop(name, None)

    def _leases(self) -> dict[str, Object]:
        if self._held is None:
            self._held = {}
        return self._held

    def _place_in(self, needed: Set) -> str | None:
        for name, lease in self._leases().items():
            if name.rpartition(".")[0] == needed.prefix and not self._has_run_out(lease):
                return name
        return None

    def _is_ours(self, lease: Object) -> bool:
        return bool(lease["spec"].get("holderIdentity") == self._node)

    @staticmethod
    def _seconds(lease: Object) -> int:
        return int(lease["spec"].get("leaseDurationSeconds") or 0)

    def _has_run_out(self, lease: Object) -> bool:
        seconds = self._seconds(lease)
        taken: Any = lease["spec"].get("renewTime")
        return bool(seconds and taken) and datetime.fromisoformat(taken) + timedelta(seconds=seconds) <= self._now()


def _why(needed: Set) -> str:
    limit = f"{needed.limit} node{'' if needed.limit == 1 else 's'}"
    what = {
        Limit.UNAVAILABLE: f"{limit} be out at once",
        Limit.PER_WINDOW: f"{limit} out within {needed.seconds} s",
        Limit.PER_FAULT: f"{limit} out for the same fault within {needed.seconds} s",
    }
    return f"budget {needed.budget} lets no more than {what[needed.kind]}"


def _is_place(needed: Set, name: str) -> bool:
    prefix, _, number = name.rpartition(".")
    return prefix == needed.prefix and number.isdecimal()


def _set_label(needed: Set) -> str:
    """The set within its budget, as a label's value."""
    return _label(needed.prefix.removeprefix(needed.budget).strip(".") or "unavailable")


def _label(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", text)[-63:].lstrip("-._")
