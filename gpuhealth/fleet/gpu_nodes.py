"""Which nodes have GPUs that an agent should watch, and whether one does. Pure.

An agent that is missing reports nothing, so a node that has GPUs is recognised by what others write on the Node: the
resources of the device plugin, the labels of the platform, and the taint that keeps other work away.
"""

from __future__ import annotations

import enum
from typing import Any

from gpuhealth.api.names import GPU_NODE_LABELS, GPU_RESOURCE
from gpuhealth.kube.client import Object
from gpuhealth.quarantine.marks import has_taint, labels

_RESOURCES = (GPU_RESOURCE, f"{GPU_RESOURCE}.shared")
_MIG_RESOURCES = "nvidia.com/mig-"
_WINDOWS = "windows"  # an agent reads Linux's kernel log


class Unwatched(enum.StrEnum):
    """Why a node with GPUs is not watched."""

    NO_AGENT = "no_agent"  # none runs on it, or none has ever reported
    AGENT_SILENT = "agent_silent"  # its pod is not ready, or its node is not
    NO_REPORT = "no_report"  # there is no report for this Node object


def has_gpus(node: Object) -> bool:
    """Whether the Node shows GPUs of NVIDIA's. Raises an error of any kind for surprising values."""
    known, status = labels(node), node.get("status", {})
    if known.get("kubernetes.io/os") == _WINDOWS:
        return False
    return (
        any(key in known and (not values or known[key] in values) for key, values in GPU_NODE_LABELS.items())
        or any(_offers_gpus(status.get(part)) for part in ("capacity", "allocatable"))
        or has_taint(node, GPU_RESOURCE)
    )


def _offers_gpus(resources: Any) -> bool:
    return isinstance(resources, dict) and any(
        (name in _RESOURCES or name.startswith(_MIG_RESOURCES)) and str(quantity) != "0"
        for name, quantity in resources.items()
    )
