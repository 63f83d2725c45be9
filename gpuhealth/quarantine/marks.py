"""The marks on our own Node: what should be there, what is, and the patches in between. Pure; `writer` sends them.

Who put a mark there decides who may take it away. Our taint and our cordon are ours by the annotation
`gpuhealth.io/quarantine`, which is written in the same request as they are; without it they are someone else's and
stay. With it, but with the taint gone or the node uncordoned, a person has ended the quarantine: the codes it was for
go to the annotation `gpuhealth.io/dismissed` and do not quarantine again until their findings have cleared.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from gpuhealth.api.names import (
    CONDITION,
    DISMISSED,
    DRIVER_UPGRADE_STATE,
    FLEET_FINDINGS,
    MANUAL,
    OUT_OF_SERVICE,
    OVERRIDE,
    PENDING,
    QUARANTINE,
    RELEASE_GPUS,
    RESTORED,
    STATE_LABEL,
    TAINT,
    ConditionReason,
    NodeState,
    Override,
)
from gpuhealth.kube.errors import AnswerError
from gpuhealth.model.causes import Cause
from gpuhealth.model.component import NODE
from gpuhealth.model.finding import Finding, Severity
from gpuhealth.model.missing import Missing, MissingReason, Reading
from gpuhealth.model.time import ZonedTime
from gpuhealth.model.verdict import NotCovered, State, Verdict
from gpuhealth.monitors.fleet_findings.readings import FleetFinding
from gpuhealth.monitors.nvidia.readings import Release

Object = dict[str, Any]

MESSAGE_LIMIT = 32_768
"""Of a condition's message. The API server sets no limit for those of Nodes; this is the one of metav1.Condition."""
REFRESH = timedelta(minutes=1)
"""How often a text is renewed that says the same with other numbers: a temperature in it costs no write a round."""
_CONTROLLERS_STATES = {NodeState.DRAINING, NodeState.DRAINED}
# NVIDIA's upgrade controller (github.com/NVIDIA/k8s-operator-libs, pkg/upgrade/consts.go and common_manager.go) goes
# from cordon-required and wait-for-jobs-required, which may last for as long as jobs do, through the first two of
# these, in which what uses the GPUs is moved away, to the restart of the driver's pod, which unloads the kernel module
# and fails while anybody holds it. In validation-required the new driver runs; upgrade-failed is a fault to be seen.
_DRIVER_GOES = {"pod-deletion-required", "drain-required", "post-maintenance-required", "pod-restart-required"}
_YEARS = (1970, 9990)  # in which times can be calculated with, whatever their zone
RELEASE_REQUESTS = ("annotation", "driver_upgrade")


class Desired(msgspec.Struct, frozen=True):
    """What follows from the findings, for the cluster."""

    verdict: Verdict
    quarantine: tuple[str, ...] = ()  # codes of the findings that want the node out of service, the worst first
    drain: bool = False  # whether what runs there should be moved away, too
    release: Release | None = None  # of the driver, now
    preflight: bool = False  # whether the node is to pass its first tests once more
    causes: tuple[Cause, ...] = ()  # why it should be out, for the record


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """What we put on the Node, as its annotation says.

    It also says why, so that an agent that has lost its memory does not take that for the end of a fault.
    """

    code: str
    since: ZonedTime
    cordoned: bool = False  # by us; a node that was already cordoned stays so
    causes: tuple[Cause, ...] = ()  # none in a record of an older version


class Marks(msgspec.Struct, frozen=True):
    """How the Node should look."""

    status: str  # of the condition: True, False, Unknown
    reason: str
    message: str
    state: str  # label
    taint: str | None = None  # value of our taint: a finding's code
    cordon: bool = False
    released: tuple[str, ...] = ()
    preflight: str | None = None  # key of a taint that should be there until the tests have passed
    causes: tuple[Cause, ...] = ()


class Act(msgspec.Struct, frozen=True):
    """One thing that was done, or would have been."""

    kind: str
    """slot, give_back, blocked, taint, untaint, preflight, cordon, uncordon, label, dismissed, condition, event or
    report"""
    target: str
    detail: str
    time: datetime
    done: bool = True


class Patches(msgspec.Struct, frozen=True):
    """The requests that make a Node look as it should; None where it does already."""

    node: Object | None
    status: Object | None
    acts: tuple[Act, ...]


