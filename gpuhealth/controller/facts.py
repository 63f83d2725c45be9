"""What is kept of each object: a few fields, and what follows from them for one node. Pure."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import msgspec

from gpuhealth.cluster.budget import STAND_IN, taken
from gpuhealth.cluster.client import Object
from gpuhealth.cluster.kinds import FLEET_FINDINGS, GROUP, PREFLIGHT_TAINT, STATE_LABEL, TAINT
from gpuhealth.cluster.node import (
    condition,
    is_out,
    is_ready,
    notes,
    override,
    parsed_time,
    unknown_record,
    unschedulable,
)
from gpuhealth.controller.comparison import Tested

UNKNOWN = "unknown"
GPU = "nvidia.com/gpu"
"""The device plugin's resource."""
REASON_LABEL = f"{GROUP}/burnin-reason"
TESTED_NODE = f"{GROUP}/node"
"""Annotation of a burn-in's pod: the node that it is for."""
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

    @property
    def state(self) -> str:
        """What our label says."""
        return self.labels.get(STATE_LABEL, "")


class Drain(msgspec.Struct, frozen=True, rename="camel"):
    """How far a drain is, as the report says."""

    phase: str = ""
    quarantine_since: datetime | None = None
    started_at: datetime | None = None
    deadline: datetime | None = None
    ended_at: datetime | None = None
    remaining: int = 0
    evicted: int = 0
    deleted: int = 0
    message: str = ""


class Quarantine(msgspec.Struct, frozen=True):
    """What the agent says of taking its node out of service."""

    state: str = "none"
    code: str = ""
    since: datetime | None = None
    drain: bool = False
    budget: str = ""
    limit: str = ""

    @property
    def asks_for_drain(self) -> bool:
        """Whether the agent wants what runs there to be moved away."""
        return self.state == "quarantined" and self.drain


class Report(msgspec.Struct, frozen=True):
    """A GPUHealthReport."""

    key: str
    gpus: tuple[tuple[str, str], ...] = ()  # verdict and model of each
    quarantine: Quarantine = Quarantine()
    drain: Drain = Drain()
    healthy: bool = False  # its verdict
    tested: datetime | None = None  # when the GPU was that has waited longest; never, if one never was
    tests: tuple[Tested, ...] = ()


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
        return self.holder.removeprefix(STAND_IN) if self.holder.startswith(STAND_IN) else ""

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
        metadata["name"],
        labels,
        tainted=TAINT in keys,
        out=is_out(item) or (TAINT in keys and bool(unknown_record(item))),
        ready=is_ready(item),
        cordoned=unschedulable(item),
        health=sys.intern((condition(item) or {}).get("reason", "")),
        preflight=PREFLIGHT_TAINT in keys or labels.get(STATE_LABEL) == "preflight",  # of another key the label tells
        overridden=override(item) is not None,
        fleet_findings=notes(item).get(FLEET_FINDINGS, ""),
        gpus=int((item.get("status", {}).get("allocatable") or {}).get(GPU, 0)),
    )


def report(item: Object) -> Report:
    """Slims a GPUHealthReport."""
    status: dict[str, Any] = item.get("status") or {}
    gpus = (status.get("inventory") or {}).get("gpus") or []
    return Report(
        item["metadata"]["name"],
        tuple((sys.intern(gpu.get("verdict", UNKNOWN)), sys.intern(gpu.get("model", ""))) for gpu in gpus),
        msgspec.convert(status.get("quarantine") or {}, Quarantine),
        msgspec.convert(status.get("drain") or {}, Drain),
        status.get("verdict") == "healthy",
        parsed_time(tested) if (tested := (status.get("burnin") or {}).get("testedAt")) else None,
        tuple(_tested(item["metadata"]["name"], status.get("burnin") or {})),
    )


def _tested(node: str, burnin: Object) -> Iterator[Tested]:
    """What is compared over the fleet. Most of it is the same on thousands of GPUs, and kept once."""
    for uuid, gpu in (burnin.get("gpus") or {}).items():
        said = gpu.get("tests") or {}
        tests = said.values()
        digests = {what: digest for test in tests for what, digest in (test.get("digests") or {}).items()}
        software: dict[str, str] = next((test["software"] for test in tests if test.get("software")), {})
        speeds = {
            what: float(value)
            for name, ending in _SPEEDS.items()
            for what, value in (said.get(name, {}).get("figures") or {}).items()
            if what.endswith(ending)
        }
        yield Tested(
            node,
            uuid,
            sys.intern(gpu.get("model", "")),
            sys.intern(gpu.get("level", "")),
            sys.intern(", ".join(f"{name} {version}" for name, version in sorted(software.items()))),
            tuple((sys.intern(what), sys.intern(digest)) for what, digest in sorted(digests.items())),
            tuple((sys.intern(what), value) for what, value in sorted(speeds.items())),
        )


def state_without_test(said: Report | None) -> str:
    """What the label says of a node that is no longer being tested, until its agent says more."""
    return "healthy" if said is not None and said.healthy else "degraded"


def agent(item: Object) -> Agent:
    """Slims an agent's pod."""
    conditions = item.get("status", {}).get("conditions") or []
    ready = any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
    ready = ready and not item["metadata"].get("deletionTimestamp")
    return Agent(item["metadata"]["name"], item.get("spec", {}).get("nodeName", ""), ready)


def test(item: Object) -> Test:
    """Slims the pod of a burn-in. Its node is the one that it is for, also before it is there."""
    metadata, status = item["metadata"], item.get("status", {})
    containers = status.get("containerStatuses") or []
    ended = [each["state"]["terminated"] for each in containers if each.get("state", {}).get("terminated")]
    return Test(
        metadata["name"],
        metadata["uid"],
        (metadata.get("annotations") or {}).get(TESTED_NODE, ""),
        (metadata.get("labels") or {}).get(REASON_LABEL, ""),
        bound=bool(item["spec"].get("nodeName")),
        over=status.get("phase") in {"Succeeded", "Failed"},
        deleting=bool(metadata.get("deletionTimestamp")),
        exit_code=ended[0].get("exitCode") if ended else None,
        end=status.get("reason") or (ended[0].get("reason") or "" if ended else ""),
    )


def budget(item: Object) -> Budget:
    """Keeps a budget."""
    return Budget(item["metadata"]["name"], item)


def place(item: Object) -> Place:
    """Slims a place's Lease."""
    found, metadata = taken(item), item["metadata"]
    version = metadata["resourceVersion"]
    return Place(found.name, found.budget, found.holder, not found.seconds, metadata["uid"], version, found.fault)


def kept(item: Object) -> Kept:
    """A namespace whose label says so."""
    return Kept(item["metadata"]["name"])


def wants_drain(found: Node, said: Report) -> bool:
    """Whether what runs on the node should be moved away.

    The agent's report asks for it, the taint keeps others from coming, and no person says otherwise: an agent that no
    longer runs cannot take its report back.
    """
    return said.quarantine.asks_for_drain and found.tainted and not found.overridden
