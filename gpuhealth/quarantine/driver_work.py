"""Requests to release the driver, read from a Node: a person's annotation, and work that labels announce. Pure.

Work on the driver fails while any process holds it, and makes GPUs disappear for a while. NVIDIA's operators announce
it by labels of the Node:

* The upgrade controllers of GPU operator and network operator write the stage of an upgrade
  (github.com/NVIDIA/k8s-operator-libs, pkg/upgrade/consts.go).
* What changes the GPUs sets the labels of everything that uses them to a value that says why they are paused:
  k8s-driver-manager (`pausedStr` in cmd/driver-manager), MIG manager (github.com/NVIDIA/mig-parted), and the
  managers of vGPUs and of confidential computing.
* MIG manager and vGPU device manager write the state of a change; MIG manager may reboot the node for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from gpuhealth.api.names import DRIVER_UPGRADE_STATE, RELEASE_GPUS
from gpuhealth.kube.client import Object
from gpuhealth.quarantine.marks import annotations_of, labels

RELEASE_REQUESTS = (
    "annotation",
    "driver_upgrade",
    "network_driver_upgrade",
    "mig_change",
    "vgpu_change",
    "cc_mode_change",
    "paused",
    "label",
)
"""Reasons for which a Node may request a release of the driver; the last is a label that the settings name."""


class _Announcement(NamedTuple):
    reason: str
    label: str  # pattern of its key
    values: tuple[str, ...]  # patterns


# An upgrade goes from cordon-required and wait-for-jobs-required, which may last for as long as jobs do, through the
# first two of these, in which what uses the GPUs is moved away, to the restart of the driver's pod, which unloads the
# kernel module. In validation-required the new driver runs; upgrade-failed must stay visible.
_DRIVER_UNLOADS = ("pod-deletion-required", "drain-required", "post-maintenance-required", "pod-restart-required")
_PAUSED = "nvidia.com/gpu.deploy.*"
_CHANGING = ("pending", "rebooting")
_ANNOUNCEMENTS = (
    _Announcement("driver_upgrade", DRIVER_UPGRADE_STATE, _DRIVER_UNLOADS),
    _Announcement("driver_upgrade", _PAUSED, ("paused-for-driver-upgrade",)),
    _Announcement("network_driver_upgrade", "nvidia.com/*-driver-upgrade-state", _DRIVER_UNLOADS),
    _Announcement("mig_change", "nvidia.com/mig.config.state", _CHANGING),
    _Announcement("mig_change", _PAUSED, ("paused-for-mig-change",)),
    _Announcement("vgpu_change", "nvidia.com/vgpu.config.state", _CHANGING),
    _Announcement("vgpu_change", _PAUSED, ("paused-for-vgpu-change",)),
    _Announcement("cc_mode_change", "nvidia.com/cc.mode.state", _CHANGING),
    _Announcement("cc_mode_change", _PAUSED, ("paused-for-cc-mode-change",)),
    _Announcement("paused", _PAUSED, ("paused-for-*",)),
)
_FAILED = {
    "driver_upgrade": (DRIVER_UPGRADE_STATE, "upgrade-failed"),
    "mig_change": ("nvidia.com/mig.config.state", "failed"),
    "vgpu_change": ("nvidia.com/vgpu.config.state", "failed"),
    "cc_mode_change": ("nvidia.com/cc.mode.state", "failed"),
}
"""Labels that say that the work has failed: what it left paused is no announcement any more."""


def release_requests(node: Object, more: Sequence[str] = ()) -> tuple[str, ...]:
    """Those of RELEASE_REQUESTS that the Node has now. `more`: patterns of further labels, as KEY=VALUE."""
    known = labels(node)
    reasons = {_reason(key, value, more) for key, value in known.items()}
    if annotations_of(node).get(RELEASE_GPUS) == "true":
        reasons.add("annotation")
    reasons -= {reason for reason, (label, value) in _FAILED.items() if known.get(label) == value}
    return tuple(reason for reason in RELEASE_REQUESTS if reason in reasons)


def _reason(key: str, value: str, more: Sequence[str]) -> str:
    """The work that a label announces; empty for most labels."""
    if any(fnmatchcase(f"{key}={value}", pattern) for pattern in more):
        return "label"
    if not key.startswith("nvidia.com/"):
        return ""
    for reason, label, values in _ANNOUNCEMENTS:
        if fnmatchcase(key, label) and any(fnmatchcase(value, pattern) for pattern in values):
            return reason
    return ""
