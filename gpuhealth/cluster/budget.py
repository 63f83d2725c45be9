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
back what it took on the way. Places are taken in the order of their names, so that two nodes never wait for each other.

A percentage is of the number of nodes that the budget selects. It is rounded down, but is never less than one node
unless it is 0 %: a PodDisruptionBudget rounds up, which in a small pool is a larger share than was allowed. A limit
that is lowered takes nothing back from nodes that are out; it holds for those that come after the surplus has returned.
"""

from __future__ import annotations

import math
import random
import re
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
TRIES = 10  # at places that others keep taking first
BLIND = 6  # of them, at the most, before the places are listed: the more there are, the dearer is the list
MANY = 100


class Set(msgspec.Struct, frozen=True, order=True):
    """One set of places: `limit` names that begin with `prefix`."""

    prefix: str
    budget: str
    limit: int
    seconds: int = 0  # how long a place holds after it was taken; 0: until it is given back


class Admitted(msgspec.Struct, frozen=True):
    """The node may be taken out; these are its places."""

    places: tuple[str, ...]
    taken: tuple[str, ...]  # just now; the others were held already


class Held(msgspec.Struct, frozen=True):
    """The node stays in service: a budget has no place for it."""

    budget: str
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
    sets = [Set(name, name, limit_of(spec["maxUnavailable"], size))]
    if (per_window := spec.get("maxPerWindow")) is not None:
        sets.append(Set(f"{name}.window", name, limit_of(per_window, size), window))
    if (per_fault := spec.get("maxPerFault")) is not None:
        word = re.sub(r"[^a-z0-9.]+", "-", code.lower()).strip("-.")
        sets.append(Set(f"{name}.fault.{word}", name, limit_of(per_fault, size), window))
    return sorted(sets)


class Places:
    """The places of one node."""

    def __init__(
        self,
        client: Client,
        namespace: str,
        node: str,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        choose: random.Random | None = None,
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._node = node
        self._now = now
        self._choose = choose or random.Random()  # noqa: S311 - no secret
        self._held: dict[str, Object] | None = None  # Leases by name; None: to be asked for

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
        taken: list[str] = []
        try:
            for needed in sorted(sets):
                if (known := self._place_in(needed)) is not None and await self._is_kept(known):
                    continue
                if (place := await self._take(needed)) is None:
                    await self._give_back(taken)
                    return Held(needed.budget, _why(needed))
                taken.append(place)
        except BaseException:
            self._held = None  # what was taken is found again, and used or given back
            raise
        return Admitted(tuple(name for s in sorted(sets) if (name := self._place_in(s))), tuple(taken))

    async def _is_kept(self, name: str) -> bool:
        """Whether a place that we remember is ours yet, now that it is needed.

        The controller frees places that nobody seems to need. So this one is written anew: a deletion that is under way
        is for its last version, and fails.
        """
        lease = self._leases().pop(name)
        if self._seconds(lease):  # it runs out by itself and is freed by nobody
            self._leases()[name] = lease
            return True
        renewed = {**lease, "spec": lease["spec"] | {"renewTime": self._written_now()}}
        try:
            self._leases()[name] = await self._client.replace(LEASES, name, renewed, self._namespace)
        except NotFoundError:
            return False
        except ConflictError:  # also when the answer to our own request was lost
            return await self._already_ours(name) is not None
        return True

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
        k = self._choose.randrange(needed.limit)
        for attempt in range(TRIES):
            if (place := await self._create(needed, k)) is not None:
                return place
            if attempt < min(BLIND, needed.limit // MANY):
                if (place := await self._already_ours(f"{needed.prefix}.{k}")) is not None:
                    return place
                k = self._choose.randrange(needed.limit)
                continue
            labels = f"{BUDGET_LABEL}={needed.budget},{SET_LABEL}={_set_label(needed)}"
            leases = {item["metadata"]["name"]: item for item in (await self._lease_list(labels))}
            for lease in leases.values():  # an answer was lost: the name that was taken is taken by us
                if self._is_ours(lease) and not self._has_run_out(lease):
                    self._leases()[lease["metadata"]["name"]] = lease
                    return str(lease["metadata"]["name"])
            names = {f"{needed.prefix}.{k}": k for k in range(needed.limit)}
            run_out = [leases[name] for name in names.keys() & leases.keys() if self._has_run_out(leases[name])]
            if run_out and (place := await self._take_over(needed, self._choose.choice(run_out))) is not None:
                return place
            free = sorted(names.keys() - leases.keys())
            if not free and not run_out:
                return None
            if free:
                k = names[self._choose.choice(free)]
        return None  # so much demand that the next try may as well come later

    async def _lease_list(self, labels: str) -> list[Object]:
        return (await self._client.list(LEASES, self._namespace, labels=labels)).items

    async def _create(self, needed: Set, k: int) -> str | None:
        name = f"{needed.prefix}.{k}"
        labels = {BUDGET_LABEL: needed.budget, SET_LABEL: _set_label(needed), HOLDER_LABEL: _label(self._node)}
        lease = {"metadata": {"name": name, "labels": labels}, "spec": self._spec(needed)}
        try:
            self._leases()[name] = await self._client.create(LEASES, lease, self._namespace)
        except AlreadyExistsError:
            return None
        return name

    async def _already_ours(self, name: str) -> str | None:
        """The place, if it was we who took it and the answer was lost."""
        for lease in (await self._client.list(LEASES, self._namespace, fields=f"metadata.name={name}")).items:
            if self._is_ours(lease) and not self._has_run_out(lease):
                self._leases()[name] = lease
                return name
        return None

    async def _take_over(self, needed: Set, lease: Object) -> str | None:
        """A place whose time has run out, unless somebody else was quicker."""
        name = str(lease["metadata"]["name"])
        labels = lease["metadata"]["labels"] | {HOLDER_LABEL: _label(self._node)}
        new = {**lease, "metadata": {**lease["metadata"], "labels": labels}, "spec": self._spec(needed)}
        try:
            self._leases()[name] = await self._client.replace(LEASES, name, new, self._namespace)
        except (ConflictError, NotFoundError):
            return None
        return name

    def _spec(self, needed: Set) -> Object:
        time = self._written_now()
        spec: Object = {"holderIdentity": self._node, "acquireTime": time, "renewTime": time}
        return spec | ({"leaseDurationSeconds": needed.seconds} if needed.seconds else {})

    def _written_now(self) -> str:
        return self._now().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")

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
    kind = needed.prefix.removeprefix(needed.budget).strip(".")
    if kind == "window":
        return f"budget {needed.budget} lets no more than {limit} out within {needed.seconds} s"
    if kind:
        return f"budget {needed.budget} lets no more than {limit} out for the same fault within {needed.seconds} s"
    return f"budget {needed.budget} lets no more than {limit} be out at once"


def _set_label(needed: Set) -> str:
    """The set within its budget, as a label's value."""
    return _label(needed.prefix.removeprefix(needed.budget).strip(".") or "unavailable")


def _label(text: str) -> str:
    return text[-63:].lstrip("-._")
