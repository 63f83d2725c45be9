"""ECC errors and ECC itself."""

from __future__ import annotations

import pytest
from testing.readings import Judged, gpu, judged, node, remembering, uuid

from gpuhealth.model.finding import Severity
from gpuhealth.model.missing import NOT_SUPPORTED, Missing, MissingReason, Reading
from gpuhealth.monitors.judge import Memory
from gpuhealth.monitors.nvidia.checks import ecc as subject
from gpuhealth.monitors.nvidia.readings import GpuReadings

HOUR = 3600.0
DAY = 24 * HOUR


def counting(**counts: Reading[int]) -> GpuReadings:
    """A GPU with these counters, such as uncorrected_dram; the totals follow."""
    errors: dict[str, Reading[int]] = {f"volatile_{name}": count for name, count in counts.items()}
    return gpu(ecc_errors=gpu().ecc_errors | errors)


def look(*listed: GpuReadings, memory: Memory | None = None, at: float = 0.0) -> Judged:
    """The check over a node with these GPUs."""
    return judged(subject.CHECK, node(*listed, at=at), memory)


def test_uncorrectable_at_first_sight() -> None:
    """An uncorrectable error that nobody knows of yet is new, hence critical, and its place is named."""
    finding = look(counting(uncorrected_sram=2)).finding("ecc.uncorrectable")
    assert finding.severity is Severity.CRITICAL
    assert "sram 2" in finding.message


def test_uncorrectable_over_time() -> None:
    """Critical for 24 h after the count grew, a warning after that, critical again when it grows, clean at 0."""
    memory = Memory()

    def severity(count: int, at: float) -> Severity:
        return look(counting(uncorrected_dram=count), memory=memory, at=at).severity("ecc.uncorrectable")

    assert look(gpu(), memory=memory).is_clean("ecc.uncorrectable")
    assert severity(1, 10) is Severity.CRITICAL
    assert severity(1, 10 + DAY - 1) is Severity.CRITICAL
    assert severity(1, 10 + DAY) is Severity.WARNING
    assert severity(2, 10 + 2 * DAY) is Severity.CRITICAL
    assert look(gpu(), memory=memory, at=3 * DAY).is_clean("ecc.uncorrectable")


def test_uncorrectable_after_a_restart_of_the_agent() -> None:
    """An error that was seen at first sight stays critical in the rounds that follow."""
    memory = Memory()
    for at in (0, 10, 20):
        result = look(counting(uncorrected_dram=1), memory=memory, at=at)
        assert result.severity("ecc.uncorrectable") is Severity.CRITICAL


def test_counter_that_cannot_be_read_for_a_while() -> None:
    """A counter that is missing in one round makes an old error neither new nor clean."""
    memory, unread = Memory(), Missing(MissingReason.ERROR, "Unknown Error (999)")
    both = counting(uncorrected_dram=1, uncorrected_sram=5)
    look(both, memory=memory)
    look(counting(uncorrected_dram=1, uncorrected_sram=unread), memory=memory, at=2 * DAY)
    result = look(both, memory=memory, at=2 * DAY + 10)
    assert result.severity("ecc.uncorrectable") is Severity.WARNING


def test_unreadable_counters() -> None:
    """One readable place above zero is enough to find; all at zero and one unread is not clean."""
    unread = Missing(MissingReason.ERROR, "Unknown Error (999)")
    assert look(counting(uncorrected_dram=1, uncorrected_sram=unread)).severity("ecc.uncorrectable")
    assert look(counting(uncorrected_sram=unread)).why_not("ecc.uncorrectable") is MissingReason.ERROR


def test_only_a_total() -> None:
    """A GPU that does not count by place is judged by its total."""
    places = {"uncorrected_dram": NOT_SUPPORTED, "uncorrected_sram": NOT_SUPPORTED}
    assert "total 3" in look(counting(**places, uncorrected_total=3)).finding("ecc.uncorrectable").message


def test_no_ecc() -> None:
    """A GPU without ECC, or with ECC off, has nothing to count."""
    plain = gpu(ecc_enabled=NOT_SUPPORTED, ecc_errors=dict.fromkeys(gpu().ecc_errors, NOT_SUPPORTED))
    result = look(plain)
    for code in ("ecc.uncorrectable", "ecc.corrected_rate", "ecc.disabled"):
        assert result.says_nothing(code)


def test_nothing_read() -> None:
    """Without any counter the essential check has not been made."""
    assert look(gpu(ecc_errors={})).why_not("ecc.uncorrectable") is MissingReason.ERROR


@pytest.mark.parametrize(("count", "found"), [(10_000, False), (10_001, True)])
def test_corrected_rate(count: int, found: bool) -> None:
    """More than 10,000 corrected errors within an hour are a warning; a large old count is not."""
    memory = Memory()
    first = look(counting(corrected_dram=10**9), memory=memory)
    assert first.why_not("ecc.corrected_rate") is MissingReason.NO_HISTORY
    result = look(counting(corrected_dram=10**9 + count, corrected_total=10**9 + count), memory=memory, at=60)
    assert result.is_clean("ecc.corrected_rate") is not found
    later = look(counting(corrected_dram=10**9 + count), memory=memory, at=60 + HOUR)
    assert later.is_clean("ecc.corrected_rate")


def test_sram_threshold() -> None:
    """The GPU's own flag is critical."""
    assert look(gpu(sram_threshold_exceeded=True)).severity("ecc.sram_threshold") is Severity.CRITICAL
    assert look(gpu()).is_clean("ecc.sram_threshold")
    assert look(gpu(sram_threshold_exceeded=NOT_SUPPORTED)).says_nothing("ecc.sram_threshold")


def test_disabled_among_peers() -> None:
    """ECC off where a GPU of the same model has it on is a warning; another model says nothing."""
    assert look(gpu(0, ecc_enabled=False), gpu(1)).severity("ecc.disabled") is Severity.WARNING
    assert look(gpu(0, ecc_enabled=False), gpu(1, name="NVIDIA L4")).is_clean("ecc.disabled")


def test_disabled_since_it_was_on() -> None:
    """ECC off on a GPU that had it on is a warning."""
    memory = remembering(ecc={uuid(0): True})
    assert look(gpu(ecc_enabled=False, ecc_pending=False), memory=memory).severity("ecc.disabled")


@pytest.mark.parametrize(("bits", "found"), [(5120, True), (384, False), (NOT_SUPPORTED, False)])
def test_disabled_with_hbm(bits: Reading[int], found: bool) -> None:
    """Disabled ECC is a warning with HBM, which the bus width reveals; with GDDR it may be intended."""
    result = look(gpu(ecc_enabled=False, memory_bus_bits=bits))
    assert result.is_clean("ecc.disabled") is not found


def test_disabled_until_the_next_reset() -> None:
    """ECC that has been turned on and waits for a reset says so."""
    memory = remembering(ecc={uuid(0): True})
    finding = look(gpu(ecc_enabled=False, ecc_pending=True), memory=memory).finding("ecc.disabled")
    assert "next reset" in finding.message
