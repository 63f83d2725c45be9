"""Which labels and annotations of a Node request a release of the driver."""

from __future__ import annotations

import pytest
from testing.node_writing import node_object

from gpuhealth.quarantine.driver_work import RELEASE_REQUESTS, release_requests

UPGRADE = "nvidia.com/gpu-driver-upgrade-state"
DEPLOY = "nvidia.com/gpu.deploy"


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
    assert release_requests(node_object(labels={UPGRADE: state})) == requests
    both = node_object(labels={UPGRADE: state}, annotations={"gpuhealth.io/release-gpus": "true"})
    assert release_requests(both) == ("annotation", *requests)
    assert release_requests(node_object(annotations={"gpuhealth.io/release-gpus": "false"})) == ()


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ({f"{DEPLOY}.device-plugin": "paused-for-driver-upgrade", f"{DEPLOY}.dcgm": "true"}, "driver_upgrade"),
        ({f"{DEPLOY}.operator-validator": "paused-for-driver-upgrade"}, "driver_upgrade"),
        ({f"{DEPLOY}.dra-driver": "paused-for-driver-upgrade"}, "driver_upgrade"),
        ({f"{DEPLOY}.client": "paused-for-mig-change"}, "mig_change"),
        ({"nvidia.com/mig.config": "all-1g.10gb", "nvidia.com/mig.config.state": "pending"}, "mig_change"),
        ({"nvidia.com/mig.config.state": "rebooting"}, "mig_change"),
        ({"nvidia.com/vgpu.config.state": "pending"}, "vgpu_change"),
        ({f"{DEPLOY}.sandbox-validator": "paused-for-vgpu-change"}, "vgpu_change"),
        ({f"{DEPLOY}.vfio-manager": "paused-for-cc-mode-change"}, "cc_mode_change"),
        ({f"{DEPLOY}.gpu-feature-discovery": "paused-for-something-new"}, "paused"),
        ({"nvidia.com/ofed-driver-upgrade-state": "pod-restart-required"}, "network_driver_upgrade"),
        ({"nvidia.com/mofed-driver-upgrade-state": "drain-required"}, "network_driver_upgrade"),
    ],
)
def test_announced_work(labels: dict[str, str], reason: str) -> None:
    """What operators pause, upgrade and reconfigure; every reason is one that the agent withdraws again."""
    assert release_requests(node_object(labels=labels)) == (reason,)
    assert reason in RELEASE_REQUESTS


@pytest.mark.parametrize(
    "labels",
    [
        {f"{DEPLOY}.device-plugin": "true", f"{DEPLOY}.mig-manager": "false", "nvidia.com/gpu.present": "true"},
        {"nvidia.com/mig.config": "all-1g.10gb", "nvidia.com/mig.config.state": "success"},
        {"nvidia.com/mig.config.state": "failed"},
        {"nvidia.com/mig.config.state": "failed", f"{DEPLOY}.dcgm": "paused-for-mig-change"},
        {UPGRADE: "upgrade-failed", f"{DEPLOY}.dcgm": "paused-for-driver-upgrade"},
        {"nvidia.com/ofed-driver-upgrade-state": "upgrade-required"},
        {"nvidia.com/cc.mode": "on", "nvidia.com/cc.mode.state": "on"},
        {"nvidia.com/vgpu.config.state": "success"},
        {"example.com/gpu.deploy.dcgm": "paused-for-driver-upgrade"},
        {"nvidia.com/gpu.deploy.driver": ""},
    ],
)
def test_no_work(labels: dict[str, str]) -> None:
    """Work that is done, waits, has failed, or is somebody else's: the driver is judged as always."""
    assert release_requests(node_object(labels=labels)) == ()


def test_labels_of_the_settings() -> None:
    """Patterns of the settings name further labels; other work on the same Node counts as well."""
    labels = {"example.com/maintenance": "gpu-firmware", "nvidia.com/mig.config.state": "pending"}
    assert release_requests(node_object(labels=labels), ["example.com/maintenance=gpu-*"]) == ("mig_change", "label")
    assert release_requests(node_object(labels=labels), ["example.com/*=disk"]) == ("mig_change",)
