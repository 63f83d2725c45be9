"""How a Node should look and the patch that makes it so, as pure functions: what is written, and what is left alone."""

from __future__ import annotations

from datetime import timedelta

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from testing.cluster_objects import T0, finding, verdict
from testing.node_writing import node_object

from gpuhealth.api.names import DISMISSED, STATE_LABEL, TAINT, NodeState
from gpuhealth.kube.client import Object
from gpuhealth.model.verdict import State
from gpuhealth.quarantine.condition import Summary
from gpuhealth.quarantine.target import Desired, NodeChange, NodeMarks, node_change, quarantine_codes

SUMMARY = Summary("True", "Healthy", "no fault found")
HEALTHY = NodeMarks(condition=SUMMARY, state=NodeState.HEALTHY)
SICK = NodeMarks(condition=Summary("False", "Xid79", "gone"), state=NodeState.QUARANTINED, code="xid.79")
THEIRS = {"key": "other", "value": "x", "effect": "NoExecute"}


def applied(current: Object, marks: NodeMarks) -> Object:
    """The Node after the patch was sent."""
    change = node_change(current, marks, T0).body
    metadata, spec = dict(current["metadata"]), dict(current["spec"])
    if change:
        for part in ("labels", "annotations"):
            merged = metadata[part] | change["metadata"].get(part, {})
            metadata[part] = {key: value for key, value in merged.items() if value is not None}
        spec |= change.get("spec", {})
        spec = {key: value for key, value in spec.items() if value is not None}
    return {"metadata": metadata, "spec": spec, "status": current["status"]}


MARKS = st.builds(
    NodeMarks,
    condition=st.just(SUMMARY),
    state=st.sampled_from([NodeState.HEALTHY, NodeState.DEGRADED, NodeState.QUARANTINED]),
    code=st.sampled_from([None, "xid.79", "ecc.uncorrectable"]),
    cordon=st.booleans(),
    dismissed=st.sampled_from([(), ("xid.31",)]),
    reason_key=st.just("example.com/reason"),
).map(lambda marks: marks if marks.code else msgspec.structs.replace(marks, cordon=False))
"""A cordon has a reason."""


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)  # other work on the machine
@given(st.lists(MARKS, min_size=1, max_size=5), st.booleans(), st.booleans())
def test_marks_converge_and_leave_others_alone(steps: list[NodeMarks], tainted: bool, cordoned: bool) -> None:
    """Whatever was there, one round of patches makes it right, a second changes nothing, and others' marks stay."""
    spec: Object = ({"taints": [THEIRS]} if tainted else {}) | ({"unschedulable": True} if cordoned else {})
    current = node_object(spec=spec, labels={"a": "b"}, annotations={"c": "d"})
    for marks in steps:
        current = applied(current, marks)
        assert node_change(current, marks, T0 + timedelta(minutes=2)) == NodeChange(None, ())
        taints = current["spec"].get("taints", [])
        assert [t for t in taints if t["key"] != TAINT] == ([THEIRS] if tainted else [])
        assert [t["value"] for t in taints if t["key"] == TAINT] == ([marks.taint] if marks.taint else [])
        assert bool(current["spec"].get("unschedulable")) == (cordoned or marks.cordon)
        assert current["metadata"]["labels"] == {"a": "b", STATE_LABEL: marks.state}
        assert current["metadata"]["annotations"]["c"] == "d"
        reason = f"gpuhealth: {marks.code}" if marks.cordon and not cordoned else None
        assert current["metadata"]["annotations"].get("example.com/reason") == reason


def test_change_is_under_the_resource_version() -> None:
    """The list of taints is atomic, so it is only replaced in the version that was looked at."""
    change = node_change(node_object(spec={"taints": [THEIRS]}), SICK, T0).body
    assert change is not None
    assert change["metadata"]["resourceVersion"] == "7"
    assert change["spec"]["taints"] == [THEIRS, {"key": TAINT, "value": "xid.79", "effect": "NoSchedule"}]


def test_taint_of_our_key_by_a_person_stays() -> None:
    """Without our annotation a taint is not ours, whatever its key."""
    manual = {"key": TAINT, "value": "by-hand", "effect": "NoSchedule"}
    change = node_change(node_object(spec={"taints": [manual]}), HEALTHY, T0).body
    assert change is not None
    assert "spec" not in change


def test_dismissed_codes_do_not_quarantine_again_until_cleared() -> None:
    """A dismissed finding does not quarantine again, another one does; unknown ends no dismissal, clearance does."""
    dismissed = node_object(annotations={DISMISSED: "xid.79"})
    both = Desired(verdict=verdict(finding()), quarantine=("xid.79", "ecc.uncorrectable"))
    assert quarantine_codes(dismissed, both) == (("ecc.uncorrectable",), ("xid.79",))
    assert quarantine_codes(dismissed, Desired(verdict=verdict(state=State.UNKNOWN))) == ((), ("xid.79",))
    assert quarantine_codes(dismissed, Desired(verdict=verdict())) == ((), ())


CORDON = msgspec.structs.replace(SICK, cordon=True, reason_key="example.com/reason")


def test_the_reason_of_our_cordon() -> None:
    """Another program finds it in the same request as the cordon; it goes with it, and a text of others stays."""
    change = node_change(node_object(), CORDON, T0).body
    assert change is not None
    assert change["spec"] == {"unschedulable": True}
    assert change["metadata"]["annotations"]["example.com/reason"] == "gpuhealth: xid.79"
    back = applied(applied(node_object(), CORDON), msgspec.structs.replace(HEALTHY, reason_key="example.com/reason"))
    assert "example.com/reason" not in back["metadata"]["annotations"]
    theirs = {"example.com/reason": "a broken fan"}
    assert applied(node_object(annotations=theirs), CORDON)["metadata"]["annotations"].items() >= theirs.items()
