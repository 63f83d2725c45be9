"""What stands on a Node, read by pure functions: people's annotations, our record, and requests for the driver."""

from __future__ import annotations

import json

import pytest
from testing.cluster_objects import T0
from testing.node_writing import node_object

from gpuhealth.api.names import OVERRIDE, QUARANTINE, TAINT, Override
from gpuhealth.kube.client import Object
from gpuhealth.model.causes import Cause
from gpuhealth.model.component import NODE
from gpuhealth.quarantine.marks import is_out, marks_removed, override, record

OURS = '{"code":"xid.79","since":"2026-03-01T11:00:00Z","cordoned":%s}'


@pytest.mark.parametrize("value", ["healthy", "unmanaged"])
def test_override_is_read(value: str) -> None:
    """The two words of a person's override are understood."""
    assert override(node_object(annotations={OVERRIDE: value})) is Override(value)


@pytest.mark.parametrize("notes", [{}, {OVERRIDE: ""}, {OVERRIDE: "Healthy!"}])
def test_no_override(notes: dict[str, str]) -> None:
    """Anything else overrides nothing."""
    assert override(node_object(annotations=notes)) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"code":1}'])
def test_broken_annotation_is_nobodys(text: str) -> None:
    """An annotation that a person has edited claims nothing."""
    assert record(node_object(annotations={QUARANTINE: text})) is None


@pytest.mark.parametrize(
    ("spec", "cordoned", "removed"),
    [
        ({"taints": [{"key": TAINT, "value": "xid.79", "effect": "NoSchedule"}]}, "false", False),
        ({}, "false", True),
        ({"taints": [{"key": TAINT, "value": "xid.79", "effect": "NoSchedule"}]}, "true", True),
        ({"taints": [{"key": TAINT, "effect": "NoSchedule"}], "unschedulable": True}, "true", False),
        ({"unschedulable": True}, "true", True),
    ],
)
def test_another_client_removes_our_marks(spec: Object, cordoned: str, removed: bool) -> None:
    """Our taint removed, or the node uncordoned that we had cordoned; with the taint it is out all the same."""
    node = node_object(spec=spec, annotations={QUARANTINE: OURS % cordoned})
    assert marks_removed(node) is removed
    assert is_out(node) is bool(spec.get("taints"))


def test_the_record_of_an_earlier_version_is_ours() -> None:
    """Its causes name a GPU by a uuid alone: the node stays ours, and each of them may be about any component."""
    old = {"code": "xid.95", "since": "2026-03-01T12:00:00Z", "gpu": "GPU-1", "boot_id": "boot-1"}
    text = json.dumps({"code": "xid.95", "since": "2026-03-01T12:00:00Z", "causes": [old]})
    taint = {"key": TAINT, "value": "xid.95", "effect": "NoSchedule"}
    out = node_object(annotations={QUARANTINE: text}, spec={"taints": [taint]})
    ours = record(out)
    assert ours is not None
    assert ours.causes == (Cause("xid.95", T0, NODE, "boot-1"),)
