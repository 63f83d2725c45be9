"""The preflight taint of a Node: the JSON patches that remove it or set it to failed. Pure.

Others change the list `spec.taints`, too. Every operation is preceded by a `test` of the value that it changes: if the
list has changed meanwhile, the API server refuses the whole patch, and the caller reads the Node again.
"""

from __future__ import annotations

from gpuhealth.api.names import FAILED, STATE_LABEL
from gpuhealth.kube.client import Object
from gpuhealth.kube.patches import Operation, pointer, remove_unchanged, replace_unchanged
from gpuhealth.quarantine.marks import labels, taints
from gpuhealth.quarantine.state import StateEvent
from gpuhealth.quarantine.state_label import label_patch


def value(node: Object, key: str) -> str | None:
    """The taint's value; None for a Node without the taint."""
    return next((taint.get("value", "") for taint in taints(node) if taint["key"] == key), None)


def passed(node: Object, key: str) -> list[Operation]:
    """Remove the taint, with all its effects, and the state label; empty if there is no such taint."""
    operations: list[Operation] = []
    for index, taint in reversed(list(enumerate(taints(node)))):  # from the end: the indexes of the others stay
        if taint["key"] == key:
            operations += remove_unchanged(pointer("spec", "taints", index), taint)
    if operations:
        operations += label_patch(labels(node).get(STATE_LABEL), StateEvent.PREFLIGHT_PASSED)
    return operations


def failed(node: Object, key: str) -> list[Operation]:
    """Set the taint's value to `failed`; empty if that is its value already."""
    operations: list[Operation] = []
    for index, taint in enumerate(taints(node)):
        if taint["key"] == key and taint.get("value") != FAILED:
            operations += replace_unchanged(pointer("spec", "taints", index), taint, {**taint, "value": FAILED})
    return operations
