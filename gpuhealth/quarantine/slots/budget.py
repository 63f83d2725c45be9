"""Reads QuarantineBudgets: the nodes they select, and their sets of slots. Pure."""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Iterable, Iterator, Mapping

import msgspec

from gpuhealth.api.budget import Amount
from gpuhealth.api.names import BUDGET_LABEL, FAULT_SLOTS, SLOT_SET_LABEL, UNAVAILABLE_SLOTS, WINDOW_SLOTS
from gpuhealth.kube.client import Object
from gpuhealth.kube.selectors import matches
from gpuhealth.runtime.settings import seconds

MAX_WINDOW = 365 * 86400
"""Maximum in seconds: a Lease cannot last much longer, and longer windows are useless."""


class Limit(enum.StrEnum):
    """The limits of a budget, by the names of their fields; each has a set of slots."""

    UNAVAILABLE = "maxUnavailable"
    PER_WINDOW = "maxPerWindow"
    PER_FAULT = "maxPerFault"


class SlotSet(msgspec.Struct, frozen=True, kw_only=True):
    """One set of slots of a budget: `limit` names that begin with `prefix`."""

    prefix: str
    budget: str
    kind: Limit
    limit: int
    seconds: int = 0  # for which a slot is held once it is taken; 0: until it is released
    changed: bool = False  # whether the limit may once have been higher
    uncounted: int = 0  # nodes that are out and hold no slot of it

    @property
    def room(self) -> int:
        """How many slots may be taken."""
        return max(0, self.limit - self.uncounted)

    def has_name(self, name: str) -> bool:
        """Whether a Lease of this name is a slot of the set."""
        prefix, _, number = name.rpartition(".")
        return prefix == self.prefix and number.isdecimal()

    def open_names(self, held: Iterable[str]) -> list[str]:
        """The names that may be taken or are, given the slots that are held, some perhaps beyond the limit.

        For each slot that is held beyond the names that are left, one name fewer is open: so there are never more
        holders than the limit, whichever of these names others take concurrently after seeing the same or fewer held.
        """
        numbers = sorted((int(name.rpartition(".")[2]) for name in held), reverse=True)
        size = self.room
        for beyond, number in enumerate(numbers, 1):
            if number < size:
                break
            size = max(0, self.room - beyond)
        return [f"{self.prefix}.{k}" for k in range(size)]

    def free_names(self, held: Iterable[str]) -> list[str]:
        """The names that may be taken and are not, given the slots that are held."""
        taken = set(held)
        return [name for name in self.open_names(taken) if name not in taken]

    @property
    def labels(self) -> dict[str, str]:
        """The labels by which the Leases of the set are found."""
        within = self.prefix.removeprefix(self.budget).strip(".") or UNAVAILABLE_SLOTS
        return {BUDGET_LABEL: self.budget, SLOT_SET_LABEL: label_value(within)}

    @property
    def full_message(self) -> str:
        """Why no node gets a slot of a set that is full."""
        nodes = f"{self.limit} node{'' if self.limit == 1 else 's'} out of service"
        scope = {
            Limit.UNAVAILABLE: "at once",
            Limit.PER_WINDOW: f"within {self.seconds} s",
            Limit.PER_FAULT: f"for the same fault within {self.seconds} s",
        }
        uncounted = f"; {self.uncounted} nodes are out without a slot" if self.uncounted else ""
        return f"budget {self.budget} allows at most {nodes} {scope[self.kind]}{uncounted}"


MAX_SLOTS = 100_000
"""Slots of one set, as the definition of budgets limits counts: their names are made one by one. The size of a budget,
of which a limit may be a percentage, has no bound."""


class BudgetError(ValueError):
    """A budget that cannot be read; the text has the reason."""


_MALFORMED = (KeyError, TypeError, ValueError, AttributeError, OverflowError)  # what reading any JSON may raise


def selects(budget: Object, labels: Mapping[str, str]) -> bool:
    """Whether the budget is for a node with these labels. Raises BudgetError."""
    try:
        return matches(budget["spec"]["nodeSelector"], labels)
    except _MALFORMED as error:
        raise BudgetError(f"its nodeSelector cannot be read: {error!r}") from None


