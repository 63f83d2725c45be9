"""The changes that take our marks off a Node, as pure functions."""

from __future__ import annotations

from testing.node_writing import node_object

from gpuhealth.api.names import PREFLIGHT_TAINT, QUARANTINE, TAINT
from gpuhealth.installation.node_marks import removal

OURS = {"key": TAINT, "value": "xid.79", "effect": "NoSchedule"}
CORDONED = '{"code":"driver.not_loaded","since":"2026-03-01T12:00:00Z","cordoned":true,"tainted":false}'


def test_a_taint_that_the_record_does_not_claim_stays() -> None:
    """Of a node that we cordoned the cordon is removed; a taint that a person added is named, with the command."""
    notes = {QUARANTINE: CORDONED, "example.com/reason": "gpuhealth: driver.not_loaded", "example.com/note": "theirs"}
    node = node_object(spec={"taints": [OURS], "unschedulable": True}, annotations=notes)
    found = removal(node, {PREFLIGHT_TAINT})
    assert found.patch is not None
    assert found.patch["spec"] == {"unschedulable": None}
    assert found.patch["metadata"]["annotations"] == {QUARANTINE: None, "example.com/reason": None}
    assert found.returns == "driver.not_loaded"
    assert any(f"taint {TAINT}" in line for line in found.left)


def test_mirrors_are_removed() -> None:
    """The conditions of other types that agents write go too; those of others stay."""
    node = node_object(spec={})
    node["status"]["conditions"] = [{"type": kind, "status": "True"} for kind in ("Ready", "GPUHealthy", "GPUProblem")]
    found = removal(node, (), ["GPUProblem", "Absent"])
    assert found.status_patch is not None
    removed = {each["type"]: each["$patch"] for each in found.status_patch["status"]["conditions"]}
    assert removed == {"GPUHealthy": "delete", "GPUProblem": "delete"}
