"""Reads the marks on a Node: labels, annotations, taints and conditions, and what they mean for its quarantine. Pure.

A node that we took out of service has one mark: our taint, or a cordon. We remove only what we added. A taint of our
key and a cordon are ours if the annotation `gpuhealth.io/quarantine` records them, which is written in the same request
as they are; without it they belong to someone else and stay. A node that someone else has cordoned gets no second
cordon: the record then claims no mark. If a recorded mark is gone, another client has removed it. A person has thereby
ended the quarantine: its codes go to the annotation `gpuhealth.io/dismissed` and do not quarantine again until their
findings have cleared. What a program has removed is put back (`removed_marks`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any

import msgspec

from gpuhealth.api.names import (
    CONDITION,
    DISMISSED,
    MANUAL,
    OUT_OF_SERVICE,
    OVERRIDE,
    PEOPLE,
    QUARANTINE,
    RESTORED,
    TAINT,
    Override,
)
from gpuhealth.kube.errors import AnswerError
from gpuhealth.model.causes import Cause
from gpuhealth.model.decoding import JSON_ERRORS
from gpuhealth.model.time import ZonedTime

Object = dict[str, Any]

_REASON_LIMIT = 1024  # characters
_YEARS = (1970, 9990)  # in which times can be calculated with, in any time zone


class QuarantineRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """The annotation that records our changes to the Node.

    It also records why, so that an agent that has lost its memory does not mistake that for the end of a fault.
    """

    code: str
    since: ZonedTime
    cordoned: bool = False  # by us; a node that was already cordoned stays so
    causes: tuple[Cause, ...] = ()
    tainted: bool = True  # by us


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
    """The Node's annotations; empty without any."""
    return node["metadata"].get("annotations") or {}


def labels(node: Object) -> dict[str, str]:
    """The Node's labels; empty without any."""
    return node["metadata"].get("labels") or {}


def taints(node: Object) -> list[Object]:
    """The Node's taints; empty without any."""
    return node.get("spec", {}).get("taints") or []


def has_taint(node: Object, key: str = TAINT) -> bool:
    """Whether the Node has a taint of our key, or of another one."""
    return any(taint["key"] == key for taint in taints(node))


def unschedulable(node: Object) -> bool:
    """Whether the Node is cordoned."""
    return bool(node.get("spec", {}).get("unschedulable"))


def condition(node: Object, kind: str = CONDITION) -> Object | None:
    """Our condition of the Node, or that of another type."""
    conditions: list[Object] = node.get("status", {}).get("conditions") or []
    return next((found for found in conditions if found["type"] == kind), None)


def is_ready(node: Object) -> bool:
    """Whether the Node's condition Ready is True."""
    return (condition(node, "Ready") or {}).get("status") == "True"


# --- requests of people and the controller ----------------------------------------------------------------------------


def override(node: Object) -> Override | None:
    """The override annotated by a person; None for an unknown value."""
    value = annotations_of(node).get(OVERRIDE)
    return Override(value) if value in set(Override) else None


def out_of_service(node: Object) -> str:
    """The reason of a manual request to take the node out of service, on one line; empty without a request."""
    return " ".join(annotations_of(node).get(OUT_OF_SERVICE, "").split())[:_REASON_LIMIT]


def restored(annotations: Mapping[str, str]) -> datetime | None:
    """When a person has restored the node to service; None without the annotation, or where it is no time."""
    try:
        time = datetime.fromisoformat(annotations[RESTORED])
    except (KeyError, ValueError):
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


# --- our quarantine ---------------------------------------------------------------------------------------------------


def record(node: Object) -> QuarantineRecord | None:
    """The record of our changes to the Node; None without one that can be read."""
    try:
        found = msgspec.json.decode(annotations_of(node)[QUARANTINE], type=QuarantineRecord)
    except (KeyError, *JSON_ERRORS):  # edited by a person: then nothing on the Node is known to be ours
        return None
    times = (found.since, *(cause.since for cause in found.causes))
    return found if all(_YEARS[0] <= time.year <= _YEARS[1] for time in times) else None


def unreadable_record(node: Object) -> str:
    """The text of a record that cannot be read; empty where it can, and where there is none."""
    return "" if record(node) else annotations_of(node).get(QUARANTINE, "")


def is_out(node: Object) -> bool:
    """Whether the node is out of service by our action, as its record and the taint or the cordon show."""
    ours = record(node)
    return ours is not None and (has_taint(node) or (not ours.tainted and unschedulable(node)))


def may_be_out(node: Object) -> bool:
    """Whether the node is out by our action, or may be: its record was edited and cannot be read."""
    return is_out(node) or (bool(unreadable_record(node)) and (has_taint(node) or unschedulable(node)))


def taint_removed(node: Object) -> bool:
    """Whether another client removed our taint."""
    ours = record(node)
    return ours is not None and ours.tainted and not has_taint(node)


def marks_removed(node: Object) -> bool:
    """Whether another client removed our taint or uncordoned a node that we had cordoned."""
    ours = record(node)
    return taint_removed(node) or (ours is not None and ours.cordoned and not unschedulable(node))


def removers(node: Object) -> tuple[str, ...]:
    """The field managers of the clients that removed our marks; empty where the Node does not show them.

    spec.taints is one atomic list, so its owners are those who wrote it as it is now. A list that is empty and a node
    that is not cordoned have no owners.
    """
    field = "f:taints" if taint_removed(node) else "f:unschedulable"
    return tuple(sorted({entry["manager"] for entry in _managed_fields(node) if field in entry["fieldsV1"]["f:spec"]}))


def _managed_fields(node: Object) -> list[Object]:
    """The entries of metadata.managedFields about the Node's spec that can be read."""
    entries = node["metadata"].get("managedFields")
    return [
        entry
        for entry in (entries if isinstance(entries, list) else [])
        if isinstance(entry, dict)
        and isinstance(entry.get("manager"), str)
        and isinstance(entry.get("fieldsV1"), dict)
        and isinstance(entry["fieldsV1"].get("f:spec"), dict)
    ]


def ended_by_person(node: Object, people: Iterable[str]) -> bool:
    """Whether people, known by these patterns of field managers, removed our marks; case is ignored.

    A client that left no trace is taken for a program, unless a pattern matches the empty text.
    """
    patterns = [pattern.lower() for pattern in people]
    return marks_removed(node) and all(
        any(fnmatchcase(manager.lower(), pattern) for pattern in patterns) for manager in removers(node) or ("",)
    )


def dismissed_codes(node: Object) -> tuple[str, ...]:
    """The codes whose quarantine a person has ended."""
    return tuple(code for code in annotations_of(node).get(DISMISSED, "").split(",") if code)


def causes(node: Object, people: Iterable[str] = PEOPLE) -> tuple[Cause, ...]:
    """The findings for which the node is out of service, by its record; none once a person has ended that."""
    ours = record(node)
    if ours is None or ended_by_person(node, people) or override(node) is not None:
        return ()
    single = () if ours.code == MANUAL else (Cause(ours.code, ours.since),)
    return tuple(cause for cause in ours.causes or single if cause.code not in dismissed_codes(node))
