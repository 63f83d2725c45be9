"""Writes the status of QuarantineBudgets: size, limit, slots taken, nodes blocked.

Agents do not depend on it: where no status gives a size they count nodes themselves, and the API server bounds the
slots. The status saves them the counting, and shows people how each budget stands.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime

import structlog

from gpuhealth.api import metrics as names
from gpuhealth.api.budget import BudgetCondition, BudgetStatus
from gpuhealth.api.names import FAULT_LIMIT_REACHED
from gpuhealth.api.resource import body
from gpuhealth.controller.budget_nodes import BudgetNodes, nodes_of
from gpuhealth.controller.duty import Duty, DutyContext
from gpuhealth.fleet.views import BudgetView
from gpuhealth.kube.errors import ApiError, NotFoundError
from gpuhealth.kube.kinds import BUDGETS
from gpuhealth.model.time import format_time
from gpuhealth.quarantine.condition import condition_reason
from gpuhealth.quarantine.report import merge_patch
from gpuhealth.quarantine.slots.budget import BudgetError, Limit, slot_sets
from gpuhealth.quarantine.slots.lease import SlotStore
from gpuhealth.runtime.metric_families import Metric, family
from gpuhealth.runtime.supervisor import raise_if_cancelled

log = structlog.get_logger()

NAMES = 100
"""Nodes that a status names at most: it is for people, and the size of an object is limited."""


class BudgetStatusWriter(Duty):
    """Keeps the status of every budget current."""

    name = "budget_status"

    def __init__(self, context: DutyContext) -> None:
        super().__init__(context)
        self.status = context.budgets
        self._holders = context.holders
        self._slots = SlotStore(context.client, context.fleet.namespace)
        self._unchanged: dict[str, tuple[tuple[str, int], float]] = {}  # by budget: uid and generation, and since when

    async def run(self) -> None:
        """Write changed statuses after each change in the fleet, until cancelled."""
        await self._fleet.repeat_on_change(self._round, self._timing.round_pause)

    async def _round(self) -> float | None:
        """Write every status that has changed; seconds until the next round is due without any change."""
        due = []
        budgets = self._fleet.budgets.items
        for budget in list(budgets.values()):
            try:
                due.append(await self._update(budget))
            except ApiError as error:  # one budget that cannot be written must not delay the others
                raise_if_cancelled()
                retry = self._timing.retry
                log.warning("budget status write failed", budget=budget.key, error=str(error), retry_in=retry)
                due.append(retry)
            except (BudgetError, KeyError, TypeError, ValueError, AttributeError) as error:
                self._client.unreadable.note(BUDGETS, budget.body, f"{error!r}; for agents it allows nothing")
        for slot in list(self._fleet.slots.items.values()):
            if slot.fault:
                lease = {"metadata": {"name": slot.key, "resourceVersion": slot.version}}
                self._slots.note_unreadable(lease, slot.fault)
        for known in (self.status, self._holders, self._unchanged):
            for gone in known.keys() - budgets.keys():
                del known[gone]
        return min((seconds for seconds in due if seconds is not None), default=None)

    async def _update(self, budget: BudgetView) -> float | None:
        """Count and write one budget's status; seconds until that is due again without any change."""
        nodes = await nodes_of(budget, self._fleet)
        settles_in = self._settles_in(budget)
        status = self._status(budget, nodes, counted=settles_in <= 0 and not nodes.uncounted)
        self.status[budget.key] = status
        if patch := merge_patch(budget.body.get("status"), body(status)):
            try:
                await self._client.patch(BUDGETS, budget.key, {"status": patch}, subresource="status")
            except NotFoundError:
                log.debug("budget deleted", budget=budget.key)
        self._holders[budget.key] = frozenset(slot.node for slot in nodes.slots)
        return settles_in if settles_in > 0 else None

    def _status(self, budget: BudgetView, nodes: BudgetNodes, *, counted: bool) -> BudgetStatus:
        """The whole status as the API server should have it."""
        holders = sorted({slot.holder for slot in nodes.slots if not slot.reserved_for})
        blocked = self._fleet.blocked_nodes.get(budget.key, set())
        blocked_by_code = {
            quarantine.code: count
            for quarantine, count in self._fleet.blocked.items()
            if quarantine.budget == budget.key and quarantine.limit == Limit.PER_FAULT
        }
        return BudgetStatus(
            observed_generation=budget.body["metadata"]["generation"],
            size=nodes.size,
            limit=slot_sets(budget.body, nodes.size, "")[0].limit,
            used=len(nodes.slots),
            unavailable=len(nodes.unavailable),
            uncounted=len(nodes.uncounted),
            counted=counted,
            blocked=len(blocked),
            blocked_nodes=tuple(sorted(blocked)[:NAMES]),
            conditions=(_fault_limit(blocked_by_code, budget, self._clock()),),
            nodes=tuple(holders[:NAMES]),
        )

    def _settles_in(self, budget: BudgetView) -> float:
        """Seconds until the budget has been unchanged for long enough; not above 0 if it has."""
        metadata, now = budget.body["metadata"], time.monotonic()
        version = (metadata["uid"], metadata["generation"])
        if self._unchanged.get(budget.key, (None,))[0] != version:
            self._unchanged[budget.key] = version, now
        return self._unchanged[budget.key][1] + self._timing.budget_settling - now

    def gauges(self) -> Iterator[Metric]:
        """Slots and nodes of each budget."""
        used = [(name, status.used) for name, status in self.status.items()]
        yield family(names.BUDGET_USED, used)
        limits = [(name, status.limit) for name, status in self.status.items()]
        yield family(names.BUDGET_LIMIT, limits)
        uncounted = [(name, status.uncounted) for name, status in self.status.items()]
        yield family(names.BUDGET_UNCOUNTED_NODES, uncounted)
        blocked = [(*quarantine, count) for quarantine, count in self._fleet.blocked.items()]
        yield family(names.QUARANTINE_BLOCKED_NODES, blocked)


def _fault_limit(blocked: dict[str, int], budget: BudgetView, now: datetime) -> BudgetCondition:
    """Make the condition FaultLimitReached. `blocked`: nodes that maxPerFault keeps in service, by finding code."""
    status = "True" if blocked else "False"
    reason, message = "BelowLimit", "no node is blocked by maxPerFault"
    if blocked:
        worst = max(blocked, key=lambda code: blocked[code])
        nodes = ", ".join(f"{code} on {count}" for code, count in sorted(blocked.items()))
        reason = condition_reason(worst)
        message = f"more nodes than maxPerFault allows have the same fault: suspect a driver or check; blocked: {nodes}"
    known, since = budget.condition, format_time(now)
    if known is not None and known.status == status:
        since = known.last_transition_time
    return BudgetCondition(
        type=FAULT_LIMIT_REACHED,
        status=status,
        observed_generation=budget.body["metadata"]["generation"],
        last_transition_time=since,
        reason=reason,
        message=message,
    )
