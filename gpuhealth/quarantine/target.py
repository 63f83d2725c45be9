"""The target marks of our Node for the findings, and the patch that applies them. Pure; `writer` sends it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import NamedTuple

import msgspec

from gpuhealth.api.names import (
    CORDON_REASON,
    DISMISSED,
    MANUAL,
    PENDING,
    PEOPLE,
    QUARANTINE,
    STATE_LABEL,
    TAINT,
    ConditionReason,
    NodeState,
    Override,
)
from gpuhealth.model.causes import Cause
from gpuhealth.model.codes import CODES, Rule
from gpuhealth.model.verdict import State, Verdict
from gpuhealth.monitors.nvidia.readings import Release
from gpuhealth.monitors.settings import Settings
from gpuhealth.quarantine.condition import MESSAGE_LIMIT, Summary, summary
from gpuhealth.quarantine.marks import (
    Object,
    QuarantineRecord,
    annotations_of,
    dismissed_codes,
    ended_by_person,
    has_taint,
    is_out,
    labels,
    out_of_service,
    override,
    record,
    taints,
    unschedulable,
)
from gpuhealth.quarantine.state import agent_event, next_state, state_of


class Desired(msgspec.Struct, frozen=True, kw_only=True):
    """Requirements of the findings for the Node."""

    verdict: Verdict
    quarantine: tuple[str, ...] = ()  # codes of the findings that require a quarantine, worst first
    drain: bool = False  # whether its pods should be evicted, too
    release: Release | None = None  # of the driver, now
    preflight: bool = False  # whether the node has to pass its first tests once more
    causes: tuple[Cause, ...] = ()  # why it should be out, for the record


class NodeMarks(msgspec.Struct, frozen=True, kw_only=True):
    """Marks that the Node should have."""

    condition: Summary
    state: NodeState | None = None  # label
    code: str | None = None  # why the node is out of service, which the value of our taint names, too
    cordon: bool = False  # and no taint of ours
    reason_key: str = ""  # annotation that explains our cordon to another program; empty without one
    dismissed: tuple[str, ...] = ()  # codes whose quarantine a person has ended
    preflight: str | None = None  # key of a taint that should be there until the tests have passed
    causes: tuple[Cause, ...] = ()
    keeps_record: bool = False  # without its marks: another client has removed them, and they will be put back

    @property
    def taint(self) -> str | None:
        """The code that the value of our taint names; None without the taint."""
        return None if self.cordon else self.code


class Action(NamedTuple):
    """One change of the Node, or of something that belongs to it."""

    kind: str
    """taint, untaint, preflight, cordon, uncordon, label, dismissed, condition, event, report, slot_taken,
    slot_released or blocked"""
    target: str
    detail: str


class NodeChange(NamedTuple):
    """A patch of the Node that applies marks."""

    body: Object | None  # None if the Node has the marks already
    actions: tuple[Action, ...]  # actions of the request


# --- the target -------------------------------------------------------------------------------------------------------


def requested_codes(node: Object, desired: Desired) -> tuple[str, ...]:
    """Why the node should be quarantined: a manual request first, then findings."""
    return (MANUAL, *desired.quarantine) if out_of_service(node) else desired.quarantine


def quarantine_codes(
    node: Object, desired: Desired, people: Sequence[str] = PEOPLE
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The codes that may quarantine the node, and those whose quarantine a person has ended.

    A dismissal ends with its finding. A verdict of unknown ends none: a missing finding is no evidence then.
    """
    dismissed, codes = set(dismissed_codes(node)), requested_codes(node, desired)
    if ended_by_person(node, people):
        ours = record(node)
        dismissed |= {*codes, *([ours.code] if ours else [])}
    elif desired.verdict.verdict is not State.UNKNOWN:
        dismissed &= set(codes)
    dismissed -= {MANUAL} - set(codes)  # the end of a manual request shows on the Node, regardless of findings
    return tuple(code for code in codes if code not in dismissed), tuple(sorted(dismissed))


