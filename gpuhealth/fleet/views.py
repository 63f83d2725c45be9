"""What is kept of each object: a few fields, and what follows from them for one node. Pure.

The functions that slim an object raise an error (of whatever kind) where it holds something of a type or value that
what is kept may not have. So what is kept can be relied on, and what cannot be read is found while it is known whose.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
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
from gpuhealth.fleet.comparison import Tested
from gpuhealth.kube.client import Object
from gpuhealth.kube.errors import UnreadableError
from gpuhealth.kube.objects import labels_of, text_of
from gpuhealth.kube.selectors import checked
from gpuhealth.model.time import ZonedTime
from gpuhealth.model.verdict import State
from gpuhealth.quarantine.marks import condition, is_out, is_ready, notes, override, unknown_record, unschedulable
from gpuhealth.quarantine.slots import sets_of, taken

_MULTIPLES = {"k": 10**3, "M": 10**6, "G": 10**9}
"""Endings of a quantity that is a count; the API server writes 1000 as 1k."""
_SPEEDS = {"soak": "_tflops", "bandwidth": "_gigabytes_per_second", "collectives": "_gigabytes_per_second"}
"""Tests that measure how fast a GPU is, and how the names of those figures end."""


class Node(msgspec.Struct, frozen=True):
    """A Node."""

    key: str
    labels: dict[str, str]
    tainted: bool = False  # by our key
    out: bool = False  # by our hand, as its record says
    ready: bool = True  # its kubelet
    health: str = ""  # reason of our condition
    cordoned: bool = False  # by whomever
    gpus: int = 0  # that the device plugin offers whole
    fleet_findings: str = ""  # our annotation
    preflight: bool = False
    overridden: bool = False  # by a person's annotation
    readable: bool = True  # if not: as it was last read, and nothing is done on its word

    @property
    def state(self) -> str:
        """What our label says."""
        return self.labels.get(STATE_LABEL, "")


class Report(msgspec.Struct, frozen=True):
    """A GPUHealthReport."""

    key: str
    gpus: tuple[tuple[str, str], ...] = ()  # verdict and model of each
    quarantine: Quarantine = Quarantine()
    drain: Drain = Drain()
    healthy: bool = False  # its verdict
    tested: datetime | None = None  # when the GPU was that has waited longest; never, if one never was
    tests: tuple[Tested, ...] = ()
    readable: bool = True  # if not: as it was last read


class _Test(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    figures: dict[str, float] = {}
    digests: dict[str, str] = {}
    software: dict[str, str] = {}


class _Burnin(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    model: str = ""
    level: str = ""
    tests: dict[str, _Test] = {}


class _Burnins(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    tested_at: ZonedTime | None = None
    gpus: dict[str, _Burnin] = {}


class _Status(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The fields of a report's status that are read: what is odd in another one costs nothing here."""

    verdict: str = State.UNKNOWN
    inventory: Inventory = Inventory()
    quarantine: Quarantine = Quarantine()
    drain: Drain = Drain()
    burnin: _Burnins = _Burnins()


class Agent(msgspec.Struct, frozen=True):
    """An agent's pod."""

    key: str
    node: str
    ready: bool


class Test(msgspec.Struct, frozen=True):
    """The pod of a burn-in."""

    __test__ = False  # no test of pytest's

    key: str
    uid: str
    node: str
    reason: str
    bound: bool  # the scheduler has placed it
    over: bool
    deleting: bool
    exit_code: int | None = None
    end: str = ""  # in the kubelet's words: OOMKilled, Evicted, DeadlineExceeded


class Budget(msgspec.Struct, frozen=True):
    """A QuarantineBudget, whole: there are few."""

    key: str
    body: Object
    count_unavailable: bool = False
    conditions: tuple[Transition, ...] = ()


