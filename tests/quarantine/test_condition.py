"""The condition GPUHealthy: what it says of a verdict, and when it is written."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from testing.cluster_objects import T0, finding, verdict
from testing.node_writing import node_object

from gpuhealth.api.names import CONDITION, Override
from gpuhealth.kube.client import Object
from gpuhealth.model.component import NODE, gpu
from gpuhealth.model.finding import Severity
from gpuhealth.model.missing import MissingReason
from gpuhealth.model.verdict import NotCovered, State
from gpuhealth.monitors.nvidia.readings import Release
from gpuhealth.quarantine.condition import MESSAGE_LIMIT, Summary, condition_patch, condition_reason, is_due, summary

HEALTHY = Summary("True", "Healthy", "no fault found")
SICK = Summary("False", "Xid79", "xid.79: gone")
RELEASE = Release(("driver_upgrade",), T0, known=True)
RELEASED_TEXT = "the driver is released (driver_upgrade) since 2026-03-01T12:00:00Z: NVML is not measured"


@pytest.mark.parametrize(
    ("code", "reason"),
    [("xid.79", "Xid79"), ("ecc.uncorrectable", "EccUncorrectable"), ("gpu.recovery_action", "GpuRecoveryAction")],
)
def test_reason_is_the_code_in_camel_case(code: str, reason: str) -> None:
    """A condition's reason is one word."""
    assert condition_reason(code) == reason


def applied(current: Object, wanted: Summary, now: datetime = T0) -> Object:
    """The Node after the patch was sent."""
    conditions = [c for c in current["status"]["conditions"] if c["type"] != CONDITION]
    conditions += condition_patch(current, wanted, now)["status"]["conditions"]
    return {**current, "status": {"conditions": conditions}}


def test_transition_time_changes_with_the_status_only() -> None:
    """Another message keeps lastTransitionTime; another status does not."""
    first = applied(node_object(), HEALTHY)
    before = first["status"]["conditions"][0]
    later = T0 + timedelta(hours=1)
    other = condition_patch(first, Summary("True", "Other", "m"), later)
    assert other["status"]["conditions"][0]["lastTransitionTime"] == before["lastTransitionTime"]
    worse = condition_patch(first, SICK, later)
    assert worse["status"]["conditions"][0]["lastTransitionTime"] == "2026-03-01T13:00:00Z"


def test_wording_is_renewed_at_most_once_a_minute() -> None:
    """A number in a message costs no write a round; a reason is written at once, and the same text never."""
    first = applied(node_object(), SICK)
    warmer = Summary(SICK.status, SICK.reason, "other words")
    assert not is_due(first, warmer, T0 + timedelta(seconds=30))
    assert is_due(first, warmer, T0 + timedelta(seconds=61))
    assert is_due(first, Summary(SICK.status, "Other", SICK.message), T0)
    assert not is_due(first, SICK, T0 + timedelta(hours=1))


@pytest.mark.parametrize("heartbeat", [None, "0000-01-01T00:00:00Z", "9999-12-31T23:59:59-01:00"])
def test_a_heartbeat_that_is_no_time(heartbeat: str | None) -> None:
    """What the API server takes for a time and Python does not makes the condition due, and breaks nothing."""
    first = applied(node_object(), SICK)
    first["status"]["conditions"][0]["lastHeartbeatTime"] = heartbeat
    assert is_due(first, Summary(SICK.status, SICK.reason, "other words"), T0)


def test_message_is_complete_and_one_line() -> None:
    """All findings but the merely informative ones, the worst first, without line breaks."""
    found = verdict(
        finding("pcie.width", Severity.WARNING, gpu("GPU-1"), "x8 of\n x16"),
        finding("xid.79", component=gpu("GPU-0")),
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
    found = verdict(state=state, not_checked=(NotCovered("ecc", gpu("GPU-0"), MissingReason.TIMEOUT),))
    assert summary(found)[:2] == (status, reason)
    assert ("ecc (timeout (GPU-0))" in summary(found)[2]) is (state is State.UNKNOWN)


def test_a_released_driver_is_in_the_condition() -> None:
    """The status is what was known before; reason and message say that it is not being measured."""
    not_checked = (NotCovered("gpu.lost", gpu("GPU-0"), MissingReason.RELEASED, "so long"),)
    healthy = verdict(not_checked=not_checked)
    assert summary(healthy, release=RELEASE) == ("True", "DriverReleased", RELEASED_TEXT)
    status, reason, message = summary(verdict(finding(), not_checked=not_checked), release=RELEASE)
    assert (status, reason) == ("False", "Xid79")
    assert message.startswith(f"{RELEASED_TEXT}; xid.79")
    too_long = verdict(state=State.UNKNOWN, not_checked=not_checked)
    assert summary(too_long, release=RELEASE) == ("Unknown", "DriverReleased", RELEASED_TEXT)
    blind = verdict(
        state=State.UNKNOWN, not_checked=(*not_checked, NotCovered("xid", NODE, MissingReason.ERROR, "no log"))
    )
    assert summary(blind, release=RELEASE)[2] == f"{RELEASED_TEXT}; not measured: xid (error: no log (node))"


def test_a_clock_that_was_ahead_keeps_no_wording() -> None:
    """A condition that was written in what is now the future is renewed, not kept until then."""
    future = applied(node_object(), Summary("False", "Xid79", "first"))
    future["status"]["conditions"][0]["lastHeartbeatTime"] = "2027-03-01T12:00:00Z"
    second = Summary("False", "Xid79", "second")
    assert is_due(future, second, T0)
    patch = condition_patch(future, second, T0)
    assert patch["status"]["conditions"][0]["lastHeartbeatTime"] == "2026-03-01T12:00:00Z"


def test_override_is_in_the_condition() -> None:
    """A node that a person declares healthy says so, and still says what was found."""
    status, reason, message = summary(verdict(finding()), Override.HEALTHY)
    assert (status, reason) == ("True", "Override")
    assert "xid.79" in message
