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

A node that is out holds a slot of maxUnavailable in every budget that selects it now. Budgets and labels change while
it is out: its agent looks when its labels change and about once a minute (`Places.keep`), and the controller takes
slots in the name of nodes whose agent has not. A full budget takes nothing back: the node stays out beside those that
hold the slots, which the budget's status shows as `uncounted`. What this bounds, and when:

* One budget that stays as it is: never more nodes out than its limit, whatever crashes or races, without a controller.
* A budget that is new, renamed, or selects other nodes: the same from its first moment. Until the controller has
  written in its status that every node that is out holds a slot (`is_counted`), who wants a slot first counts the
  nodes that are out, or hold a slot of any budget, and have none of this one (`census`); as many names fewer are open.
  Who took its slots before the budget was there lists the budgets again before its taint (`Places.acquire`), and so
  either holds a slot of the new one or was counted. Without a controller this is done for every slot.
* A node that gets other labels while it is out: where the budget is counted by a controller, another node may go out in
  the moment until the agent (by its watch) or the controller (within seconds) has taken the slot. A node whose agent
  is gone, in a cluster whose controller is gone too, is not counted in a budget that was counted before.
* A person's wish, and a surplus that a lower limit or other labels leave, are beyond the limit; both count against it.
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

import msgspec

from gpuhealth.api.budget import Amount
from gpuhealth.api.names import (
    BUDGET_LABEL,
    FAULT_SLOTS,
    RESERVED_SLOT_PREFIX,
    SLOT_NODE_LABEL,
    SLOT_SET_LABEL,
    UNAVAILABLE_SLOTS,
    WINDOW_SLOTS,
)
from gpuhealth.kube.client import Object
from gpuhealth.kube.selectors import matches
from gpuhealth.runtime.settings import seconds

MAX_WINDOW = 365 * 86400
"""Seconds. A Lease cannot last much longer, and no window of use is longer."""


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
    uncounted: int = 0  # nodes that are out and hold no slot of it

    @property
    def room(self) -> int:
        """How many slots may be taken."""
        return max(0, self.limit - self.uncounted)


class Admitted(msgspec.Struct, frozen=True):
    """The node may be taken out; these are its places."""

    places: tuple[str, ...]
    taken: tuple[str, ...]  # just now; the others were held already


class Held(msgspec.Struct, frozen=True):
    """The node stays in service: no slot can be had for it."""

    budget: str  # empty where it is none of a budget's limits
    limit: str  # a Limit; or UNREADABLE, NO_BUDGET, ERROR
    reason: str


UNREADABLE, NO_BUDGET, ERROR = "unreadable", "no_budget", "error"
"""Where no limit of a budget holds a node: the budget cannot be read, there is none, or no slot can be sought."""


class NoBudget(msgspec.Struct, frozen=True):
    """No budget selects the node, so nothing is taken out."""


Outcome: TypeAlias = Admitted | Held | NoBudget


class BudgetError(ValueError):
    """A budget that cannot be read; the text says what is wrong with it."""


_MALFORMED = (KeyError, TypeError, ValueError, AttributeError, OverflowError)  # what reading any JSON may raise


def selects(budget: Object, labels: Mapping[str, str]) -> bool:
    """Whether the budget is for a node with these labels. Raises BudgetError."""
    try:
        return matches(budget["spec"]["nodeSelector"], labels)
    except _MALFORMED as error:
        raise BudgetError(f"its nodeSelector cannot be read: {error!r}") from None


def limit_of(amount: int | str, size: int) -> int:
    """A count, or a percentage of `size`. Raises BudgetError."""
    if isinstance(amount, int):
        return amount
    try:
        percent = float(amount.rstrip("%"))
        return max(1, int(size * percent / 100)) if percent > 0 and size > 0 else 0
    except _MALFORMED:
        raise BudgetError(f"{amount!r} is neither a count nor a percentage such as 10%") from None


