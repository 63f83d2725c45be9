"""The NVLink fabric and its manager."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from testing.readings import SWITCH, Judged, device, gpu, judged, node, pci

from gpuhealth.model.component import NODE
from gpuhealth.model.finding import Severity
from gpuhealth.model.missing import NOT_SUPPORTED, Missing, MissingReason
from gpuhealth.monitors.nvidia.checks import fabric as subject
from gpuhealth.monitors.nvidia.readings import Fabric, NvLink

HEALTHY = 0xAA | 1 << 8  # every two-bit fault false, the configuration correct


def look(fabric: Any = NOT_SUPPORTED, **changes: Any) -> Judged:
    """The check over a node with one GPU."""
    return judged(subject.CHECK, node(gpu(fabric=fabric), **changes))


@pytest.mark.parametrize(("state", "status"), [(1, 0), (2, 0), (3, 999), (3, 15)])
def test_incomplete(state: int, status: int) -> None:
    """Anything but completed with success is critical; it may take a minute after a boot."""
    assert look(Fabric(state, status)).severity("fabric.incomplete") is Severity.CRITICAL
    assert subject.INCOMPLETE.raise_after == 60.0


def test_complete() -> None:
    """Completed with success is clean, no fabric is nothing to check, unread is not clean."""
    assert look(Fabric(3, 0)).is_clean("fabric.incomplete")
    assert look(Fabric(0, 0)).says_nothing("fabric.incomplete")
    assert look().says_nothing("fabric.incomplete")
    assert look(Missing(MissingReason.ERROR)).why_not("fabric.incomplete") is MissingReason.ERROR


@pytest.mark.parametrize(
    ("summary", "mask", "severity"),
    [
        (2, HEALTHY, Severity.CRITICAL),
        (3, HEALTHY, Severity.WARNING),
        (0, HEALTHY ^ 0b11, Severity.WARNING),  # degraded bandwidth
        (None, HEALTHY ^ 0b11 << 2, Severity.WARNING),  # route recovery
        (None, HEALTHY ^ 0b11 << 4, Severity.CRITICAL),  # route unhealthy
        (None, HEALTHY ^ 0b11 << 6, Severity.WARNING),  # access timeout
        (1, HEALTHY ^ 0b11 << 4, Severity.CRITICAL),
        (3, HEALTHY ^ 0b11 << 4, Severity.CRITICAL),
        (1, 0xAA | 5 << 8, Severity.CRITICAL),  # too few NVLinks
        (1, 0xAA | 15 << 8, Severity.CRITICAL),  # a configuration error that is not known yet
    ],
)
def test_unhealthy(summary: int | None, mask: int, severity: Severity) -> None:
    """The worst of the summary and of each field of the mask counts."""
    assert look(Fabric(3, 0, health_mask=mask, health_summary=summary)).severity("fabric.unhealthy") is severity


def test_fabric_health() -> None:
    """A healthy mask is clean; without health data, or with an incomplete fabric, there is no outcome."""
    assert look(Fabric(3, 0, health_mask=HEALTHY, health_summary=1)).is_clean("fabric.unhealthy")
    assert look(Fabric(3, 0, health_mask=HEALTHY)).is_clean("fabric.unhealthy")
    assert look(Fabric(3, 0)).says_nothing("fabric.unhealthy")
    assert look(Fabric(3, 0, health_mask=0, health_summary=0)).says_nothing("fabric.unhealthy")
    assert look(Fabric(2, 0, health_mask=HEALTHY, health_summary=2)).says_nothing("fabric.unhealthy")


def test_fabric_manager() -> None:
    """NVSwitches without their manager are critical; without NVSwitches there is nothing to manage."""
    switched = (device(0), SWITCH)
    result = look(pci=switched, fabric_manager_running=False)
    assert result.severity("fabric.manager_down", NODE) is Severity.CRITICAL
    assert SWITCH.address in result.finding("fabric.manager_down", NODE).message
    assert look(pci=switched).is_clean("fabric.manager_down", NODE)
    assert look(pci=(device(0),), fabric_manager_running=False).says_nothing("fabric.manager_down", NODE)
    assert look(fabric_manager_running=NOT_SUPPORTED).says_nothing("fabric.manager_down", NODE)


def test_fabric_manager_unread() -> None:
    """Processes that cannot be listed, or a hidden bus, leave it unchecked."""
    unread = Missing(MissingReason.NO_PERMISSION, "/proc")
    result = look(pci=(SWITCH,), fabric_manager_running=unread)
    assert result.why_not("fabric.manager_down", NODE) is MissingReason.NO_PERMISSION
    hidden = Missing(MissingReason.NOT_INSTALLED, "/sys")
    result = look(pci=hidden, fabric_manager_running=False)
    assert result.why_not("fabric.manager_down", NODE) is MissingReason.NOT_INSTALLED
    assert look(pci=hidden).is_clean("fabric.manager_down", NODE)


def of_node(cluster: str = "00" * 16, state: int = 3) -> Fabric:
    """A fabric that the GPU has joined; one within the node has a cluster uuid of zeros."""
    return Fabric(state, 0, cluster=cluster)


def test_fabric_without_nvswitches_on_the_bus() -> None:
    """GPUs that report a fabric within their node need the fabric manager; those of a fabric across nodes do not."""
    no_switch = {"pci": (device(0),), "fabric_manager_running": False}
    for state in (1, 2, 3):
        assert look(of_node(state=state), **no_switch).severity("fabric.manager_down", NODE) is Severity.CRITICAL
    assert look(of_node(), pci=(device(0),)).is_clean("fabric.manager_down", NODE)
    assert look(of_node("9c6f5af353bf49b5a436b66766c413c3"), **no_switch).says_nothing("fabric.manager_down", NODE)
    assert look(of_node(state=0), **no_switch).says_nothing("fabric.manager_down", NODE)


def test_links_from_gpu_to_gpu() -> None:
    """GPUs whose NVLinks lead to each other have no switches, whatever they report of a fabric."""
    pair = [gpu(index, fabric=of_node(), nvlinks=(NvLink(0, 1, remote_pci=pci(1 - index)),)) for index in range(2)]
    result = judged(subject.CHECK, node(*pair, fabric_manager_running=False))
    assert result.says_nothing("fabric.manager_down", NODE)


def test_subnet_manager() -> None:
    """Where the switches are behind InfiniBand devices, nvlsm has to run as well; the message names what does not."""
    behind = {"pci": (device(0),), "switch_management": ("mlx5_8", "mlx5_9")}
    assert look(of_node(), subnet_manager_running=True, **behind).is_clean("fabric.manager_down", NODE)
    message = look(of_node(), subnet_manager_running=False, **behind).finding("fabric.manager_down", NODE).message
    assert message == "nvlsm does not run; NVLink switches behind mlx5_8, mlx5_9"


def test_switches_of_a_virtual_machine() -> None:
    """NVSwitches that are bound to vfio-pci are managed in the virtual machine that has them."""
    given = msgspec.structs.replace(SWITCH, driver="vfio-pci")
    assert look(pci=(device(0), given), fabric_manager_running=False).says_nothing("fabric.manager_down", NODE)
