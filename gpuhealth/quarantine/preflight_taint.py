"""The preflight taint of a Node: the JSON patches that take it off or say that the tests failed. Pure.

`spec.taints` is one list that others change too. Every operation is preceded by a `test` of what it is about to change:
if the list has moved meanwhile the API server refuses the whole patch, and the Node is read again.
"""

from __future__ import annotations

from gpuhealth.api.names import FAILED, STATE_LABEL, NodeState
from gpuhealth.kube.client import Object
from gpuhealth.quarantine.marks import labels, taints

_LABEL_PATH = "/metadata/labels/" + STATE_LABEL.replace("/", "~1")


def value(node: Object, key: str) -> str | None:
    """What the taint says; None for a Node without it."""
    return next((taint.get("value", "") for taint in taints(node) if taint["key"] == key), None)


def passed(node: Object, key: str) -> list[Object]:
    """Takes the taint off, in all its effects, and the label of the state with it; empty if nothing is there."""
    operations: list[Object] = []
    for index, taint in reversed(list(enumerate(taints(node)))):  # from the end: the places of the others stay
        if taint["key"] == key:
            path = f"/spec/taints/{index}"
            operations += [{"op": "test", "path": path, "value": taint}, {"op": "remove", "path": path}]
    if operations and labels(node).get(STATE_LABEL) == NodeState.PREFLIGHT:
        operations.append({"op": "test", "path": _LABEL_PATH, "value": NodeState.PREFLIGHT})
        operations.append({"op": "remove", "path": _LABEL_PATH})
    return operations


def failed(node: Object, key: str) -> list[Object]:
    """Has the taint say that the tests failed; empty if it does."""
    operations: list[Object] = []
    for index, taint in enumerate(taints(node)):
        if taint["key"] == key and taint.get("value") != FAILED:
            path = f"/spec/taints/{index}"
            operations.append({"op": "test", "path": path, "value": taint})
            operations.append({"op": "replace", "path": path, "value": {**taint, "value": FAILED}})
    return operations