class Transition(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The status of a condition, and since when."""

    status: str = ""
    last_transition_time: str


class _BudgetSpec(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    count_unavailable: bool = False


class _BudgetStatus(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    conditions: tuple[Transition, ...] = ()


class Place(msgspec.Struct, frozen=True):
    """A place of a budget that is taken."""

    key: str
    budget: str
    holder: str
    lasting: bool  # until it is given back; the others run out by themselves
    uid: str
    version: str
    fault: str = ""  # why its Lease cannot be read in full: it counts as taken

    @property
    def stands_for(self) -> str:
        """The node for which the controller has taken it; empty where a node has taken it itself."""
        return self.holder.removeprefix(RESERVED_SLOT_PREFIX) if self.holder.startswith(RESERVED_SLOT_PREFIX) else ""

    @property
    def node(self) -> str:
        """That holds it, or for which the controller has taken it; empty where its Lease names nobody."""
        return self.stands_for or self.holder


class Kept(msgspec.Struct, frozen=True):
    """A namespace that drains leave alone."""

    key: str


def node(item: Object) -> Node:
    """Slims a Node. The same few words are on every node of a fleet: they are kept once."""
    metadata = item["metadata"]
    labels = {sys.intern(key): sys.intern(value) for key, value in (metadata.get("labels") or {}).items()}
    keys = {taint["key"] for taint in item.get("spec", {}).get("taints") or []}
    return Node(
        name_of(item),
        labels,
        tainted=TAINT in keys,
        out=is_out(item) or (TAINT in keys and bool(unknown_record(item))),
        ready=is_ready(item),
        cordoned=unschedulable(item),
        health=sys.intern((condition(item) or {}).get("reason", "")),
        # Where the settings name another key, only the label shows it.
        preflight=PREFLIGHT_TAINT in keys or labels.get(STATE_LABEL) == NodeState.PREFLIGHT,
        overridden=override(item) is not None,
        fleet_findings=text_of(notes(item).get(FLEET_FINDINGS)),
        gpus=_count((item.get("status", {}).get("allocatable") or {}).get(GPU_RESOURCE, 0)),
    )


def unreadable_node(last: Node | None, error: UnreadableError) -> Node:
    """A Node that cannot be read counts where its labels say, and as one that is not ready.

    Left out, or as it was, it could let one node more be out than a budget allows. Nothing is evicted from it
    meanwhile: it may say that a person has taken the drain back.
    """
    known = last or Node(error.name, {})
    labels = labels_of(error.item)
    return msgspec.structs.replace(
        known, labels=known.labels if labels is None else labels, ready=False, readable=False
    )


def unreadable_report(last: Report | None, _: UnreadableError) -> Report | None:
    """A report that cannot be read holds as it was last read, but for its GPUs, which count as unknown.

    A drain goes on with it: the Node's taint and a person's override are on the Node. One that was never read is left
    out, and no drain begins.
    """
    return None if last is None else msgspec.structs.replace(last, readable=False)


def unreadable_agent(_: Agent | None, __: UnreadableError) -> Agent | None:
    """An agent's pod that cannot be read is no sign that the agent is ready."""
    return None


def name_of(item: Object) -> str:
    """The name of an object; an error where it has none."""
    if not (name := text_of(item["metadata"]["name"])):
        raise ValueError("it has no name")
    return name


def _count(quantity: Any) -> int:
    text = str(quantity)
    return int(text[:-1]) * _MULTIPLES[text[-1:]] if text[-1:] in _MULTIPLES else int(text)


def report(item: Object) -> Report:
    """Slims a GPUHealthReport."""
    status = msgspec.convert(item.get("status") or {}, _Status)
    quarantine, drain, tested_at = status.quarantine, status.drain, status.burnin.tested_at
    times = (quarantine.since, drain.quarantine_since, drain.started_at, drain.deadline, drain.ended_at, tested_at)
    for time in times:
        if time is not None:
            time.astimezone(UTC)  # raises OverflowError at the ends of the calendar
    return Report(
        name_of(item),
        tuple((sys.intern(gpu.verdict), sys.intern(gpu.model)) for gpu in status.inventory.gpus),
        msgspec.structs.replace(quarantine, reason="", slots=()),  # only people read them
        drain,
        status.verdict == State.HEALTHY,
        tested_at.astimezone(UTC) if tested_at else None,
        tuple(_tested(name_of(item), status.burnin)),
    )


def _tested(node: str, burnin: _Burnins) -> Iterator[Tested]:
    """What is compared over the fleet. Most of it is the same on thousands of GPUs, and kept once."""
    for uuid, gpu in burnin.gpus.items():
        tests = gpu.tests.values()
        digests = {what: digest for test in tests for what, digest in test.digests.items()}
        software = next((test.software for test in tests if test.software), {})
        speeds = {
            what: _speed(value)
            for name, ending in _SPEEDS.items()
            if name in gpu.tests
            for what, value in gpu.tests[name].figures.items()
            if what.endswith(ending)
        }
        yield Tested(
            node,
            uuid,
            sys.intern(gpu.model),
            sys.intern(gpu.level),
            sys.intern(", ".join(f"{name} {version}" for name, version in sorted(software.items()))),
            tuple((sys.intern(what), sys.intern(digest)) for what, digest in sorted(digests.items())),
            tuple((sys.intern(what), value) for what, value in sorted(speeds.items())),
        )


def _speed(value: float) -> float:
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{value!r} is no speed")
    return value


def state_without_test(said: Report | None) -> str:
    """What the label says of a node that is no longer being tested, until its agent says more."""
    return NodeState.HEALTHY if said is not None and said.healthy else NodeState.DEGRADED


def agent(item: Object) -> Agent:
    """Slims an agent's pod."""
    conditions = item.get("status", {}).get("conditions") or []
    ready = any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
    ready = ready and not item["metadata"].get("deletionTimestamp")
    return Agent(name_of(item), text_of(item.get("spec", {}).get("nodeName")), ready)


def test(item: Object) -> Test:
    """Slims the pod of a burn-in. Its node is the one that it is for, also before it is there."""
    metadata, status = item["metadata"], item.get("status", {})
    containers = status.get("containerStatuses") or []
    ended = [each["state"]["terminated"] for each in containers if each.get("state", {}).get("terminated")]
    code = ended[0].get("exitCode") if ended else None
    return Test(
        name_of(item),
        text_of(metadata["uid"]),
        text_of((metadata.get("annotations") or {}).get(BURNIN_NODE)),
        text_of((metadata.get("labels") or {}).get(BURNIN_REASON_LABEL)),
        bound=bool(item["spec"].get("nodeName")),
        over=status.get("phase") in {"Succeeded", "Failed"},
        deleting=bool(metadata.get("deletionTimestamp")),
        exit_code=None if code is None else int(code),
        end=text_of(status.get("reason")) or (text_of(ended[0].get("reason")) if ended else ""),
    )


def budget(item: Object) -> Budget:
    """Keeps a budget, of which everything can be read that will be."""
    checked(item["spec"]["nodeSelector"])
    sets_of(item, 1, "")
    msgspec.convert(item["metadata"]["generation"], int)
    spec = msgspec.convert(item["spec"], _BudgetSpec)
    status = msgspec.convert(item.get("status") or {}, _BudgetStatus)
    return Budget(name_of(item), item, spec.count_unavailable, status.conditions)


def place(item: Object) -> Place:
    """Slims a place's Lease."""
    found, metadata = taken(item), item["metadata"]
    uid, version = text_of(metadata["uid"]), text_of(metadata["resourceVersion"])
    return Place(name_of(item), found.budget, found.holder, not found.seconds, uid, version, found.fault)


def kept(item: Object) -> Kept:
    """A namespace whose label says so."""
    return Kept(name_of(item))


def wants_drain(found: Node, said: Report) -> bool:
    """Whether what runs on the node should be moved away.

    The agent's report asks for it, the taint keeps others from coming, and no person says otherwise: an agent that no
    longer runs cannot take its report back. What a Node says that cannot be read is not known.
    """
    return said.quarantine.asks_for_drain and found.readable and found.tainted and not found.overridden