def whole(node: Object) -> Object:
    """The Node, if its taints and conditions can be read. Raises AnswerError."""
    for name, key, found in (
        ("taints", "key", node.get("spec", {}).get("taints") or []),
        ("conditions", "type", node.get("status", {}).get("conditions") or []),
    ):
        if not isinstance(found, list) or not all(isinstance(each, dict) and key in each for each in found):
            raise AnswerError(f"the answer is no whole Node: its {name} cannot be read")
    return node


def override(node: Object) -> Override | None:
    """What a person's annotation says; a word that is not known says nothing."""
    value = notes(node).get(OVERRIDE)
    return Override(value) if value in set(Override) else None


def out_of_service(node: Object) -> str:
    """Why a person wants the node out of service, on one line; empty if nobody does."""
    return " ".join(notes(node).get(OUT_OF_SERVICE, "").split())[:1024]


def fleet_findings(annotations: Mapping[str, str]) -> Reading[tuple[FleetFinding, ...]]:
    """What the controller says of the node's GPUs."""
    try:
        return msgspec.json.decode(annotations.get(FLEET_FINDINGS, "[]"), type=tuple[FleetFinding, ...])
    except msgspec.DecodeError as error:
        return Missing(MissingReason.ERROR, f"annotation {FLEET_FINDINGS}: {error}")


def restored(annotations: Mapping[str, str]) -> datetime | None:
    """When a person has declared the node well; None where nobody has, or what is written there is no time."""
    try:
        time = datetime.fromisoformat(annotations[RESTORED])
    except (KeyError, ValueError):
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def notes(node: Object) -> dict[str, str]:
    """The Node's annotations."""
    return node["metadata"].get("annotations") or {}


def labels(node: Object) -> dict[str, str]:
    """The Node's labels."""
    return node["metadata"].get("labels") or {}


def taints(node: Object) -> list[Object]:
    """The Node's taints."""
    return node.get("spec", {}).get("taints") or []


def unschedulable(node: Object) -> bool:
    """Whether the Node is cordoned, by whomever."""
    return bool(node.get("spec", {}).get("unschedulable"))


def condition(node: Object, kind: str = CONDITION) -> Object | None:
    """Our condition on the Node, or another one."""
    conditions: list[Object] = node.get("status", {}).get("conditions") or []
    return next((found for found in conditions if found["type"] == kind), None)


def is_ready(node: Object) -> bool:
    """Whether its kubelet says that it is."""
    return (condition(node, "Ready") or {}).get("status") == "True"


def record(node: Object) -> Record | None:
    """What we put on the Node, if anything."""
    try:
        found = msgspec.json.decode(notes(node)[QUARANTINE], type=Record)
    except (KeyError, msgspec.DecodeError, RecursionError):  # a person's edit: then nothing on it is known to be ours
        return None
    times = (found.since, *(cause.since for cause in found.causes))
    return found if all(_YEARS[0] <= time.year <= _YEARS[1] for time in times) else None


def is_out(node: Object) -> bool:
    """Whether it is out of service by our hand, and no person has ended that."""
    return record(node) is not None and not ended_by_person(node)


def unknown_record(node: Object) -> str:
    """The text of a record that is there and cannot be read; empty where it can, and where there is none."""
    return "" if record(node) else notes(node).get(QUARANTINE, "")


def causes(node: Object) -> tuple[Cause, ...]:
    """The findings for which the node is out of service, as its record says; none once a person has ended that."""
    ours = record(node)
    if ours is None or ended_by_person(node) or override(node) is not None:
        return ()
    alone = () if ours.code == MANUAL else (Cause(ours.code, ours.since),)
    return tuple(cause for cause in ours.causes or alone if cause.code not in released(node))


def released(node: Object) -> tuple[str, ...]:
    """The codes whose quarantine a person has ended."""
    return tuple(code for code in notes(node).get(DISMISSED, "").split(",") if code)


def ended_by_person(node: Object) -> bool:
    """Whether someone took our taint away or uncordoned what we had cordoned."""
    ours = record(node)
    if ours is None:
        return False
    return not has_taint(node) or (ours.cordoned and not unschedulable(node))


def all_codes(node: Object, desired: Desired) -> tuple[str, ...]:
    """What wants the node out of service: a person first, then the findings."""
    return (MANUAL, *desired.quarantine) if out_of_service(node) else desired.quarantine


def release_requests(node: Object) -> tuple[str, ...]:
    """Which of `RELEASE_REQUESTS` the Node makes: to let go of the driver, until they are gone."""
    asked = (notes(node).get(RELEASE_GPUS) == "true", labels(node).get(DRIVER_UPGRADE_STATE) in _DRIVER_GOES)
    return tuple(reason for reason, wanted in zip(RELEASE_REQUESTS, asked, strict=True) if wanted)


