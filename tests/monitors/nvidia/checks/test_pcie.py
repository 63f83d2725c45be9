"""The PCI Express link."""

from __future__ import annotations

from typing import Any

import pytest
from testing.readings import Judged, device, gpu, judged, node

from gpuhealth.model.finding import Severity
from gpuhealth.model.missing import NOT_SUPPORTED, Missing, MissingReason
from gpuhealth.model.pci import PciAddress
from gpuhealth.monitors.judge import Memory
from gpuhealth.monitors.nvidia.checks import pcie as subject
from gpuhealth.monitors.nvidia.readings import PciDevice, PciPort

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


# --- ports above the GPU ----------------------------------------------------------------------------------------------

NEAREST, ROOT = PciAddress("0000:17:02.0"), PciAddress("0000:16:01.0")


def below(nearest: dict[str, Any], root: dict[str, Any] | None = None, **own: Any) -> PciDevice:
    """The GPU's function below two ports with these counters; zero where none is given."""
    zero = {"aer_correctable": 0, "aer_nonfatal": 0, "aer_fatal": 0}
    ports = (PciPort(NEAREST, **zero | nearest), PciPort(ROOT, **zero | (root or {})))
    return device(0, ports=ports, **own)


def test_errors_at_a_port() -> None:
    """Corrected errors that a port above the GPU counts are a warning on the GPU that names the port; it ends."""
    memory = Memory()
    look(memory, function=below({}))
    result = look(memory, at=10.0, function=below({"aer_correctable": 33}))
    assert result.severity("pcie.aer_correctable_rate") is Severity.WARNING
    assert (
        f"33 corrected PCIe errors within 60 s at port {NEAREST}" in result.finding("pcie.aer_correctable_rate").message
    )
    assert look(memory, at=71.0, function=below({"aer_correctable": 33})).is_clean("pcie.aer_correctable_rate")


@pytest.mark.parametrize("kind", ["aer_nonfatal", "aer_fatal"])
@pytest.mark.parametrize("place", ["nearest", "root"])
def test_uncorrectable_errors_at_a_port(kind: str, place: str) -> None:
    """Errors that only a port has detected may be about other devices: a warning, which does not quarantine."""
    memory = Memory()
    look(memory, function=below({kind: 5}, {kind: 5}))
    counts = ({kind: 6}, {kind: 5}) if place == "nearest" else ({kind: 5}, {kind: 6})
    result = look(memory, at=10.0, function=below(*counts))
    assert result.severity("pcie.aer_uncorrectable") is Severity.WARNING
    assert (NEAREST if place == "nearest" else ROOT) in result.finding("pcie.aer_uncorrectable").message


def test_own_errors_come_first() -> None:
    """Where the GPU itself has detected errors, it is critical, whatever its ports have."""
    memory = Memory()
    look(memory, function=below({}))
    result = look(memory, at=10.0, function=below({"aer_fatal": 1}, aer_fatal=1))
    assert result.severity("pcie.aer_uncorrectable") is Severity.CRITICAL
    assert "port" not in result.finding("pcie.aer_uncorrectable").message


def test_counter_of_a_port_starts_again() -> None:
    """A port that was removed and added counts from zero: only what it has counted since then is new."""
    memory = Memory()
    look(memory, function=below({"aer_correctable": 10**6}))
    assert look(memory, at=10.0, function=below({"aer_correctable": 2})).is_clean("pcie.aer_correctable_rate")


def test_ports_without_counters() -> None:
    """A port without AER has nothing to check; one that cannot be read leaves the check undone."""
    without = dict.fromkeys(("aer_correctable", "aer_nonfatal", "aer_fatal"), NOT_SUPPORTED)
    unread = dict.fromkeys(without, UNREAD)
    for code in ("pcie.aer_correctable_rate", "pcie.aer_uncorrectable"):
        memory = Memory()
        look(memory, function=below(without))
        assert look(memory, at=10.0, function=below(without)).is_clean(code)
        assert look(memory, at=20.0, function=below(without, unread)).why_not(code) is MissingReason.ERROR
        assert look(memory, at=30.0, function=below(without, without, **without)).says_nothing(code)