def is_admitted(node: Object, desired: Desired, people: Sequence[str] = PEOPLE) -> bool:
    """Whether the node went out by our action, and needs no new slots to stay out or to have its marks put back.

    A node that was out by a manual request which is over needs slots for what else keeps it out.
    """
    ours = record(node)
    if ours is None or ended_by_person(node, people):
        return False
    return ours.code != MANUAL or MANUAL in quarantine_codes(node, desired, people)[0]


def cordoning(settings: Settings, node_labels: dict[str, str]) -> Callable[[str], bool]:
    """Whether a finding of a code cordons a node with these labels in place of our taint."""

    def cordons(code: str) -> bool:
        return CODES.exists(code) and Rule(CODES.get(code), settings.policy(code, node_labels)).cordons

    return (lambda _: True) if settings.mode == "cordon" else cordons


def target_marks(
    node: Object,
    desired: Desired,
    *,
    cordons: Callable[[str], bool],
    preflight_taint: str,
    people: Sequence[str] = PEOPLE,
    reason_key: str = "",
) -> NodeMarks:
    """The marks that the Node should carry if every budget had a slot for it.

    `cordons`: whether a finding of this code cordons the node; `preflight_taint`: the key of that taint; `people`:
    patterns of the field managers of people; `reason_key`: as in the marks. One such finding is enough for a cordon in
    place of the taint: a cordon keeps the same work away. Only what the record will name decides, so that an agent
    without memory, and an admission policy, find the same.
    """
    person, ours = override(node), record(node)
    codes, dismissed = quarantine_codes(node, desired, people)
    is_unknown = desired.verdict.verdict is State.UNKNOWN
    if person is Override.HEALTHY or (ours is None and has_taint(node)):  # the latter: out, but not by our action
        codes = ()
    elif ours is not None and is_admitted(node, desired, people) and not codes and is_unknown:
        codes = (ours.code,)  # without measurements nothing shows that the fault is gone
    code = codes[0] if codes else None
    keeps_causes = ours is not None and not desired.quarantine and is_unknown
    causes = ours.causes if ours is not None and keeps_causes else desired.causes
    marks = NodeMarks(
        condition=_condition(node, desired, manual=code == MANUAL),
        code=code,
        cordon=code is not None and any(map(cordons, [code, *(cause.code for cause in causes)])),
        dismissed=dismissed,
        preflight=preflight_taint if desired.preflight and person is None else None,
        causes=causes,
        reason_key=reason_key,
    )
    return _with_state(node, marks, desired, preflight_taint)


def marks_in_service(node: Object, target: NodeMarks, desired: Desired, *, preflight_taint: str) -> NodeMarks:
    """The marks of a node that stays in service because a budget blocks its quarantine."""
    return _with_state(node, msgspec.structs.replace(target, code=None, cordon=False), desired, preflight_taint)


def marks_kept_off(node: Object, target: NodeMarks, desired: Desired, *, preflight_taint: str) -> NodeMarks:
    """The marks of a node while those that a program has removed are not put back yet: its record stays."""
    kept = target if is_out(node) else marks_in_service(node, target, desired, preflight_taint=preflight_taint)
    return msgspec.structs.replace(kept, code=None, cordon=False, keeps_record=True)


def _with_state(node: Object, marks: NodeMarks, desired: Desired, preflight_taint: str) -> NodeMarks:
    event = agent_event(
        desired.verdict.verdict,
        preflight=marks.preflight is not None or has_taint(node, preflight_taint),
        quarantined=marks.code is not None,
        declared_healthy=override(node) is Override.HEALTHY,
    )
    return msgspec.structs.replace(marks, state=next_state(state_of(labels(node).get(STATE_LABEL)), event))


def _condition(node: Object, desired: Desired, *, manual: bool) -> Summary:
    found = summary(desired.verdict, override(node), desired.release)
    if not manual:
        return found
    reason = ConditionReason.OUT_OF_SERVICE if found.status == "True" else found.reason
    message = f"manually out of service: {out_of_service(node)}; {found.message}"[:MESSAGE_LIMIT]
    return Summary(found.status, reason, message)


# --- the patch --------------------------------------------------------------------------------------------------------


