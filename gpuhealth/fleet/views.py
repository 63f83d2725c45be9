"""Views of API objects: the few fields of each that the controller needs, checked. Pure functions.

The functions that make a view raise an error of any kind where the object holds a value that the view may not have. So
a view can be relied on, and an object that cannot be read is found while it is known which one it is.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import msgspec

from gpuhealth.api.names import (
    BURNIN_NODE,
    BURNIN_REASON_LABEL,
    FLEET_FINDINGS,
    GPU_RESOURCE,
    PREFLIGHT_TAINT,
    RESERVED_SLOT_PREFIX,
    STATE_LABEL,
    TAINT,
    NodeState,
)
from gpuhealth.api.report import Drain, Inventory, Quarantine
from gpuhealth.fleet.comparison import GpuResult
from gpuhealth.fleet.gpu_nodes import has_gpus
from gpuhealth.kube.client import Object
from gpuhealth.kube.errors import UnreadableError
from gpuhealth.kube.objects import labels_of, text_of
from gpuhealth.kube.selectors import check_selector
from gpuhealth.model.time import ZonedTime
from gpuhealth.model.verdict import State
from gpuhealth.quarantine.marks import (
    annotations_of,
    condition,
    is_ready,
    may_be_out,
    override,
    unschedulable,
)
from gpuhealth.quarantine.slots.budget import slot_sets
from gpuhealth.quarantine.slots.lease import read_slot

_MULTIPLES = {"k": 10**3, "M": 10**6, "G": 10**9}
"""Suffixes of a quantity that is a count; the API server writes 1000 as 1k."""
_MOST_RESULTS = 64
"""GPUs of one report that are compared with the fleet: an outlier is a sample, and a part of an annotation."""
_MOST_GPUS = 10_000  # of one node; a device plugin that shares GPUs offers hundreds
_SPEEDS = {"soak": "_tflops", "bandwidth": "_gigabytes_per_second", "collectives": "_gigabytes_per_second"}
"""Tests that measure the speed of a GPU, and how the names of those figures end."""


class NodeView(msgspec.Struct, frozen=True, kw_only=True):
    """A Node with the marks that matter to the controller."""

    key: str
    labels: dict[str, str]
    tainted: bool = False  # with the taint gpuhealth.io/unhealthy
    out: bool = False  # of service by our action, as its record shows
    ready: bool = True  # as its kubelet reports
    condition_reason: str = ""  # of the condition GPUHealthy
    cordoned: bool = False  # by any client
    gpus: int = 0  # whole GPUs that the device plugin offers
    has_gpus: bool = False  # as far as device plugin, labels or taints show
    uid: str = ""
    fleet_findings: str = ""  # the annotation of that name
    preflight: bool = False
    overridden: bool = False  # by a person's annotation
    readable: bool = True  # if not, the other fields are those last read, and no action relies on them

    @property
    def state(self) -> str:
        """The value of the label gpuhealth.io/state; empty without it."""
        return self.labels.get(STATE_LABEL, "")

    @property
    def marked(self) -> bool:
        """Whether it has our taint, or is cordoned and has our record."""
        return self.tainted or self.out


class ReportView(msgspec.Struct, frozen=True, kw_only=True):
    """A GPUHealthReport without its findings."""

    key: str
    gpus: tuple[tuple[str, str], ...] = ()  # verdict and model of each GPU
    quarantine: Quarantine = Quarantine()
    drain: Drain = Drain()
    healthy: bool = False  # by its verdict
    tested_at: datetime | None = None  # oldest burn-in among the GPUs; None where one GPU was never tested
    results: tuple[GpuResult, ...] = ()
    owner: str = ""  # uid of the Node that it is about
    silent: bool = False  # marked as the report of a silent agent
    readable: bool = True  # if not, the other fields are those last read


class _Test(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    figures: dict[str, float] = {}
    digests: dict[str, str] = {}
    software: dict[str, str] = {}


class _GpuBurnin(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    model: str = ""
    level: str = ""
    tests: dict[str, _Test] = {}


class _Burnin(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    tested_at: ZonedTime | None = None
    gpus: dict[str, _GpuBurnin] = {}


class _Status(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The fields of a report's status that are read: an odd value in another one costs nothing here."""

    verdict: str = State.UNKNOWN
    inventory: Inventory = Inventory()
    quarantine: Quarantine = Quarantine()
    drain: Drain = Drain()
    burnin: _Burnin = _Burnin()
    silent_since: str | None = None


class AgentPod(msgspec.Struct, frozen=True, kw_only=True):
    """The pod of an agent."""

    key: str
    node: str
    ready: bool


class BurninPod(msgspec.Struct, frozen=True, kw_only=True):
    """The pod of a burn-in."""

    key: str
    uid: str
    node: str  # that it tests, also before it is scheduled
    reason: str  # a value of the label gpuhealth.io/burnin-reason
    scheduled: bool
    finished: bool
    deleting: bool
    exit_code: int | None = None
    end_reason: str = ""  # as the kubelet reports it: OOMKilled, Evicted, DeadlineExceeded


