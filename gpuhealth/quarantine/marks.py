"""What stands on a Node: labels, annotations, taints and conditions, and what they say about our quarantine. Pure.

Who put a mark there decides who may take it away. Our taint and our cordon are ours by the annotation
`gpuhealth.io/quarantine`, which is written in the same request as they are; without it they are someone else's and
stay. With it, but with the taint gone or the node uncordoned, a person has ended the quarantine: the codes it was for
go to the annotation `gpuhealth.io/released` and do not quarantine again until their findings have cleared.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from gpuhealth.kube.errors import AnswerError
from gpuhealth.kube.kinds import (
    CONDITION,
    DRIVER_UPGRADE_STATE,
    FLEET_FINDINGS,
    OUT_OF_SERVICE,
    OVERRIDE,
    QUARANTINE,
    RELEASE_GPUS,
    RELEASED,
    RESTORED,
    TAINT,
)
from gpuhealth.model.causes import Cause
from gpuhealth.model.missing import Missing, MissingReason, Reading
from gpuhealth.model.time import ZonedTime
from gpuhealth.monitors.fleet_findings.readings import FleetFinding

Object = dict[str, Any]

MANUAL = "manual"
"""Stands for a finding's code where a person wants the node out of service."""
AGENT_UNREACHABLE = "AgentUnreachable"
"""Reason of the condition while no agent is ready on the node; set by the controller."""
RELEASE_REQUESTS = ("annotation", "driver_upgrade")
"""The reasons for which a Node may ask the agent to release the driver."""
_REASON_LIMIT = 1024  # characters
# NVIDIA's upgrade controller (github.com/NVIDIA/k8s-operator-libs, pkg/upgrade/consts.go and common_manager.go) goes
# from cordon-required and wait-for-jobs-required, which may last for as long as jobs do, through the first two of
# these, in which what uses the GPUs is moved away, to the restart of the driver's pod, which unloads the kernel module
# and fails while anybody holds it. In validation-required the new driver runs; upgrade-failed is a fault to be seen.
_DRIVER_UNLOADS = {"pod-deletion-required", "drain-required", "post-maintenance-required", "pod-restart-required"}
_YEARS = (1970, 9990)  # in which times can be calculated with, in any time zone


class Override(enum.StrEnum):
    """A person's annotation that overrides the findings."""

    HEALTHY = "healthy"  # marked healthy, whatever is found
    UNMANAGED = "unmanaged"  # not touched at all


class QuarantineRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """What we put on the Node, as its annotation says.

    It also says why, so that an agent that has lost its memory does not take that for the end of a fault.
    """

    code: str
    since: ZonedTime
    cordoned: bool = False  # by us; a node that was already cordoned stays so
    causes: tuple[Cause, ...] = ()


def check_readable(node: Object) -> Object:
    """The Node, if its taints and conditions can be read. Raises AnswerError."""
    for name, key, found in (
        ("taints", "key", node.get("spec", {}).get("taints") or []),
        ("conditions", "type", node.get("status", {}).get("conditions") or []),
    ):
        if not isinstance(found, list) or not all(isinstance(item, dict) and key in item for item in found):
            raise AnswerError(f"the answer is no complete Node: its {name} cannot be read")
    return node


# --- parts of a Node --------------------------------------------------------------------------------------------------


def annotations_of(node: Object) -> dict[str, str]:
    """The Node's annotations."""
    return node["metadata"].get("annotations") or {}


def labels(node: Object) -> dict[str, str]:
    """The Node's labels."""
    return node["metadata"].get("labels") or {}


def taints(node: Object) -> list[Object]:
    """The Node's taints."""
    return node.get("spec", {}).get("taints") or []


def has_taint(node: Object, key: str = TAINT) -> bool:
    """Whether the Node has a taint of our key, or of another one, whoever put it there."""
    return any(taint["key"] == key for taint in taints(node))