def limit_of(amount: int | str, size: int) -> int:
    """A count, or a percentage of `size`, and MAX_SLOTS at the most. Raises BudgetError."""
    if isinstance(amount, int):
        return min(amount, MAX_SLOTS)
    try:
        percent = float(amount.rstrip("%"))
        return max(1, min(int(size * percent / 100), MAX_SLOTS)) if percent > 0 and size > 0 else 0
    except _MALFORMED:
        raise BudgetError(f"{amount!r} is neither a count nor a percentage such as 10%") from None


def has_percentage(budget: Object) -> bool:
    """Whether the number of nodes that the budget selects has to be known. Raises BudgetError."""
    try:
        limits = msgspec.convert(budget["spec"], _Limits)
        return any(
            isinstance(limit, str) for limit in (limits.max_unavailable, limits.max_per_window, limits.max_per_fault)
        )
    except _MALFORMED as error:
        raise BudgetError(f"its spec cannot be read: {error!r}") from None


def is_counted(budget: Object) -> bool:
    """Whether the controller has found that every node that is out and that the budget now selects holds a slot."""
    status, generation = _status(budget), budget["metadata"].get("generation")
    return status.counted and generation is not None and status.observed_generation == generation


def counted_size(budget: Object) -> int | None:
    """The number of nodes that the budget selects, as the controller has counted; None where it has not."""
    return _status(budget).size


class _Status(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The fields of a budget's status that are read: an odd value in another one costs nothing here."""

    observed_generation: int | None = None
    counted: bool = False
    size: int | None = None


def _status(budget: Object) -> _Status:
    try:
        return msgspec.convert(budget.get("status") or {}, _Status)
    except msgspec.ValidationError:  # as if the controller had not counted
        return _Status()


class _Limits(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The fields of a budget's spec that bound slots: an odd value in another one costs nothing here."""

    max_unavailable: Amount
    max_per_window: Amount | None = None
    max_per_fault: Amount | None = None
    window: str = "1h"


def slot_sets(budget: Object, size: int, code: str) -> list[SlotSet]:
    """The sets in which a quarantine for `code` needs a slot, that of maxUnavailable first.

    `size` is the number of nodes that the budget selects. Raises BudgetError.
    """
    try:
        return list(_slot_sets(budget["metadata"]["name"], budget, size, code))
    except BudgetError:
        raise
    except _MALFORMED as error:
        raise BudgetError(f"its spec cannot be read: {error!r}") from None


def _slot_sets(name: str, budget: Object, size: int, code: str) -> Iterator[SlotSet]:
    limits = msgspec.convert(budget["spec"], _Limits)
    changed = budget["metadata"].get("generation", 1) != 1
    limit = limit_of(limits.max_unavailable, size)
    yield SlotSet(prefix=name, budget=name, kind=Limit.UNAVAILABLE, limit=limit, changed=changed)
    per_window, per_fault = limits.max_per_window, limits.max_per_fault
    if per_window is None and per_fault is None:
        return
    window = float(str(seconds(limits.window)))
    if not 0 < window <= MAX_WINDOW:
        raise BudgetError(f"its window is {limits.window}, and has to be more than 0 and at most 365d")
    lasting = {"budget": name, "seconds": math.ceil(window), "changed": changed}
    if per_window is not None:
        limit = limit_of(per_window, size)
        yield SlotSet(prefix=f"{name}.{WINDOW_SLOTS}", kind=Limit.PER_WINDOW, limit=limit, **lasting)
    if per_fault is not None:
        word = re.sub(r"[^a-z0-9.]+", "-", code.lower()).strip("-.")
        limit = limit_of(per_fault, size)
        yield SlotSet(prefix=f"{name}.{FAULT_SLOTS}.{word}", kind=Limit.PER_FAULT, limit=limit, **lasting)


def label_value(text: str) -> str:
    """A name as a label's value: its last 63 characters, where it is longer."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", text)[-63:].lstrip("-._")
