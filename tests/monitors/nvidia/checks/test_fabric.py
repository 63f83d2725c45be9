"""The NVLink fabric and its manager."""

from __future__ import annotations

from typing import Any

import pytest
from testing.readings import SWITCH, Judged, device, gpu, judged, node

from gpuhealth.model.component import NODE
from gpuhealth.model.finding import Severity
from gpuhealth.model.missing import NOT_SUPPORTED, Missing, MissingReason
from gpuhealth.monitors.nvidia.checks import fabric as subject
from gpuhealth.monitors.nvidia.readings import Fabric

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
