"""What is kept of each object: a few fields, and what follows from them for one node. Pure."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import Any

import msgspec

from gpuhealth.cluster.budget import BUDGET_LABEL
from gpuhealth.cluster.client import Object
from gpuhealth.cluster.kinds import PREFLIGHT_TAINT, STATE_LABEL, TAINT
from gpuhealth.cluster.node import condition, is_ready, override

UNKNOWN = "unknown"


class Node(msgspec.Struct, frozen=True):
    """A Node."""

    key: str
    labels: dict[str, str]
    tainted: bool = False  # by our key
    ready: bool = True  # its kubelet
    health: str = ""  # reason of our condition
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


class Agent(msgspec.Struct, frozen=True):
    """An agent's pod."""

    key: str
    node: str
    ready: bool


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
        ready=is_ready(item),
        health=sys.intern((condition(item) or {}).get("reason", "")),
        preflight=PREFLIGHT_TAINT in keys,
        overridden=override(item) is not None,
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
    )


def agent(item: Object) -> Agent:
    """Slims an agent's pod."""
    conditions = item.get("status", {}).get("conditions") or []
    ready = any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
    ready = ready and not item["metadata"].get("deletionTimestamp")
    return Agent(item["metadata"]["name"], item.get("spec", {}).get("nodeName", ""), ready)


def budget(item: Object) -> Budget:
    """Keeps a budget."""
    return Budget(item["metadata"]["name"], item)


def place(item: Object) -> Place:
    """Slims a place's Lease."""
    metadata, spec = item["metadata"], item.get("spec") or {}
    lasting = not spec.get("leaseDurationSeconds")
    holder = spec.get("holderIdentity") or ""
    version = metadata["resourceVersion"]
    return Place(metadata["name"], metadata["labels"][BUDGET_LABEL], holder, lasting, metadata["uid"], version)


def kept(item: Object) -> Kept:
    """A namespace whose label says so."""
    return Kept(item["metadata"]["name"])


def wants_drain(found: Node, said: Report) -> bool:
    """Whether what runs on the node should be moved away.

    The agent's report asks for it, the taint keeps others from coming, and no person says otherwise: an agent that no
    longer runs cannot take its report back.
    """
    return said.quarantine.asks_for_drain and found.tainted and not found.overridden
