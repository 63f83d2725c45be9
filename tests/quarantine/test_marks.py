"""The marks on a Node as pure functions: what is written, and what is left alone."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from testing.cluster_objects import T0, finding, verdict

from gpuhealth.api.names import CONDITION, DISMISSED, OVERRIDE, QUARANTINE, STATE_LABEL, TAINT, Override
from gpuhealth.model.finding import Severity
from gpuhealth.model.verdict import NotCovered, State
from gpuhealth.monitors.nvidia.readings import Release
from gpuhealth.quarantine.marks import (
    MESSAGE_LIMIT,
    REFRESH,
    Desired,
    Marks,
    Object,
    camel,
    condition,
    ended_by_person,
    override,
    patches,
    record,
    release_requests,
    state_label,
    summary,
    wanted_codes,
)

HEALTHY = Marks("True", "Healthy", "no fault found", "healthy")
SICK = Marks("False", "Xid79", "xid.79: gone", "quarantined", taint="xid.79")
THEIRS = {"key": "other", "value": "x", "effect": "NoExecute"}
OURS = '{"code":"xid.79","since":"2026-03-01T11:00:00Z","cordoned":%s}'


def node(*, labels: dict[str, str] | None = None, notes: dict[str, str] | None = None, **parts: Any) -> Object:
    """A Node with little on it."""
    metadata = {"name": "n", "resourceVersion": "7", "uid": "u", "labels": labels or {}, "annotations": notes or {}}
    return {"metadata": metadata, "spec": parts.get("spec", {}), "status": {"conditions": parts.get("conditions", [])}}


def written(object_: Object, marks: Marks) -> Object:
    """The Node after the patches were sent."""
    changes = patches(object_, marks, T0)
    metadata, spec = dict(object_["metadata"]), dict(object_["spec"])
    conditions = list(object_["status"]["conditions"])
    if changes.node:
        for part, whole in (("labels", metadata), ("annotations", metadata)):
            merged = whole[part] | changes.node["metadata"].get(part, {})
            whole[part] = {key: value for key, value in merged.items() if value is not None}
        spec |= changes.node.get("spec", {})
        spec = {key: value for key, value in spec.items() if value is not None}
    if changes.status:
        conditions = [c for c in conditions if c["type"] != CONDITION] + changes.status["status"]["conditions"]
    return {"metadata": metadata, "spec": spec, "status": {"conditions": conditions}}


@pytest.mark.parametrize(
    ("code", "reason"),
    [("xid.79", "Xid79"), ("ecc.uncorrectable", "EccUncorrectable"), ("gpu.recovery_action", "GpuRecoveryAction")],
)
def test_reason_is_the_code_in_camel_case(code: str, reason: str) -> None:
    """A condition's reason is one word."""
    assert camel(code) == reason


def consistent(marks: Marks) -> Marks:
    """A cordon comes with a taint."""
    return marks if marks.taint else msgspec.structs.replace(marks, cordon=False)


MARKS = st.builds(
    Marks,
    st.sampled_from(["True", "False", "Unknown"]),
    st.sampled_from(["Healthy", "Xid79"]),
    st.sampled_from(["a", "b"]),
    st.sampled_from(["healthy", "degraded", "quarantined"]),
    st.sampled_from([None, "xid.79", "ecc.uncorrectable"]),
    st.booleans(),
    st.sampled_from([(), ("xid.31",)]),
).map(
    lambda m: m if m.taint else Marks(m.status, m.reason, m.message, m.state, None, cordon=False, released=m.released)
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)  # other work on the machine
@given(st.lists(MARKS, min_size=1, max_size=5), st.booleans(), st.booleans())
def test_marks_converge_and_leave_others_alone(steps: list[Marks], tainted: bool, cordoned: bool) -> None:
    """Whatever was there, one round of patches makes it right, a second changes nothing, and others' marks stay."""
    spec: Object = ({"taints": [THEIRS]} if tainted else {}) | ({"unschedulable": True} if cordoned else {})
    current = node(spec=spec, labels={"a": "b"}, notes={"c": "d"})
    for marks in steps:
        current = written(current, marks)
        again = patches(current, marks, T0 + 2 * REFRESH)
        assert again.node is None
        if again.status is not None:  # a text that was not renewed within the minute
            current = written(current, marks)
        taints = current["spec"].get("taints", [])
        assert [t for t in taints if t["key"] != TAINT] == ([THEIRS] if tainted else [])
        assert [t["value"] for t in taints if t["key"] == TAINT] == ([marks.taint] if marks.taint else [])
        assert bool(current["spec"].get("unschedulable")) == (cordoned or marks.cordon)
        assert current["metadata"]["labels"] == {"a": "b", STATE_LABEL: marks.state}
        assert current["metadata"]["annotations"]["c"] == "d"


