"""The changes that take every mark of gpuhealth off a Node. Pure.

Only what gpuhealth added is removed: the taint gpuhealth.io/unhealthy and the cordon if the annotation
gpuhealth.io/quarantine records them, and whatever else has our names. Labels that people set stay.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from gpuhealth.api.names import CONDITION, CORDON_REASON, GROUP, STATE_LABEL, TAINT
from gpuhealth.kube.client import Object
from gpuhealth.quarantine.marks import annotations_of, condition, has_taint, labels, record, taints, unschedulable

_PREFIX = f"{GROUP}/"


class MarksRemoval(msgspec.Struct, frozen=True, kw_only=True):
    """The requests that take the marks off one Node, and what they leave."""

    patch: Object | None  # merge patch of the Node under its resourceVersion; None: nothing to change
    status_patch: Object | None  # strategic merge patch of its status
    changes: tuple[str, ...]  # in words
    left: tuple[str, ...]  # marks of others with our names, each with the command that removes it
    returns: str = ""  # the finding for which the node was out of service, if it returns to service by this


def removal(node: Object, preflight_taints: Iterable[str], mirrors: Iterable[str] = ()) -> MarksRemoval:
    """The changes to a Node. Raises an error of any kind for surprising values.

    `mirrors` are the types of the conditions that the agents write besides GPUHealthy.
    """
    name, ours = node["metadata"]["name"], record(node)
    metadata: Object = {}
    spec: Object = {}
    changes: list[str] = []
    left: list[str] = []
    removed = {key for key in preflight_taints if has_taint(node, key)}
    if has_taint(node) and ours is not None and ours.tainted:
        removed.add(TAINT)
    elif has_taint(node):
        left.append(f"taint {TAINT} of {name}, which no agent has set: kubectl taint node {name} {TAINT}-")
    if removed:
        spec["taints"] = [taint for taint in taints(node) if taint["key"] not in removed] or None
        changes += [f"taint {key}" for key in sorted(removed)]
    if ours is not None and ours.cordoned and unschedulable(node):
        spec["unschedulable"] = None
        changes.append("cordon")
    if STATE_LABEL in labels(node):
        metadata["labels"] = {STATE_LABEL: None}
        changes.append(f"label {STATE_LABEL}")
    of_people = sorted(key for key in labels(node) if key.startswith(_PREFIX) and key != STATE_LABEL)
    left += [f"label {key} of {name}, set by people: kubectl label node {name} {key}-" for key in of_people]
    known = annotations_of(node)
    if notes := sorted(key for key in known if key.startswith(_PREFIX) or known[key].startswith(CORDON_REASON)):
        metadata["annotations"] = dict.fromkeys(notes)
        changes += [f"annotation {key}" for key in notes]
    patch = None
    if metadata or spec:
        metadata["resourceVersion"] = node["metadata"]["resourceVersion"]
        patch = {"metadata": metadata} | ({"spec": spec} if spec else {})
    status_patch = None
    if found := [kind for kind in dict.fromkeys((CONDITION, *mirrors)) if condition(node, kind) is not None]:
        status_patch = {"status": {"conditions": [{"type": kind, "$patch": "delete"} for kind in found]}}
        changes += [f"condition {kind}" for kind in found]
    returns = ours.code if ours is not None and (TAINT in removed or "unschedulable" in spec) else ""
    return MarksRemoval(
        patch=patch, status_patch=status_patch, changes=tuple(changes), left=tuple(left), returns=returns
    )
