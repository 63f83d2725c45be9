"""Burn-in of nodes in service: idle ones in turn, and those that must pass before they go back.

A test is a Pod on its node that asks for all of the node's GPUs and has a priority below everything. So the scheduler
itself keeps it from running beside other work on the GPUs and takes it away for real work at once; we only choose the
node and look whether it is idle, to spare the scheduler the asking. The Pod's name is the node's, so that there is one
at most, whoever leads. It has no rights: it writes its result on the node, where the agent reads and judges it.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from functools import partial

import structlog

from gpuhealth.api.names import (
    BURNIN_NODE,
    BURNIN_REASON_LABEL,
    BURNIN_TEMPLATE,
    GPU_RESOURCE,
    STATE_LABEL,
    TAINT,
    UNSCHEDULABLE_TAINT,
    NodeState,
)
from gpuhealth.api.report import BurninReason, QuarantineState
from gpuhealth.controller.budget_status import Budgets
from gpuhealth.controller.burnin_plan import Candidate, Room, in_order
from gpuhealth.controller.event_recorder import Telling
from gpuhealth.fleet import views as facts
from gpuhealth.fleet.fleet import Fleet
from gpuhealth.kube.client import JSON_PATCH, Client, Object, listing
from gpuhealth.kube.errors import (
    AlreadyExistsError,
    ApiError,
    ConflictError,
    InvalidError,
    NotFoundError,
    UnreadableError,
)
from gpuhealth.kube.kinds import NODES, POD_TEMPLATES, PODS
from gpuhealth.kube.objects import read
from gpuhealth.kube.selectors import matches
from gpuhealth.quarantine.slots import limit_of
from gpuhealth.runtime.settings import Settings
from gpuhealth.runtime.supervisor import raise_if_cancelled

log = structlog.get_logger()

_PAUSE_SECONDS = 1.0
_LOOK_SECONDS = 60.0  # time makes candidates, too
_BUSY_SECONDS = 600.0  # before a node is asked again that had other work
_LOOKS = 20  # at nodes, a round: in a fleet that is busy, each is a request for nothing
_BY_EXIT_CODE = {0: "passed", 2: "failed", 3: "stopped"}
OUTCOMES = {
    "passed": "the node has passed its burn-in",
    "failed": "the node has failed its burn-in: see kubectl get ghr",
    "stopped": "the burn-in was stopped before it was complete",
    "broken": "the burn-in's Pod ended without a result",
    "gave_way": "the burn-in gave way to other work",
    "unplaced": "the burn-in found no room on the node and was given up",
}


class Testing:
    """The burn-in plan, by the one controller that leads."""

    __test__ = False  # no test of pytest's

    def __init__(
        self,
        client: Client,
        fleet: Fleet,
        budgets: Budgets,
        settings: Settings,
        telling: Telling,
        now: Callable[[], datetime],
    ) -> None:
        self.outcomes: Counter[str] = Counter()  # of tests that are over
        self._client = client
        self._fleet = fleet
        self._budgets = budgets
        self._settings = settings.controller.periodic
        self._marks = settings.mode != "observe"
        self._telling = telling
        self._now = now
        self._not_before: dict[str, float] = {}  # by node, on the steady clock
        self._unplaced_since: dict[str, float] = {}  # by pod
        self._known: dict[str, facts.Test] = {}  # by uid: what there is, and what we have just made
        self._told: set[str] = set()  # uids of those whose end was told

    async def run(self) -> None:
        """Until cancelled."""
        await self._fleet.rounds(self._round, _PAUSE_SECONDS)

    async def _round(self) -> float:
        """Looks after the tests and begins new ones; seconds until the next look."""
        try:
            await self._follow_the_plan()
        except ApiError as error:
            raise_if_cancelled()
            log.warning("burn-in scheduling failed", error=str(error))
        return self._settings.pending_timeout if self._unplaced_since else _LOOK_SECONDS

    async def _follow_the_plan(self) -> None:
        self._known |= {test.uid: test for test in self._fleet.tests.items.values()}
        for test in list(self._known.values()):
            if self._is_listed(test) or not await self._is_gone(test):
                await self._look_after(test)
                continue
            del self._known[test.uid]
            if test.uid not in self._told:  # it went between two looks
                await self._tell(test, "gave_way")
        self._told &= self._known.keys()
        self._unplaced_since = {uid: at for uid, at in self._unplaced_since.items() if uid in self._known}
        tested = self._tested()
        for node in list(self._fleet.nodes.items.values()):
            if node.state == NodeState.TESTING and node.key not in tested:
                await self._mark(node, facts.state_without_test(self._fleet.reports.items.get(node.key)))
        await self._begin()

    def _tested(self) -> set[str]:
        return {test.node for test in self._known.values()}

    def _is_listed(self, test: facts.Test) -> bool:
        listed = self._fleet.tests.items.get(test.key)
        return listed is not None and listed.uid == test.uid

    async def _is_gone(self, test: facts.Test) -> bool:
        # The watch may not have told yet of one that we have just made.
        try:
            found = await self._client.get(PODS, test.key, self._fleet.namespace)
        except NotFoundError:
            return True
        return bool(found["metadata"]["uid"] != test.uid)

    # --- what is under way --------------------------------------------------------------------------------------------

    async def _look_after(self, test: facts.Test) -> None:
        if test.over:
            await self._end(test, _BY_EXIT_CODE.get(-1 if test.exit_code is None else test.exit_code, "broken"))
        elif test.deleting and test.uid not in self._told:
            await self._tell(test, "gave_way")
        elif not test.bound and not test.deleting:
            since = self._unplaced_since.setdefault(test.uid, time.monotonic())
            if time.monotonic() - since > self._settings.pending_timeout:
                await self._end(test, "unplaced")

    async def _end(self, test: facts.Test, outcome: str) -> None:
        """Takes the Pod away: its result lies on the node."""
        if not test.deleting:
            with contextlib.suppress(ConflictError, NotFoundError):
                await self._client.delete(PODS, test.key, self._fleet.namespace, uid=test.uid)
        if test.uid not in self._told:
            await self._tell(test, outcome)

    async def _tell(self, test: facts.Test, outcome: str) -> None:
        self._told.add(test.uid)
        self.outcomes[outcome] += 1
        if outcome != "passed":
            self._not_before[test.node] = time.monotonic() + _BUSY_SECONDS
        log.info("burn-in finished", node=test.node, outcome=outcome, reason=test.reason, end=test.end)
        reason = "Burnin" + "".join(word.capitalize() for word in outcome.split("_"))
        end = f": {test.end}" if outcome == "broken" and test.end else ""
        await self._telling.of_node(test.node, reason, OUTCOMES[outcome] + end, warning=outcome in ("failed", "broken"))

    # --- what is next -------------------------------------------------------------------------------------------------

    async def _begin(self) -> None:
        """Begins as many tests as there is room for."""
        candidates = in_order(self._candidates())
        if not candidates:
            return
        room, looks = self._room(), _LOOKS
        for candidate in candidates:
            if not room.has(candidate):
                continue
            if looks == 0:
                return
            looks -= 1
            if await self._is_busy(candidate.node):
                self._not_before[candidate.node] = time.monotonic() + _BUSY_SECONDS
            elif await self._start(candidate):
                room.take(candidate)

    def _candidates(self) -> list[Candidate]:
        now, tested = time.monotonic(), self._tested()
        self._not_before = {node: at for node, at in self._not_before.items() if at > now}
        spared = tested | self._not_before.keys()
        nodes = (node for node in self._fleet.nodes.items.values() if node.key not in spared)
        return [candidate for node in nodes if (candidate := self._candidate(node))]

    def _candidate(self, node: facts.Node) -> Candidate | None:
        report = self._fleet.reports.items.get(node.key)
        if report is None or node.overridden or not node.ready or not node.gpus or node.key in self._fleet.silent:
            return None
        pool = self._fleet.pool(node)
        if report.quarantine.state == QuarantineState.AWAITING_TEST:
            return Candidate(node.key, pool, BurninReason.RETURN, report.tested)
        if node.tainted or node.preflight or node.cordoned or report.quarantine.state != QuarantineState.NONE:
            return None
        age = (self._now() - report.tested).total_seconds() if report.tested else None
        if not self._settings.enabled or (age is not None and age < self._settings.every):
            return None
        return Candidate(node.key, pool, BurninReason.PERIODIC, report.tested, self._budgets_of(node))

    def _budgets_of(self, node: facts.Node) -> tuple[str, ...]:
        bodies = self._fleet.budgets.items.values()
        return tuple(each.key for each in bodies if matches(each.body["spec"]["nodeSelector"], node.labels))

    def _room(self) -> Room:
        nodes = self._fleet.nodes.items
        sizes = Counter(self._fleet.pool(node) for node in nodes.values() if node.gpus)
        limits = {pool: limit_of(self._settings.max_per_pool, size) for pool, size in sizes.items()}
        standings = self._budgets.standings
        places = {name: standings[name].limit - standings[name].used if name in standings else 0 for name in standings}
        under_way = [
            Candidate(test.node, self._fleet.pool(node), test.reason, budgets=self._budgets_of(node))
            for test in self._known.values()
            if (node := nodes.get(test.node))
        ]
        return Room(limits, places, under_way)

    async def _is_busy(self, node: str) -> bool:
        """Whether something there uses GPUs. The scheduler would find out as well; this spares it the asking."""
        query = {"fieldSelector": f"spec.nodeName={node}", "resourceVersion": "0"}  # from the server's cache
        pods = await self._client.request("GET", PODS.path(), query=query)
        return any(_may_use_gpus(pod) for pod in listing(PODS, pods).items)

    async def _start(self, candidate: Candidate) -> bool:
        """Makes the Pod; whether it is there."""
        node = self._fleet.nodes.items.get(candidate.node)
        if node is None:
            return False
        try:
            template = await self._client.get(POD_TEMPLATES, BURNIN_TEMPLATE, self._fleet.namespace)
        except NotFoundError:
            log.error("burn-in impossible: PodTemplate missing", name=BURNIN_TEMPLATE)  # noqa: TRY400 - one sentence
            return False
        pod = partial(pod_of, candidate=candidate, gpus=node.gpus, level=self._settings.level)
        body = read(POD_TEMPLATES.kind, template, lambda template: pod(template["template"]))
        try:
            made = facts.test(await self._client.create(PODS, body, self._fleet.namespace))
        except AlreadyExistsError:  # that of a controller that led before us: the watch will tell of it
            return False
        self._known[made.uid] = made
        log.info("burn-in started", node=node.key, reason=candidate.reason, level=self._settings.level)
        if candidate.reason == BurninReason.PERIODIC:
            await self._mark(node, NodeState.TESTING)
        await self._telling.of_node(node.key, "BurninStarted", f"burn-in, level {self._settings.level}")
        return True

    async def _mark(self, node: facts.Node, state: str) -> None:
        """Changes our label, unless somebody else has just done so."""
        if not self._marks:
            return
        path = "/metadata/labels/" + STATE_LABEL.replace("/", "~1")
        patch = [{"op": "test", "path": path, "value": node.state}, {"op": "replace", "path": path, "value": state}]
        with contextlib.suppress(InvalidError, NotFoundError):  # what it is now will be told by the watch
            await self._client.patch(NODES, node.key, patch, content_type=JSON_PATCH)


def _may_use_gpus(pod: Object) -> bool:
    try:
        return read(PODS.kind, pod, uses_gpus)
    except UnreadableError as error:  # one that cannot be read may be at work
        log.warning("unreadable pod: its node counts as busy", error=str(error))
        return True


def uses_gpus(pod: Object) -> bool:
    """Whether the pod has GPUs: by the device plugin's resources (also MIG's), or by a claim that could be for one."""
    if pod.get("status", {}).get("phase") in {"Succeeded", "Failed"}:
        return False
    spec = pod["spec"]
    asked = [
        name
        for container in [*spec.get("containers", []), *(spec.get("initContainers") or [])]
        for amounts in (container.get("resources") or {}).values()
        if isinstance(amounts, dict)
        for name in amounts
    ]
    return any(name.startswith("nvidia.com/") for name in asked) or bool(spec.get("resourceClaims"))


def pod_of(template: Object, candidate: Candidate, gpus: int, level: str) -> Object:
    """The Pod that tests a node: the template, its node, all its GPUs."""
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
    here = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [candidate.node]}]}
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
                "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [here]}}
            },
            "tolerations": tolerations,
            "containers": [{**first, "args": args, "resources": {**resources, "limits": limits}}, *others],
            "restartPolicy": "Never",
        },
    }