def test_change_is_under_the_resource_version() -> None:
    """The list of taints is atomic, so it is only replaced in the version that was looked at."""
    change = patches(node(spec={"taints": [THEIRS]}), SICK, T0).node
    assert change is not None
    assert change["metadata"]["resourceVersion"] == "7"
    assert change["spec"]["taints"] == [THEIRS, {"key": TAINT, "value": "xid.79", "effect": "NoSchedule"}]


def test_transition_time_changes_with_the_status_only() -> None:
    """Another message keeps lastTransitionTime; another status does not."""
    first = written(node(), HEALTHY)
    before = first["status"]["conditions"][0]
    later = T0 + timedelta(hours=1)
    other = patches(first, Marks("True", "Other", "m", "healthy"), later).status
    assert other is not None
    assert other["status"]["conditions"][0]["lastTransitionTime"] == before["lastTransitionTime"]
    worse = patches(first, SICK, later).status
    assert worse is not None
    assert worse["status"]["conditions"][0]["lastTransitionTime"] == "2026-03-01T13:00:00Z"


def test_wording_is_renewed_at_most_once_a_minute() -> None:
    """A number in a message costs no write a round; a reason is written at once."""
    first = written(node(), SICK)
    warmer = Marks(SICK.status, SICK.reason, "other words", SICK.state, SICK.taint)
    assert patches(first, warmer, T0 + timedelta(seconds=30)).status is None
    assert patches(first, warmer, T0 + timedelta(seconds=61)).status is not None


@pytest.mark.parametrize("value", ["healthy", "unmanaged"])
def test_override_is_read(value: str) -> None:
    """The two words of a person's override are understood."""
    assert override(node(notes={OVERRIDE: value})) is Override(value)


@pytest.mark.parametrize("notes", [{}, {OVERRIDE: ""}, {OVERRIDE: "Healthy!"}])
def test_no_override(notes: dict[str, str]) -> None:
    """Anything else overrides nothing."""
    assert override(node(notes=notes)) is None


def test_taint_of_our_key_by_a_person_stays() -> None:
    """Without our annotation a taint is not ours, whatever its key."""
    manual = {"key": TAINT, "value": "by-hand", "effect": "NoSchedule"}
    change = patches(node(spec={"taints": [manual]}), HEALTHY, T0).node
    assert change is not None
    assert "spec" not in change


@pytest.mark.parametrize("text", ["", "{", "[]", '{"code":1}'])
def test_broken_annotation_is_nobodys(text: str) -> None:
    """An annotation that a person has edited claims nothing."""
    assert record(node(notes={QUARANTINE: text})) is None


@pytest.mark.parametrize(
    ("spec", "cordoned", "ended"),
    [
        ({"taints": [{"key": TAINT, "value": "xid.79", "effect": "NoSchedule"}]}, "false", False),
        ({}, "false", True),
        ({"taints": [{"key": TAINT, "value": "xid.79", "effect": "NoSchedule"}]}, "true", True),
        ({"taints": [{"key": TAINT, "effect": "NoSchedule"}], "unschedulable": True}, "true", False),
        ({"unschedulable": True}, "true", True),
    ],
)
def test_a_person_ends_a_quarantine(spec: Object, cordoned: str, ended: bool) -> None:
    """Our taint removed, or the node uncordoned that we had cordoned."""
    assert ended_by_person(node(spec=spec, notes={QUARANTINE: OURS % cordoned})) is ended


def test_released_codes_do_not_quarantine_again_until_cleared() -> None:
    """The same finding is not acted on again; another one is; unknown ends no release, clearance does."""
    freed = node(notes={DISMISSED: "xid.79"})
    both = Desired(verdict(finding()), ("xid.79", "ecc.uncorrectable"))
    assert wanted_codes(freed, both) == (("ecc.uncorrectable",), ("xid.79",))
    assert wanted_codes(freed, Desired(verdict(state=State.UNKNOWN))) == ((), ("xid.79",))
    assert wanted_codes(freed, Desired(verdict())) == ((), ())


def test_message_is_complete_and_one_line() -> None:
    """All findings but the merely informative ones, the worst first, without line breaks."""
    found = verdict(
        finding("pcie.width", Severity.WARNING, "GPU-1", "x8 of\n x16"),
        finding("xid.79", component="GPU-0"),
        finding("note.x", Severity.INFO),
    )
    status, reason, message = summary(found)
    assert (status, reason) == ("False", "Xid79")
    assert message == "xid.79 GPU-0: GPU has fallen off the bus; pcie.width GPU-1: x8 of x16"


def test_message_says_what_it_leaves_out() -> None:
    """Beyond the limit of a condition the rest is counted, never cut."""
    many = verdict(*[finding(f"xid.{k}", message="m" * 400) for k in range(200)])
    message = summary(many)[2]
    assert len(message.encode()) <= MESSAGE_LIMIT
    shown = message.count("m" * 400)
    assert message.endswith(f"; and {200 - shown} more, see kubectl get ghr")


