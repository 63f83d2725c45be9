"""NVLinks that ought to be up, and those that make errors."""

from __future__ import annotations

from typing import Any

import pytest
from testing.readings import SWITCH, Judged, device, gpu, judged, node, remembering, uuid

from gpuhealth.model.finding import Severity
from gpuhealth.model.missing import NOT_SUPPORTED, Missing, MissingReason, Reading
from gpuhealth.monitors.judge import Memory
from gpuhealth.monitors.nvidia.checks import nvlink as subject
from gpuhealth.monitors.nvidia.readings import GpuReadings, NvLink

UNREAD = Missing(MissingReason.ERROR, "Unknown Error (999)")
CODES = ("nvlink.down", "nvlink.errors", "nvlink.ber")


def linked(index: int, *states: Reading[int], **changes: Any) -> GpuReadings:
    """A GPU whose links have these states."""
    return gpu(index, nvlinks=tuple(NvLink(link, state) for link, state in enumerate(states)), **changes)


def had_up(*counts: int) -> Memory:
    """The memory of GPUs with so many links up."""
    return remembering(active_links={uuid(i): list(range(count)) for i, count in enumerate(counts)})


def look(*listed: GpuReadings, memory: Memory | None = None, **changes: Any) -> Judged:
    """The check over a node with these GPUs."""
    return judged(subject.CHECK, node(*listed, **changes), memory)


def down(result: Judged) -> dict[str, str]:
    """The messages of nvlink.down by GPU."""
    return {each.component.id: each.message for each in result.findings if each.code == "nvlink.down"}


def test_link_that_was_up() -> None:
    """A link that was up before is critical when it is down, and is named."""
    result = look(linked(0, 1, 0, 1), linked(1, 1, 1, 1), memory=had_up(3, 3))
    assert list(down(result)) == [uuid(0)]
    assert "NVLinks down: 1 (up before)" in down(result)[uuid(0)]
    assert result.severity("nvlink.down") is Severity.CRITICAL
    assert result.is_clean("nvlink.down", uuid(1))


@pytest.mark.parametrize("state", [1, 2, 3])
def test_states_that_are_up(state: int) -> None:
    """Active, asleep and active without traffic are up."""
    assert look(linked(0, state), memory=had_up(1)).is_clean("nvlink.down")


def test_all_links_down() -> None:
    """All links down on all GPUs is found on every GPU, though no peer has more."""
    result = look(*(linked(index, 0, 0, 0) for index in range(8)), memory=had_up(*[3] * 8))
    assert set(down(result)) == {uuid(index) for index in range(8)}
    assert "NVLinks down: all 3" in down(result)[uuid(0)]


def test_all_links_down_at_first_sight() -> None:
    """With NVSwitches on the bus links must be up, though nobody remembers them so."""
    listed = [linked(index, 0, 0) for index in range(2)]
    result = look(*listed, pci=(device(0), device(1), SWITCH))
    assert set(down(result)) == {uuid(0), uuid(1)}


def test_fewer_than_its_peers() -> None:
    """A GPU with fewer links up than most of its model is found without any memory."""
    listed = [linked(index, 1, 1, 0 if index == 5 else 1) for index in range(8)]
    assert list(down(look(*listed))) == [uuid(5)]


def test_inactive_by_design() -> None:
    """Links that nobody has up and nobody ever saw up are inactive by design, as on a card without its bridge."""
    listed = [linked(index, 0, 0, 0) for index in range(4)]
    result = look(*listed, memory=had_up(0, 0, 0, 0))
    assert down(result) == {}
    assert result.is_clean("nvlink.down")


def test_bridge_between_two_of_four() -> None:
    """A bridge between two cards of four makes the others no fault: half is not most."""
    listed = [linked(0, 1, 1), linked(1, 1, 1), linked(2, 0, 0), linked(3, 0, 0)]
    assert down(look(*listed)) == {}


def test_other_models_are_no_peers() -> None:
    """A card of another model need not have as many links."""
    listed = [linked(0, 1, 1), linked(1, 1, 1), linked(2, 0, name="NVIDIA A30")]
    assert down(look(*listed)) == {}


def test_no_nvlink_at_all() -> None:
    """A PCI Express card has nothing to check."""
    result = look(gpu(0, nvlinks=NOT_SUPPORTED))
    assert all(result.says_nothing(code) for code in CODES)


def test_links_that_are_denied() -> None:
    """A GPU that had links and now denies having any has lost them."""
    result = look(gpu(0, nvlinks=NOT_SUPPORTED), memory=had_up(2))
    assert "0, 1" in down(result)[uuid(0)]


def test_mig_may_turn_links_off() -> None:
    """With MIG on and no link up there is nothing to check; its peers are not measured by it."""
    result = look(linked(0, 0, 0, mig_enabled=True), linked(1, 1, 1), memory=had_up(2, 2))
    assert result.says_nothing("nvlink.down", uuid(0))
    assert result.is_clean("nvlink.down", uuid(1))


def test_unread_link() -> None:
    """A link whose state cannot be read is not up and not down."""
    assert look(linked(0, 1, UNREAD), memory=had_up(2)).why_not("nvlink.down") is MissingReason.ERROR


def counting(*counts: dict[str, int]) -> GpuReadings:
    """A GPU whose links have these error counters."""
    return gpu(0, nvlinks=tuple(NvLink(link, 1, errors=count) for link, count in enumerate(counts)))


def test_errors() -> None:
    """More than 100 errors of a link within ten minutes are a warning that names it; old ones do not count."""
    memory, old = Memory(), {"crc_flit": 10**6, "replay": 0}
    first = look(counting(old, old), memory=memory)
    assert first.why_not("nvlink.errors") is MissingReason.NO_HISTORY
    at_limit = old | {"crc_flit": 10**6 + 60, "replay": 40}
    assert look(counting(old, at_limit), memory=memory, at=10).is_clean("nvlink.errors")
    above = at_limit | {"replay": 41}
    finding = look(counting(old, above), memory=memory, at=20).finding("nvlink.errors")
    assert "link 1: 101 (since the driver was loaded: crc_flit 1000060, replay 41)" in finding.message
    assert look(counting(old, above), memory=memory, at=620).is_clean("nvlink.errors")


def test_links_that_count_nothing() -> None:
    """Links without counters have nothing to check."""
    assert look(linked(0, 1, 1)).says_nothing("nvlink.errors")


@pytest.mark.parametrize(("rate", "found"), [(0.0, False), (1e-12, False), (1.1e-12, True), (5e-6, True)])
def test_ber(rate: float, found: bool) -> None:
    """An effective bit error rate above 1e-12 is a warning."""
    link = NvLink(7, 1, effective_ber=rate)
    assert look(gpu(0, nvlinks=(link,))).is_clean("nvlink.ber") is not found


def test_ber_of_a_link_that_is_down() -> None:
    """What a link that is down says of its error rate means nothing."""
    links = (NvLink(0, 0, effective_ber=1.0), NvLink(1, 1, effective_ber=0.0))
    assert look(gpu(0, nvlinks=links)).is_clean("nvlink.ber")
    assert look(linked(0, 1)).says_nothing("nvlink.ber")