def unschedulable(node: Object) -> bool:
    """Whether the Node is cordoned, by whomever."""
    return bool(node.get("spec", {}).get("unschedulable"))


def condition(node: Object, kind: str = CONDITION) -> Object | None:
    """Our condition of the Node, or that of another type."""
    conditions: list[Object] = node.get("status", {}).get("conditions") or []
    return next((found for found in conditions if found["type"] == kind), None)


def is_ready(node: Object) -> bool:
    """Whether the Node's condition Ready is True."""
    return (condition(node, "Ready") or {}).get("status") == "True"


# --- what people and the controller ask for ---------------------------------------------------------------------------


def override(node: Object) -> Override | None:
    """The override that a person has annotated; an unknown value is none."""
    value = annotations_of(node).get(OVERRIDE)
    return Override(value) if value in set(Override) else None


def out_of_service(node: Object) -> str:
    """Why a person wants the node out of service, on one line; empty if nobody does."""
    return " ".join(annotations_of(node).get(OUT_OF_SERVICE, "").split())[:_REASON_LIMIT]


def fleet_findings(annotations: Mapping[str, str]) -> Reading[tuple[FleetFinding, ...]]:
    """The findings of the controller about the node's GPUs."""
    try:
        return msgspec.json.decode(annotations.get(FLEET_FINDINGS, "[]"), type=tuple[FleetFinding, ...])
    except msgspec.DecodeError as error:
        return Missing(MissingReason.ERROR, f"annotation {FLEET_FINDINGS}: {error}")


def restored(annotations: Mapping[str, str]) -> datetime | None:
    """When a person has restored the node to service; None without the annotation, or where it is no time."""
    try:
        time = datetime.fromisoformat(annotations[RESTORED])
    except (KeyError, ValueError):
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def release_requests(node: Object) -> tuple[str, ...]:
    """Those of RELEASE_REQUESTS for which the Node asks the agent to release the driver now."""
    requested = {
        "annotation": annotations_of(node).get(RELEASE_GPUS) == "true",
        "driver_upgrade": labels(node).get(DRIVER_UPGRADE_STATE) in _DRIVER_UNLOADS,
    }
    return tuple(reason for reason in RELEASE_REQUESTS if requested[reason])


# --- our quarantine ---------------------------------------------------------------------------------------------------


def record(node: Object) -> QuarantineRecord | None:
    """What we put on the Node, if anything."""
    try:
        found = msgspec.json.decode(annotations_of(node)[QUARANTINE], type=QuarantineRecord)
    except (KeyError, msgspec.DecodeError, RecursionError):  # a person's edit: then nothing on it is known to be ours
        return None
    times = (found.since, *(cause.since for cause in found.causes))
    return found if all(_YEARS[0] <= time.year <= _YEARS[1] for time in times) else None


def unreadable_record(node: Object) -> str:
    """The text of a record that cannot be read; empty where it can, and where there is none."""
    return "" if record(node) else annotations_of(node).get(QUARANTINE, "")


def is_out(node: Object) -> bool:
    """Whether it is out of service by our action, and no person has ended that."""
    return record(node) is not None and not ended_manually(node)


def ended_manually(node: Object) -> bool:
    """Whether someone took our taint away or uncordoned what we had cordoned."""
    ours = record(node)
    if ours is None:
        return False
    return not has_taint(node) or (ours.cordoned and not unschedulable(node))


def dismissed_codes(node: Object) -> tuple[str, ...]:
    """The codes whose quarantine a person has ended."""
    return tuple(code for code in annotations_of(node).get(RELEASED, "").split(",") if code)


def causes(node: Object) -> tuple[Cause, ...]:
    """The findings for which the node is out of service, as its record says; none once a person has ended that."""
    ours = record(node)
    if ours is None or ended_manually(node) or override(node) is not None:
        return ()
    single = () if ours.code == MANUAL else (Cause(ours.code, ours.since),)
    return tuple(cause for cause in ours.causes or single if cause.code not in dismissed_codes(node))