@pytest.mark.parametrize(
    ("state", "status", "reason"),
    [(State.HEALTHY, "True", "Healthy"), (State.UNKNOWN, "Unknown", "NotMeasured")],
)
def test_status_without_findings(state: State, status: str, reason: str) -> None:
    """Healthy is True; unknown is Unknown and names what was not measured."""
    found = verdict(state=state, not_checked=(NotCovered("ecc", "timeout"),))
    assert summary(found)[:2] == (status, reason)
    assert ("ecc (timeout)" in summary(found)[2]) is (state is State.UNKNOWN)


UPGRADE = "nvidia.com/gpu-driver-upgrade-state"
RELEASE = Release(("driver_upgrade",), T0, known=True)
RELEASED_TEXT = "the driver is released (driver_upgrade) since 2026-03-01T12:00:00Z: NVML is not measured"


@pytest.mark.parametrize(
    ("state", "requests"),
    [
        ("", ()),
        ("upgrade-required", ()),
        ("cordon-required", ()),
        ("wait-for-jobs-required", ()),
        ("pod-deletion-required", ("driver_upgrade",)),
        ("drain-required", ("driver_upgrade",)),
        ("node-maintenance-required", ()),
        ("post-maintenance-required", ("driver_upgrade",)),
        ("pod-restart-required", ("driver_upgrade",)),
        ("validation-required", ()),
        ("uncordon-required", ()),
        ("upgrade-done", ()),
        ("upgrade-failed", ()),
    ],
)
def test_the_operators_upgrade_asks_for_the_driver(state: str, requests: tuple[str, ...]) -> None:
    """In those states in which the driver's pod is about to be restarted, and in no other."""
    assert release_requests(node(labels={UPGRADE: state})) == requests
    both = node(labels={UPGRADE: state}, notes={"gpuhealth.io/release-gpus": "true"})
    assert release_requests(both) == ("annotation", *requests)
    assert release_requests(node(notes={"gpuhealth.io/release-gpus": "false"})) == ()


def test_a_released_driver_is_in_the_condition() -> None:
    """The status is what was known before; reason and message say that it is not being measured."""
    not_checked = (NotCovered("gpu.lost", "released: so long"),)
    healthy = verdict(not_checked=not_checked)
    assert summary(healthy, release=RELEASE) == ("True", "DriverReleased", RELEASED_TEXT)
    status, reason, message = summary(verdict(finding(), not_checked=not_checked), release=RELEASE)
    assert (status, reason) == ("False", "Xid79")
    assert message.startswith(f"{RELEASED_TEXT}; xid.79")
    too_long = verdict(state=State.UNKNOWN, not_checked=not_checked)
    assert summary(too_long, release=RELEASE) == ("Unknown", "DriverReleased", RELEASED_TEXT)
    blind = verdict(state=State.UNKNOWN, not_checked=(*not_checked, NotCovered("xid", "error: no log")))
    assert summary(blind, release=RELEASE)[2] == f"{RELEASED_TEXT}; not measured: xid (error: no log)"


def test_a_clock_that_was_ahead_keeps_no_wording() -> None:
    """A condition that was written in what is now the future is renewed, not kept until then."""
    future = written(node(), Marks("False", "Xid79", "first", "healthy"))
    condition(future)["lastHeartbeatTime"] = "2027-03-01T12:00:00Z"  # type: ignore[index]
    patch = patches(future, Marks("False", "Xid79", "second", "healthy"), T0).status
    assert patch
    assert patch["status"]["conditions"][0]["lastHeartbeatTime"] == "2026-03-01T12:00:00Z"


def test_override_is_in_the_condition() -> None:
    """A node that a person declares healthy says so, and still says what was found."""
    status, reason, message = summary(verdict(finding()), Override.HEALTHY)
    assert (status, reason) == ("True", "Override")
    assert "xid.79" in message


@pytest.mark.parametrize(
    ("current", "found", "quarantined", "label"),
    [
        ("", verdict(), False, "healthy"),
        ("", verdict(finding(severity=Severity.WARNING)), False, "degraded"),
        ("", verdict(state=State.UNKNOWN), False, "degraded"),
        ("healthy", verdict(finding()), True, "quarantined"),
        ("draining", verdict(finding()), True, "draining"),
        ("drained", verdict(), False, "healthy"),
        ("preflight", verdict(), False, "healthy"),  # its taint is gone
        ("testing", verdict(), False, "testing"),
        ("testing", verdict(finding()), True, "quarantined"),
    ],
)
def test_state_label(current: str, found: Any, quarantined: bool, label: str) -> None:
    """The controller's and the burn-in's words are kept while they hold."""
    current_node = node(labels={STATE_LABEL: current})
    assert state_label(current_node, found, quarantined=quarantined) == label
    assert state_label(current_node, found, quarantined=quarantined, preflight=True) == "preflight"
