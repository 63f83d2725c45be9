"""Schedules burn-ins of nodes in service: idle nodes in turn, and nodes that must pass one before they return.

A burn-in is a Pod on its node that requests all of the node's GPUs with a priority below everything. So the scheduler
keeps it from sharing GPUs with other work, and preempts it for real work at once. This duty only chooses the node, and
skips busy nodes to save the scheduler the attempts. The Pod is named after its node, so there is at most one, no matter
which process leads. The Pod has no rights: it writes its result on the node, where the agent reads and judges it.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial

import msgspec
import structlog

from gpuhealth.api import metrics as names
from gpuhealth.api.names import (
    BURNIN_NODE,
    BURNIN_REASON_LABEL,
    BURNIN_TEMPLATE,
    GPU_RESOURCE,
    TAINT,
    UNSCHEDULABLE_TAINT,
    NodeState,
)
from gpuhealth.api.report import BurninReason, QuarantineState
from gpuhealth.controller.burnin_plan import BurninCandidate, BurninCapacity, by_urgency
from gpuhealth.controller.duty import Duty, DutyContext
from gpuhealth.fleet import views
from gpuhealth.kube.client import Object, listing
from gpuhealth.kube.errors import AlreadyExistsError, ApiError, ConflictError, NotFoundError, UnreadableError
from gpuhealth.kube.event_recorder import node_subject
from gpuhealth.kube.kinds import POD_TEMPLATES, PODS
from gpuhealth.kube.objects import read
from gpuhealth.kube.selectors import matches
from gpuhealth.quarantine.slots.budget import limit_of
from gpuhealth.quarantine.state import StateEvent, burnin_ended
from gpuhealth.quarantine.state_label import change_label
from gpuhealth.runtime.metric_families import Metric, family
from gpuhealth.runtime.supervisor import raise_if_cancelled

log = structlog.get_logger()

_MAX_NODE_CHECKS = 20  # in a round; in a busy fleet each is a request without effect
_BY_EXIT_CODE = {0: "passed", 2: "failed", 3: "stopped"}
OUTCOMES = {
    "passed": "the node passed its burn-in",
    "failed": "the node failed its burn-in: see kubectl get ghr",
    "stopped": "the burn-in was stopped before it was complete",
    "error": "the burn-in Pod ended without a result",
    "preempted": "the burn-in Pod was removed in favor of other work",
    "unschedulable": "the burn-in Pod could not be scheduled on the node and was deleted",
}
"""How a burn-in can end, and the message of its Event."""


class BurninStatus(msgspec.Struct):
    """Burn-ins that have ended since this process started."""

    outcomes: Counter[str] = msgspec.field(default_factory=Counter)  # by a key of OUTCOMES


class BurninScheduler(Duty):
    """Starts burn-ins as capacity allows, and cleans up after those that have ended."""

    name = "burnin_scheduler"

    def __init__(self, context: DutyContext) -> None:
        super().__init__(context)
        self.status = BurninStatus()
        self._budgets = context.budgets
        self._settings = context.settings.controller.periodic
        self._marks = context.settings.mode != "observe"
        self._not_before: dict[str, float] = {}  # by node, on the monotonic clock
        self._pending_since: dict[str, float] = {}  # by uid, on the monotonic clock
        self._burnins: dict[str, views.BurninPod] = {}  # by uid: listed ones, and those that were just created
        self._recorded: set[str] = set()  # uids of burn-ins whose end is recorded

    async def run(self) -> None:
        """Schedule after each change in the fleet, and at intervals, until cancelled."""
        await self._fleet.repeat_on_change(self._round, self._timing.round_pause)

    async def _round(self) -> float:
        """Clean up and start burn-ins; seconds until the next round without any change."""
        try:
            await self._clean_up()
            await self._start_next()
        except ApiError as error:
            raise_if_cancelled()
            log.warning("burn-in scheduling failed", error=str(error))
        return self._settings.pending_timeout if self._pending_since else self._timing.burnin_interval

    # --- running burn-ins ---------------------------------------------------------------------------------------------

    async def _clean_up(self) -> None:
        """Record and delete burn-ins that have ended, and correct labels of nodes without one."""
        self._burnins |= {burnin.uid: burnin for burnin in self._fleet.burnins.items.values()}
        for burnin in list(self._burnins.values()):
            if self._is_listed(burnin) or not await self._is_gone(burnin):
                await self._follow_up(burnin)
                continue
            del self._burnins[burnin.uid]
            if burnin.uid not in self._recorded:  # it was deleted between two rounds
                await self._record_end(burnin, "preempted")
        self._recorded &= self._burnins.keys()
        self._pending_since = {uid: since for uid, since in self._pending_since.items() if uid in self._burnins}
        nodes_under_test = self._nodes_under_test()
        for node in list(self._fleet.nodes.items.values()):
            if node.state == NodeState.TESTING and node.key not in nodes_under_test:
                report = self._fleet.reports.items.get(node.key)
                await self._mark(node, burnin_ended(healthy=report is not None and report.healthy))

    def _nodes_under_test(self) -> set[str]:
        return {burnin.node for burnin in self._burnins.values()}

    def _is_listed(self, burnin: views.BurninPod) -> bool:
        listed = self._fleet.burnins.items.get(burnin.key)
        return listed is not None and listed.uid == burnin.uid

    async def _is_gone(self, burnin: views.BurninPod) -> bool:
        # The watch may not show a Pod yet that was just created.
        try:
            found = await self._client.get(PODS, burnin.key, self._fleet.namespace)
        except NotFoundError:
            return True
        return bool(found["metadata"]["uid"] != burnin.uid)

    async def _follow_up(self, burnin: views.BurninPod) -> None:
        """Delete a burn-in that has ended or was not scheduled in time; record the end of one that is deleted."""
        if burnin.finished:
            await self._end(burnin, _BY_EXIT_CODE.get(-1 if burnin.exit_code is None else burnin.exit_code, "error"))
        elif burnin.deleting and burnin.uid not in self._recorded:
            await self._record_end(burnin, "preempted")
        elif not burnin.scheduled and not burnin.deleting:
            since = self._pending_since.setdefault(burnin.uid, time.monotonic())
            if time.monotonic() - since > self._settings.pending_timeout:
                await self._end(burnin, "unschedulable")

    async def _end(self, burnin: views.BurninPod, outcome: str) -> None:
        """Delete the Pod, whose result is on the node, and record how it ended."""
        if not burnin.deleting:
            with contextlib.suppress(ConflictError, NotFoundError):
                await self._client.delete(PODS, burnin.key, self._fleet.namespace, uid=burnin.uid)
        if burnin.uid not in self._recorded:
            await self._record_end(burnin, outcome)

    async def _record_end(self, burnin: views.BurninPod, outcome: str) -> None:
        """Log, count and post how a burn-in ended. A node whose burn-in did not pass is skipped for a while."""
        self._recorded.add(burnin.uid)
        self.status.outcomes[outcome] += 1
        if outcome != "passed":
            self._not_before[burnin.node] = time.monotonic() + self._timing.burnin_backoff
        log.info(
            "burn-in finished", node=burnin.node, outcome=outcome, reason=burnin.reason, end_reason=burnin.end_reason
        )
        detail = f": {burnin.end_reason}" if outcome == "error" and burnin.end_reason else ""
        warning = outcome in {"failed", "error"}
        subject, reason = node_subject(burnin.node), f"Burnin{outcome.capitalize()}"
        await self._recorder.post(subject, reason, OUTCOMES[outcome] + detail, warning=warning)

    # --- next burn-ins ------------------------------------------------------------------------------------------------

    async def _start_next(self) -> None:
        """Start as many burn-ins as there is capacity for."""
        candidates = by_urgency(self._candidates())
        if not candidates:
            return
        capacity, checks_left = self._capacity(), _MAX_NODE_CHECKS
        for candidate in candidates:
            if not capacity.has(candidate):
                continue
            if checks_left == 0:
                return
            checks_left -= 1
            if await self._is_busy(candidate.node):
                self._not_before[candidate.node] = time.monotonic() + self._timing.burnin_backoff
            elif await self._start(candidate):
                capacity.take(candidate)

    def _candidates(self) -> list[BurninCandidate]:
        now = time.monotonic()
        self._not_before = {node: start for node, start in self._not_before.items() if start > now}
        skipped = self._nodes_under_test() | self._not_before.keys()
        nodes = (node for node in self._fleet.nodes.items.values() if node.key not in skipped)
        return [candidate for node in nodes if (candidate := self._candidate(node))]

    def _candidate(self, node: views.NodeView) -> BurninCandidate | None:
        """Return the node as a candidate; None where it must not be tested now."""
        report = self._fleet.reports.items.get(node.key)
        if report is None or node.overridden or not node.ready or not node.gpus or node.key in self._fleet.silent_nodes:
            return None
        pool = self._fleet.pool(node)
        if report.quarantine.state == QuarantineState.AWAITING_TEST:
            return BurninCandidate(node=node.key, pool=pool, reason=BurninReason.RETURN, tested_at=report.tested_at)
        if node.tainted or node.preflight or node.cordoned or report.quarantine.state != QuarantineState.NONE:
            return None
        age = (self._clock() - report.tested_at).total_seconds() if report.tested_at else None
        if not self._settings.enabled or (age is not None and age < self._settings.every):
            return None
        return BurninCandidate(
            node=node.key,
            pool=pool,
            reason=BurninReason.PERIODIC,
            tested_at=report.tested_at,
            budgets=self._budgets_of(node),
        )

    def _budgets_of(self, node: views.NodeView) -> tuple[str, ...]:
        budgets = self._fleet.budgets.items.values()
        return tuple(budget.key for budget in budgets if matches(budget.body["spec"]["nodeSelector"], node.labels))

    def _capacity(self) -> BurninCapacity:
        nodes = self._fleet.nodes.items
        sizes = Counter(self._fleet.pool(node) for node in nodes.values() if node.gpus)
        limits = {pool: limit_of(self._settings.max_per_pool, size) for pool, size in sizes.items()}
        free_slots = {name: status.limit - status.used for name, status in self._budgets.items()}
        running = [
            BurninCandidate(
                node=burnin.node, pool=self._fleet.pool(node), reason=burnin.reason, budgets=self._budgets_of(node)
            )
            for burnin in self._burnins.values()
            if (node := nodes.get(burnin.node))
        ]
        return BurninCapacity(limits, free_slots, running)

    async def _is_busy(self, node: str) -> bool:
        """Whether a pod on the node may use GPUs. The scheduler would find out too; this saves it the attempt."""
        query = {"fieldSelector": f"spec.nodeName={node}", "resourceVersion": "0"}  # from the server's cache
        pods = await self._client.request("GET", PODS.path(), query=query)
        return any(_may_use_gpus(pod) for pod in listing(PODS, pods).items)

    async def _start(self, candidate: BurninCandidate) -> bool:
        """Create the burn-in Pod; return whether that succeeded."""
        node = self._fleet.nodes.items.get(candidate.node)
        if node is None:
            return False
        try:
            template = await self._client.get(POD_TEMPLATES, BURNIN_TEMPLATE, self._fleet.namespace)
        except NotFoundError:
            log.error("burn-in impossible: PodTemplate missing", name=BURNIN_TEMPLATE)  # noqa: TRY400 - one sentence
            return False
        make_pod = partial(burnin_pod, candidate=candidate, gpus=node.gpus, level=self._settings.level)
        body = read(POD_TEMPLATES.kind, template, lambda template: make_pod(template["template"]))
        try:
            created = views.burnin_pod(await self._client.create(PODS, body, self._fleet.namespace))
        except AlreadyExistsError:  # that of an earlier leader, which the watch will show
            return False
        self._burnins[created.uid] = created
        log.info("burn-in started", node=node.key, reason=candidate.reason, level=self._settings.level)
        if candidate.reason == BurninReason.PERIODIC:
            await self._mark(node, StateEvent.BURNIN_STARTED)
        await self._recorder.post(node_subject(node.key), "BurninStarted", f"burn-in, level {self._settings.level}")
        return True

    async def _mark(self, node: views.NodeView, event: StateEvent) -> None:
        """Change the state label, unless it was changed meanwhile: then the watch will show the new value."""
        if self._marks:
            await change_label(self._client, node.key, node.state, event)

    # --- metrics ------------------------------------------------------------------------------------------------------

    def counters(self) -> Iterator[Metric]:
        """Burn-ins by outcome; each outcome from the start, since a rate needs its zero."""
        outcomes = [(outcome, self.status.outcomes[outcome]) for outcome in OUTCOMES]
        yield family(names.BURNIN_TESTS, outcomes)

    def gauges(self) -> Iterator[Metric]:
        """Burn-ins that have not ended, by reason."""
        running = Counter(burnin.reason for burnin in self._fleet.burnins.items.values() if not burnin.finished)
        yield family(names.BURNIN_RUNNING, running.items())


def _may_use_gpus(pod: Object) -> bool:
    try:
        return read(PODS.kind, pod, uses_gpus)
    except UnreadableError as error:
        log.warning("unreadable pod: its node counts as busy", error=str(error))
        return True


def uses_gpus(pod: Object) -> bool:
    """Whether the pod has GPUs: by resources of the device plugin (also MIG), or by a claim that could be for one."""
    if pod.get("status", {}).get("phase") in {"Succeeded", "Failed"}:
        return False
    spec = pod["spec"]
    requested = [
        name
        for container in [*spec.get("containers", []), *(spec.get("initContainers") or [])]
        for amounts in (container.get("resources") or {}).values()
        if isinstance(amounts, dict)
        for name in amounts
    ]
    return any(name.startswith("nvidia.com/") for name in requested) or bool(spec.get("resourceClaims"))


def burnin_pod(template: Object, candidate: BurninCandidate, gpus: int, level: str) -> Object:
    """Make the Pod that tests a node from the template: on that node, with all its GPUs."""
    metadata, spec = template.get("metadata") or {}, template["spec"]
    first, *others = spec["containers"]
    resources = first.get("resources") or {}
    limits = {**(resources.get("limits") or {}), GPU_RESOURCE: str(gpus)}
    args = [*(first.get("args") or []), "--level", level, "--reason", candidate.reason]
    tolerations = list(spec.get("tolerations") or [])
    if candidate.reason == BurninReason.RETURN:
        tolerations += [
            {"key": TAINT, "operator": "Exists"},
            {"key": UNSCHEDULABLE_TAINT, "operator": "Exists"},  # mode cordon
        ]
    on_node = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [candidate.node]}]}
    return {
        "metadata": {
            **metadata,
            "name": f"burnin-{candidate.node}"[:253],
            "labels": {**(metadata.get("labels") or {}), BURNIN_REASON_LABEL: candidate.reason},
            "annotations": {**(metadata.get("annotations") or {}), BURNIN_NODE: candidate.node},
        },
        "spec": {
            **spec,
            # Not nodeName: the scheduler has to count the GPUs, and to preempt.
            "affinity": {
                "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [on_node]}}
            },
            "tolerations": tolerations,
            "containers": [{**first, "args": args, "resources": {**resources, "limits": limits}}, *others],
            "restartPolicy": "Never",
        },
    }