def wanted_codes(node: Object, desired: Desired) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The codes that may quarantine the node, and those that a person has released it from.

    A release ends with its finding; a verdict of unknown ends nothing, since silence is no evidence.
    """
    freed, codes = set(released(node)), all_codes(node, desired)
    if ended_by_person(node):
        freed |= set(codes) | {r.code for r in [record(node)] if r}
    elif desired.verdict.verdict is not State.UNKNOWN:
        freed &= set(codes)
    freed -= {MANUAL} - set(codes)  # a person's wish that is over is known to be over
    return tuple(code for code in codes if code not in freed), tuple(sorted(freed))


def camel(code: str) -> str:
    """A finding's code as a reason: xid.79 is Xid79, ecc.uncorrectable is EccUncorrectable."""
    return "".join(part[:1].upper() + part[1:] for part in re.split(r"[^A-Za-z0-9]+", code))


def by_severity(findings: Iterable[Finding]) -> list[Finding]:
    """The worst first, equal ones in a lasting order."""
    return sorted(findings, key=lambda f: (-f.severity.rank, f.code, f.component))


def summary(
    verdict: Verdict, by_person: Override | None = None, release: Release | None = None
) -> tuple[str, str, str]:
    """Status, reason and message of the condition. A warning leaves it True: the node can work.

    While the driver is released the status is what was known before, and the message says so.
    """
    worrying = [f for f in by_severity(verdict.findings) if f.severity is not Severity.INFO]
    message = _line(worrying)
    if by_person is Override.HEALTHY:
        declared = f"declared healthy by annotation{'; found: ' if message else ''}{message}"
        return "True", ConditionReason.OVERRIDE, declared
    status = {State.UNHEALTHY: "False", State.UNKNOWN: "Unknown"}.get(verdict.verdict, "True")
    parts = [f"{release}: NVML is not measured"] if release else []
    parts += [message] if message else []
    if verdict.verdict is State.UNKNOWN:
        missing = {
            f"{item.check} ({item.reason})" for item in verdict.coverage.not_checked if not _excused(item, release)
        }
        parts += [] if release and not missing else ["not measured: " + (", ".join(sorted(missing)) or "anything yet")]
    if worrying:
        reason = camel(worrying[0].code)
    elif release:
        reason = ConditionReason.DRIVER_RELEASED
    elif verdict.verdict is State.UNKNOWN:
        reason = ConditionReason.NOT_MEASURED
    else:
        reason = ConditionReason.HEALTHY
    return status, reason, ("; ".join(parts) or "no fault found")[:MESSAGE_LIMIT]


def _excused(item: NotCovered, release: Release | None) -> bool:
    return release is not None and item.reason.startswith(MissingReason.RELEASED)


def _line(findings: list[Finding]) -> str:
    """All findings on one line; where even the limit is not enough, it says how many are left out."""
    parts: list[str] = []
    length = 0
    for index, finding in enumerate(findings):
        where = "" if finding.component == NODE else f" {finding.component}"
        part = " ".join(f"{finding.code}{where}: {finding.message}".split())
        length += len(part.encode()) + 2
        if length > MESSAGE_LIMIT - 200:  # room for this sentence, and for what was not measured
            return "; ".join([*parts, f"and {len(findings) - index} more, see kubectl get ghr"])
        parts.append(part)
    return "; ".join(parts)


def state_label(
    node: Object,
    verdict: Verdict,
    *,
    quarantined: bool,
    by_person: Override | None = None,
    preflight: bool = False,
) -> str:
    """The label's value. What the controller says of a node is kept while it holds; preflight lasts as its taint."""
    current = labels(node).get(STATE_LABEL, "")
    if preflight:
        return NodeState.PREFLIGHT
    if current in _CONTROLLERS_STATES and quarantined:
        return current
    if quarantined:
        return NodeState.QUARANTINED
    if current == NodeState.TESTING:
        return current
    healthy = verdict.verdict is State.HEALTHY or by_person is Override.HEALTHY
    # Unknown, and blocked by a budget: not healthy, and still in service.
    return NodeState.HEALTHY if healthy else NodeState.DEGRADED


def patches(node: Object, marks: Marks, now: datetime) -> Patches:
    """What has to be written so that the Node carries the marks, and what that does."""
    change, acts = _node_patch(node, marks, now)
    status = _condition_patch(node, marks, now)
    if status is not None:
        acts.append(Act("condition", CONDITION, f"{marks.status} {marks.reason}: {marks.message}", now))
    return Patches(change, status, tuple(acts))