def node_change(node: Object, marks: NodeMarks, now: datetime) -> NodeChange:
    """A merge patch under the resourceVersion: its lists and annotations are complete, and no other change is lost."""
    ours = record(node)
    spec, actions, added = _spec_change(node, marks, ours)
    metadata: Object = {}
    new_record = ours if marks.keeps_record else None
    if marks.code is not None and (ours is not None or not has_taint(node)):
        since = ours.since if ours else now.replace(microsecond=0)
        new_record = QuarantineRecord(marks.code, since, added.cordon, marks.causes, added.taint)
    annotations: Object = _cordon_reason(node, marks.reason_key, new_record)
    if new_record != ours:
        annotations[QUARANTINE] = msgspec.json.encode(new_record).decode() if new_record else None
    if marks.dismissed != dismissed_codes(node):
        annotations[DISMISSED] = ",".join(marks.dismissed) or None
        actions.append(Action("dismissed", DISMISSED, ",".join(marks.dismissed)))
    if annotations:
        metadata["annotations"] = annotations
    if marks.state is not None and labels(node).get(STATE_LABEL) != marks.state:
        metadata["labels"] = {STATE_LABEL: str(marks.state)}
        actions.append(Action("label", STATE_LABEL, str(marks.state)))
    if not spec and not metadata:
        return NodeChange(None, tuple(actions))
    metadata["resourceVersion"] = node["metadata"]["resourceVersion"]
    return NodeChange({"metadata": metadata, **({"spec": spec} if spec else {})}, tuple(actions))


def _cordon_reason(node: Object, key: str, kept: QuarantineRecord | None) -> Object:
    """The change of the annotation `key` that explains our cordon to another program; a text of others stays."""
    present = annotations_of(node).get(key)
    wanted = f"{CORDON_REASON}{kept.code}" if kept is not None and kept.cordoned else None
    is_ours = present is None or present.startswith(CORDON_REASON)
    return {key: wanted} if key and is_ours and present != wanted else {}


class _Added(NamedTuple):
    """The marks on the Node that are ours."""

    taint: bool
    cordon: bool


def _spec_change(node: Object, marks: NodeMarks, ours: QuarantineRecord | None) -> tuple[Object, list[Action], _Added]:
    """The changed fields of the spec, what that does, and which marks are ours then."""
    spec: Object = {}
    actions: list[Action] = []
    name = node["metadata"]["name"]
    tainted, cordoned = (ours.tainted, ours.cordoned) if ours is not None else (False, False)
    if not marks.keeps_record:
        if (new := _new_taints(node, marks, ours=tainted)) is not None:
            spec["taints"] = new
            actions.append(Action("taint" if marks.taint else "untaint", TAINT, marks.taint or ""))
        tainted = marks.taint is not None and (tainted or not has_taint(node))
    if marks.preflight and not has_taint(node, marks.preflight):
        pending = {"key": marks.preflight, "value": PENDING, "effect": "NoSchedule"}
        spec["taints"] = [*spec.get("taints", taints(node)), pending]
        actions.append(Action("preflight", marks.preflight, PENDING))
    if marks.cordon and not unschedulable(node):
        spec["unschedulable"] = cordoned = True
        actions.append(Action("cordon", name, marks.code or ""))
    elif cordoned and not marks.cordon and not marks.keeps_record:
        cordoned = False
        if unschedulable(node):
            spec["unschedulable"] = None
            actions.append(Action("uncordon", name, ""))
    return spec, actions, _Added(tainted, cordoned)


def _new_taints(node: Object, marks: NodeMarks, *, ours: bool) -> list[Object] | None:
    """The complete new list, or None if it does not change. A taint of our key that is not `ours` stays."""
    others = [taint for taint in taints(node) if taint["key"] != TAINT]
    present = [taint for taint in taints(node) if taint["key"] == TAINT]
    if present and not ours:
        return None
    wanted = [] if marks.taint is None else [{"key": TAINT, "value": _value(marks.taint), "effect": "NoSchedule"}]
    return None if present == wanted else others + wanted


def _value(code: str) -> str:
    """A code as the value of a taint, which has the syntax of a label's."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", code)[:63].strip("-._")
