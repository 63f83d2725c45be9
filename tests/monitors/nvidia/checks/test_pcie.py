"""The PCI Express link."""

from __future__ import annotations

from typing import Any

import pytest
from testing.readings import Judged, device, gpu, judged, node

from gpuhealth.model.finding import Severity
from gpuhealth.model.missing import NOT_SUPPORTED, Missing, MissingReason
from gpuhealth.monitors.judge import Memory
from gpuhealth.monitors.nvidia.checks import pcie as subject

UNREAD = Missing(MissingReason.ERROR, "Unknown Error (999)")


def look(memory: Any = None, at: Any = 0.0, function: Any = None, **changes: Any) -> Judged:
    """The check over a node with one GPU and its function in sysfs."""
    return judged(subject.CHECK, node(gpu(**changes), at=at, pci=(function or device(0),)), memory)


@pytest.mark.parametrize("load", [0, 100])
def test_width(load: int) -> None:
    """Fewer lanes than GPU and slot can are a warning, idle or not."""
    assert look(pcie_width=8, utilization_percent=load).severity("pcie.width") is Severity.WARNING
    assert look(pcie_width=16, utilization_percent=load).is_clean("pcie.width")


def test_narrow_slot() -> None:
    """A GPU in a slot of eight lanes uses all there are."""
    assert look(pcie_width=8, pcie_width_max=8).is_clean("pcie.width")


def test_generation_under_load() -> None:
    """A link that stays slow under load is a warning, from the load on that counts as busy."""
    assert look(pcie_generation=4, utilization_percent=50).severity("pcie.generation") is Severity.WARNING
    assert look(pcie_generation=5, utilization_percent=50).is_clean("pcie.generation")


def test_idle_generation_drop_is_no_fault() -> None:
    """An idle link shifts down by design: no finding, and no proof that it would be fast under load."""
    assert look(pcie_generation=1, utilization_percent=49).why_not("pcie.generation") is MissingReason.NO_HISTORY
    assert look(pcie_generation=5, utilization_percent=0).is_clean("pcie.generation")


def test_link_unread() -> None:
    """What the link is, what it could be, or the load unread: not checked. Not supported: nothing."""
    for field in ("pcie_generation", "pcie_generation_max"):
        assert look(**{field: UNREAD}).why_not("pcie.generation") is MissingReason.ERROR
    assert look(pcie_generation=4, utilization_percent=UNREAD).why_not("pcie.generation") is MissingReason.ERROR
    assert look(pcie_width=NOT_SUPPORTED).says_nothing("pcie.width")
    assert look(pcie_width_max=UNREAD).why_not("pcie.width") is MissingReason.ERROR


@pytest.mark.parametrize(("replays", "found"), [(30, False), (31, True)])
def test_replay_rate(replays: int, found: bool) -> None:
    """More than 30 replays within a minute are a warning, until a minute passes without; old ones do not count."""
    memory = Memory()
    assert look(memory, pcie_replays=10**6).why_not("pcie.replay_rate") is MissingReason.NO_HISTORY
    result = look(memory, 10, pcie_replays=10**6 + replays)
    assert result.is_clean("pcie.replay_rate") is not found
    assert look(memory, 70, pcie_replays=10**6 + replays).is_clean("pcie.replay_rate")


@pytest.mark.parametrize(("errors", "found"), [(32, False), (33, True)])
def test_aer_correctable_rate(errors: int, found: bool) -> None:
    """More than 32 corrected errors within a minute are a warning."""
    memory = Memory()
    code = "pcie.aer_correctable_rate"
    assert look(memory, function=device(0, aer_correctable=5)).why_not(code) is MissingReason.NO_HISTORY
    assert look(memory, 10, device(0, aer_correctable=5 + errors)).is_clean(code) is not found
    assert look(memory, 70, device(0, aer_correctable=5 + errors)).is_clean(code)


@pytest.mark.parametrize("kind", ["nonfatal", "fatal"])
def test_aer_uncorrectable(kind: str) -> None:
    """An uncorrectable error is critical for an hour; those from before the first look are not held against it."""
    memory = Memory()
    code, old = "pcie.aer_uncorrectable", device(0, **{f"aer_{kind}": 3})
    new = device(0, **{f"aer_{kind}": 4})
    assert look(memory, function=old).why_not(code) is MissingReason.NO_HISTORY
    assert look(memory, 10, old).is_clean(code)
    finding = look(memory, 20, new).finding(code)
    assert finding.severity is Severity.CRITICAL
    assert f"{kind} 1" in finding.message
    assert look(memory, 20 + 3599, new).severity(code) is Severity.CRITICAL
    assert look(memory, 20 + 3600, new).is_clean(code)


def test_no_aer() -> None:
    """A platform without AER has nothing to check; counters that may not be read are not clean."""
    none = device(0, aer_correctable=NOT_SUPPORTED, aer_nonfatal=NOT_SUPPORTED, aer_fatal=NOT_SUPPORTED)
    assert look(function=none).says_nothing("pcie.aer_uncorrectable")
    assert look(function=none).says_nothing("pcie.aer_correctable_rate")
    closed = device(0, aer_fatal=Missing(MissingReason.NO_PERMISSION, "aer_dev_fatal"))
    assert look(function=closed).why_not("pcie.aer_uncorrectable") is MissingReason.NO_PERMISSION


def test_hidden_bus() -> None:
    """A GPU that sysfs does not show has not been checked for AER."""
    assert look(function=device(5)).why_not("pcie.aer_uncorrectable") is MissingReason.NOT_INSTALLED
    hidden = judged(subject.CHECK, node(gpu(), pci=UNREAD))
    assert hidden.why_not("pcie.aer_correctable_rate") is MissingReason.ERROR