def _node_patch(node: Object, marks: Marks, now: datetime) -> tuple[Object | None, list[Act]]:
    """A merge patch under the resourceVersion: lists and annotations in it are whole, and nobody's change is lost."""
    acts: list[Act] = []
    ours = record(node)
    spec: Object = {}
    metadata: Object = {}
    if (marks.taint is not None or ours is not None) and (new := _new_taints(node, marks, ours)) is not None:
        spec["taints"] = new
        acts.append(Act("taint" if marks.taint else "untaint", TAINT, marks.taint or "", now))
    if marks.preflight and not has_taint(node, marks.preflight):
        pending = {"key": marks.preflight, "value": PENDING, "effect": "NoSchedule"}
        spec["taints"] = [*spec.get("taints", taints(node)), pending]
        acts.append(Act("preflight", marks.preflight, PENDING, now))
    cordoned = ours is not None and ours.cordoned
    if marks.cordon and not unschedulable(node):
        spec["unschedulable"] = cordoned = True
        acts.append(Act("cordon", node["metadata"]["name"], marks.taint or "", now))
    elif cordoned and not marks.cordon:
        cordoned = False
        if unschedulable(node):
            spec["unschedulable"] = None
            acts.append(Act("uncordon", node["metadata"]["name"], "", now))
    new_record = None
    if marks.taint is not None and (ours is not None or not has_taint(node)):
        since = ours.since if ours else now.replace(microsecond=0)
        new_record = Record(marks.taint, since, cordoned, marks.causes)
    new_notes: Object = {}
    if new_record != ours:
        new_notes[QUARANTINE] = msgspec.json.encode(new_record).decode() if new_record else None
    if marks.released != released(node):
        new_notes[DISMISSED] = ",".join(marks.released) or None
        acts.append(Act("dismissed", DISMISSED, ",".join(marks.released), now))
    if new_notes:
        metadata["annotations"] = new_notes
    if labels(node).get(STATE_LABEL) != marks.state:
        metadata["labels"] = {STATE_LABEL: marks.state}
        acts.append(Act("label", STATE_LABEL, marks.state, now))
    if not spec and not metadata:
        return None, acts
    metadata["resourceVersion"] = node["metadata"]["resourceVersion"]
    return {"metadata": metadata, **({"spec": spec} if spec else {})}, acts


def has_taint(node: Object, key: str = TAINT) -> bool:
    """Whether the Node carries a taint of our key, by whomever."""
    return any(taint["key"] == key for taint in taints(node))


def _new_taints(node: Object, marks: Marks, ours: Record | None) -> list[Object] | None:
    """The whole list as it should be, or None if it is; a taint of our key that we did not put there stays."""
    others = [taint for taint in taints(node) if taint["key"] != TAINT]
    present = [taint for taint in taints(node) if taint["key"] == TAINT]
    if present and ours is None:
        return None
    wanted = [] if marks.taint is None else [{"key": TAINT, "value": _value(marks.taint), "effect": "NoSchedule"}]
    return None if present == wanted else others + wanted


def _value(code: str) -> str:
    """A code as the value of a taint, which has the syntax of a label's."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", code)[:63].strip("-._")


def _condition_patch(node: Object, marks: Marks, now: datetime) -> Object | None:
    current = condition(node) or {}
    same = (current.get("status"), current.get("reason")) == (marks.status, marks.reason)
    if same and current.get("message") == marks.message:
        return None
    if same and timedelta(0) <= now - parsed_time(current.get("lastHeartbeatTime")) < REFRESH:  # clocks may be off
        return None
    return condition_patch(node, marks.status, marks.reason, marks.message, now)


def condition_patch(node: Object, status: str, reason: str, message: str, now: datetime) -> Object:
    """Our condition as it should be: a strategic merge patch, which leaves the conditions of others alone."""
    current = condition(node) or {}
    changed = written_time(now)
    if current.get("status") == status:
        changed = current.get("lastTransitionTime") or changed
    new = {"type": CONDITION, "status": status, "reason": reason, "message": message}
    times = {"lastTransitionTime": changed, "lastHeartbeatTime": written_time(now)}
    return {"status": {"conditions": [{**new, **times}]}}


def written_time(time: datetime) -> str:
    """A time as the API writes it."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parsed_time(text: str | None) -> datetime:
    """A time that the API wrote; without one, long ago."""
    return datetime.fromisoformat(text) if text else datetime.min.replace(tzinfo=UTC)