class BudgetCondition(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The status of a budget's condition, and since when it has been that."""

    status: str = ""
    last_transition_time: str


class _BudgetSpec(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    count_unavailable: bool = False


class _BudgetStatus(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    conditions: tuple[BudgetCondition, ...] = ()


class BudgetView(msgspec.Struct, frozen=True, kw_only=True):
    """A QuarantineBudget with its whole body: there are only a few."""

    key: str
    body: Object
    count_unavailable: bool = False
    condition: BudgetCondition | None = None  # FaultLimitReached; a budget has no other


class SlotView(msgspec.Struct, frozen=True, kw_only=True):
    """A budget slot that is taken."""

    key: str
    budget: str
    holder: str
    lasting: bool  # until it is released; the others expire
    uid: str
    version: str
    fault: str = ""  # why its Lease cannot be read in full; it counts as taken

    @property
    def reserved_for(self) -> str:
        """The node for which the controller has reserved it; empty where a node has taken it itself."""
        return self.holder.removeprefix(RESERVED_SLOT_PREFIX) if self.holder.startswith(RESERVED_SLOT_PREFIX) else ""

    @property
    def node(self) -> str:
        """The node that holds it, or for which it is reserved; empty where its Lease names no holder."""
        return self.reserved_for or self.holder


class DrainExemptNamespace(msgspec.Struct, frozen=True):
    """A namespace whose pods are exempt from drains."""

    key: str


def node_view(item: Object) -> NodeView:
    """Make the view of a Node. Texts that repeat on thousands of nodes are interned."""
    metadata = item["metadata"]
    labels = {sys.intern(key): sys.intern(value) for key, value in (metadata.get("labels") or {}).items()}
    keys = {taint["key"] for taint in item.get("spec", {}).get("taints") or []}
    return NodeView(
        key=name_of(item),
        labels=labels,
        tainted=TAINT in keys,
        out=may_be_out(item),
        ready=is_ready(item),
        cordoned=unschedulable(item),
        condition_reason=sys.intern((condition(item) or {}).get("reason", "")),
        # Where the settings name another key, only the label shows it.
        preflight=PREFLIGHT_TAINT in keys or labels.get(STATE_LABEL) == NodeState.PREFLIGHT,
        overridden=override(item) is not None,
        fleet_findings=text_of(annotations_of(item).get(FLEET_FINDINGS)),
        has_gpus=has_gpus(item),
        uid=text_of(metadata["uid"]),
        gpus=_count((item.get("status", {}).get("allocatable") or {}).get(GPU_RESOURCE, 0)),
    )


def unreadable_node(last: NodeView | None, error: UnreadableError) -> NodeView:
    """Make the view of a Node that cannot be read: not ready, in the budgets and the pool of its present labels.

    Left out or kept as it was, it could let one node more be out of service than a budget allows. Nothing is evicted
    from it: a person may have cancelled the drain with a mark that cannot be read.
    """
    known = last or NodeView(key=error.name, labels={})
    labels = labels_of(error.item)
    return msgspec.structs.replace(
        known, labels=known.labels if labels is None else labels, ready=False, readable=False
    )


def unreadable_report(last: ReportView | None, _: UnreadableError) -> ReportView | None:
    """Keep a report that cannot be read as it was last read; its GPUs count as unknown.

    A drain continues with it: taint and override, which could stop it, are on the Node. A report that was never read
    is left out, and no drain begins.
    """
    return None if last is None else msgspec.structs.replace(last, readable=False)


def unreadable_agent(_: AgentPod | None, __: UnreadableError) -> AgentPod | None:
    """Drop an agent's pod that cannot be read: it does not show that the agent is ready."""
    return None


def name_of(item: Object) -> str:
    """Return the name of an object. Raises an error where it has none."""
    if not (name := text_of(item["metadata"]["name"])):
        raise ValueError("it has no name")
    return name


def _count(quantity: Any) -> int:
    """The number of GPUs in a quantity, within bounds: each is counted by itself, and a kubelet reports any number."""
    text = str(quantity)
    number = int(text[:-1]) * _MULTIPLES[text[-1:]] if text[-1:] in _MULTIPLES else int(text)
    return max(0, min(number, _MOST_GPUS))


def report_view(item: Object) -> ReportView:
    """Make the view of a GPUHealthReport."""
    status = msgspec.convert(item.get("status") or {}, _Status)
    quarantine, drain, tested_at = status.quarantine, status.drain, status.burnin.tested_at
    times = (quarantine.since, drain.quarantine_since, drain.started_at, drain.deadline, drain.ended_at, tested_at)
    for time in times:
        if time is not None:
            time.astimezone(UTC)  # raises OverflowError at the ends of the calendar
    slots = quarantine.slots if quarantine.asks_for_drain else ()  # which only a drain reads
    return ReportView(
        key=name_of(item),
        owner=next((text_of(owner["uid"]) for owner in item["metadata"].get("ownerReferences") or []), ""),
        gpus=tuple((sys.intern(gpu.verdict), sys.intern(gpu.model)) for gpu in status.inventory.gpus),
        quarantine=msgspec.structs.replace(quarantine, reason="", slots=slots),  # only people read the reason
        drain=drain,
        healthy=status.verdict == State.HEALTHY,
        tested_at=tested_at.astimezone(UTC) if tested_at else None,
        results=tuple(_results(name_of(item), status.burnin)),
        silent=bool(status.silent_since),
    )


def _results(node: str, burnin: _Burnin) -> Iterator[GpuResult]:
    """Yield the burn-in result of each GPU. Texts that repeat on thousands of GPUs are interned."""
    for uuid, gpu in islice(burnin.gpus.items(), _MOST_RESULTS):
        tests = gpu.tests.values()
        digests = {product: digest for test in tests for product, digest in test.digests.items()}
        software = next((test.software for test in tests if test.software), {})
        speeds = {
            figure: _checked_speed(value)
            for name, ending in _SPEEDS.items()
            if name in gpu.tests
            for figure, value in gpu.tests[name].figures.items()
            if figure.endswith(ending)
        }
        yield GpuResult(
            node=node,
            gpu=uuid,
            model=sys.intern(gpu.model),
            level=sys.intern(gpu.level),
            software=sys.intern(", ".join(f"{name} {version}" for name, version in sorted(software.items()))),
            digests=tuple((sys.intern(product), sys.intern(digest)) for product, digest in sorted(digests.items())),
            speeds=tuple((sys.intern(figure), value) for figure, value in sorted(speeds.items())),
        )


def _checked_speed(value: float) -> float:
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{value!r} is not a speed")
    return value


def agent_pod(item: Object) -> AgentPod:
    """Make the view of an agent's pod."""
    conditions = item.get("status", {}).get("conditions") or []
    ready = any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)
    ready = ready and not item["metadata"].get("deletionTimestamp")
    return AgentPod(key=name_of(item), node=text_of(item.get("spec", {}).get("nodeName")), ready=ready)


def burnin_pod(item: Object) -> BurninPod:
    """Make the view of a burn-in's pod."""
    metadata, status = item["metadata"], item.get("status", {})
    containers = status.get("containerStatuses") or []
    states = [container.get("state", {}) for container in containers]
    ended = [state["terminated"] for state in states if state.get("terminated")]
    code = ended[0].get("exitCode") if ended else None
    return BurninPod(
        key=name_of(item),
        uid=text_of(metadata["uid"]),
        node=text_of((metadata.get("annotations") or {}).get(BURNIN_NODE)),
        reason=text_of((metadata.get("labels") or {}).get(BURNIN_REASON_LABEL)),
        scheduled=bool(item["spec"].get("nodeName")),
        finished=status.get("phase") in {"Succeeded", "Failed"},
        deleting=bool(metadata.get("deletionTimestamp")),
        exit_code=None if code is None else int(code),
        end_reason=text_of(status.get("reason")) or (text_of(ended[0].get("reason")) if ended else ""),
    )


def budget_view(item: Object) -> BudgetView:
    """Make the view of a QuarantineBudget, after a check that everything in it that will be read can be."""
    check_selector(item["spec"]["nodeSelector"])
    slot_sets(item, 1, "")
    msgspec.convert(item["metadata"]["generation"], int)
    spec = msgspec.convert(item["spec"], _BudgetSpec)
    status = msgspec.convert(item.get("status") or {}, _BudgetStatus)
    return BudgetView(
        key=name_of(item),
        body=item,
        count_unavailable=spec.count_unavailable,
        condition=next(iter(status.conditions), None),
    )


def slot_view(item: Object) -> SlotView:
    """Make the view of a budget slot from its Lease."""
    slot, metadata = read_slot(item), item["metadata"]
    return SlotView(
        key=name_of(item),
        budget=slot.budget,
        holder=slot.holder,
        lasting=not slot.seconds,
        uid=text_of(metadata["uid"]),
        version=text_of(metadata["resourceVersion"]),
        fault=slot.fault,
    )


def drain_exempt_namespace(item: Object) -> DrainExemptNamespace:
    """Make the view of a namespace that a label exempts from drains."""
    return DrainExemptNamespace(name_of(item))


def wants_drain(node: NodeView, report: ReportView) -> bool:
    """Whether the pods on the node should be moved away.

    That takes the agent's report, the taint that keeps other pods away, and no override: an agent that no longer runs
    cannot withdraw its report. Nothing is concluded from a Node that cannot be read.
    """
    return report.quarantine.asks_for_drain and node.readable and node.marked and not node.overridden