def has_percentage(budget: Object) -> bool:
    """Whether the number of nodes that it selects has to be known. Raises BudgetError."""
    try:
        limits = msgspec.convert(budget["spec"], _Limits)
        amounts = (limits.max_unavailable, limits.max_per_window, limits.max_per_fault)
        return any(isinstance(amount, str) for amount in amounts)
    except _MALFORMED as error:
        raise BudgetError(f"its spec cannot be read: {error!r}") from None


def is_counted(budget: Object) -> bool:
    """Whether the controller has found that every node that is out and that the budget now selects holds a slot."""
    status, generation = _counts(budget), budget["metadata"].get("generation")
    return status.counted and generation is not None and status.observed_generation == generation


def counted_size(budget: Object) -> int | None:
    """How many nodes the budget selects, as the controller has counted; None where it has not."""
    return _counts(budget).size


class _Counts(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The fields of a budget's status that are read: what is odd in another one costs nothing here."""

    observed_generation: int | None = None
    counted: bool = False
    size: int | None = None


def _counts(budget: Object) -> _Counts:
    try:
        return msgspec.convert(budget.get("status") or {}, _Counts)
    except msgspec.ValidationError:  # as if the controller had not counted
        return _Counts()


def sets_of(budget: Object, size: int, code: str) -> list[Set]:
    """The sets in which a quarantine for `code` needs a place, that of maxUnavailable first. Raises BudgetError."""
    try:
        return list(_sets(budget["metadata"]["name"], budget, size, code))
    except BudgetError:
        raise
    except _MALFORMED as error:
        raise BudgetError(f"its spec cannot be read: {error!r}") from None


class _Limits(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The fields of a budget's spec that bound slots: what is odd in another one costs nothing here."""

    max_unavailable: Amount
    max_per_window: Amount | None = None
    max_per_fault: Amount | None = None
    window: str = "1h"


def _sets(name: str, budget: Object, size: int, code: str) -> Iterator[Set]:
    limits = msgspec.convert(budget["spec"], _Limits)
    changed = budget["metadata"].get("generation", 1) != 1
    yield Set(name, name, Limit.UNAVAILABLE, limit_of(limits.max_unavailable, size), changed=changed)
    per_window, per_fault = limits.max_per_window, limits.max_per_fault
    if per_window is None and per_fault is None:
        return
    window = float(str(seconds(limits.window)))
    if not 0 < window <= MAX_WINDOW:
        raise BudgetError(f"its window is {limits.window}, and has to be more than 0 and at most 365d")
    lasts = math.ceil(window)
    if per_window is not None:
        yield Set(f"{name}.{WINDOW_SLOTS}", name, Limit.PER_WINDOW, limit_of(per_window, size), lasts, changed)
    if per_fault is not None:
        word = re.sub(r"[^a-z0-9.]+", "-", code.lower()).strip("-.")
        yield Set(f"{name}.{FAULT_SLOTS}.{word}", name, Limit.PER_FAULT, limit_of(per_fault, size), lasts, changed)


class Taken(msgspec.Struct, frozen=True):
    """A slot that somebody holds, as its Lease says."""

    name: str
    budget: str
    holder: str
    seconds: int  # how long it holds; 0: until it is given back
    ends: datetime | None  # None: it does not run out, or when is not known
    fault: str  # why the Lease cannot be read in full; such a slot is taken and does not run out
    body: Object

    @property
    def prefix(self) -> str:
        """Of its set."""
        return self.name.rpartition(".")[0]

    @property
    def node(self) -> str:
        """That holds it, or that the controller has taken it for."""
        return self.holder.removeprefix(RESERVED_SLOT_PREFIX)

    def has_run_out(self, now: datetime) -> bool:
        """Whether it may be taken over."""
        return not self.fault and self.ends is not None and self.ends <= now


def taken(lease: Object) -> Taken:
    """Reads the Lease of a slot, whatever somebody has written in it."""
    metadata = lease["metadata"]
    spec, labels = _dict(lease.get("spec")), _dict(metadata.get("labels"))
    budget = str(labels.get(BUDGET_LABEL) or metadata["name"].partition(".")[0])
    holder, lasts, ends, fault = spec.get("holderIdentity"), spec.get("leaseDurationSeconds") or 0, None, ""
    if not isinstance(holder, str) or not holder:
        holder, fault = "", "it names no holder"
    if "." not in metadata["name"].rpartition(".")[0]:  # one of maxUnavailable: somebody else has given it a duration
        lasts = 0
    elif not isinstance(lasts, int) or lasts < 0:
        lasts, fault = 0, f"its duration is {lasts!r}"
    elif lasts:
        try:
            ends = renewed(lease) + timedelta(seconds=lasts)
        except (ValueError, OverflowError) as error:
            fault = f"when it runs out cannot be told: {error}"
    return Taken(metadata["name"], budget, holder, lasts, ends, fault, lease)


def _dict(value: Any) -> Object:
    return value if isinstance(value, dict) else {}


def renewed(lease: Object) -> datetime:
    """When the Lease of a slot was last written by its holder. Raises ValueError where that is no time."""
    text = _dict(lease.get("spec")).get("renewTime")
    try:
        time = datetime.fromisoformat(str(text))
    except ValueError:
        raise ValueError(f"renewTime {text!r} is no time") from None
    if time.tzinfo is None:
        raise ValueError(f"renewTime {text!r} has no zone")
    return time


def open_names(needed: Set, held: Iterable[str]) -> list[str]:
    """The names of a set that may be taken or are, given the places that are held, some perhaps beyond the limit.

    For each place that is held beyond the names that are left, one name less is open: so there are never more holders
    than the limit, whichever of these names are taken at once by others who have seen the same or less held.
    """
    numbers = sorted((int(name.rpartition(".")[2]) for name in held), reverse=True)
    size = needed.room
    for beyond, number in enumerate(numbers, 1):
        if number < size:
            break
        size = max(0, needed.room - beyond)
    return [f"{needed.prefix}.{k}" for k in range(size)]


def taken_place(needed: Set, name: str, holder: str, now: datetime) -> Object:
    """The Lease of a place for its holder."""
    labels = {BUDGET_LABEL: needed.budget, SLOT_SET_LABEL: set_label(needed), SLOT_NODE_LABEL: label(holder)}
    return {"metadata": {"name": name, "labels": labels}, "spec": lease_spec(needed, holder, now)}


def lease_spec(needed: Set, holder: str, now: datetime) -> Object:
    """What the Lease of a slot says from now on."""
    spec: Object = {"holderIdentity": holder, "acquireTime": lease_time(now), "renewTime": lease_time(now)}
    return spec | ({"leaseDurationSeconds": needed.seconds} if needed.seconds else {})


def lease_time(now: datetime) -> str:
    """A time as a Lease has it."""
    return now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def why_held(needed: Set) -> str:
    """Why nobody gets a slot of a set that is full."""
    limit = f"{needed.limit} node{'' if needed.limit == 1 else 's'}"
    what = {
        Limit.UNAVAILABLE: f"{limit} be out at once",
        Limit.PER_WINDOW: f"{limit} out within {needed.seconds} s",
        Limit.PER_FAULT: f"{limit} out for the same fault within {needed.seconds} s",
    }
    others = f", and {needed.uncounted} that are out hold no slot of it" if needed.uncounted else ""
    return f"budget {needed.budget} lets no more than {what[needed.kind]}{others}"


def is_slot_of(needed: Set, name: str) -> bool:
    """Whether a Lease of that name is a slot of the set."""
    prefix, _, number = name.rpartition(".")
    return prefix == needed.prefix and number.isdecimal()


def set_label(needed: Set) -> str:
    """The set within its budget, as a label's value."""
    return label(needed.prefix.removeprefix(needed.budget).strip(".") or UNAVAILABLE_SLOTS)


def label(text: str) -> str:
    """A name as a label's value: its end, where it is too long."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", text)[-63:].lstrip("-._")
