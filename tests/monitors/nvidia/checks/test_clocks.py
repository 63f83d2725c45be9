"""Throttling: bits and times."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testing.readings import Judged, gpu, judged, node

from gpuhealth.model.finding import Severity
from gpuhealth.model.missing import NOT_SUPPORTED, Missing, MissingReason
from gpuhealth.monitors.judge import Memory
from gpuhealth.monitors.nvidia.checks import clocks as subject
from gpuhealth.monitors.nvidia.readings import GpuReadings

CODES = {"clocks.hw_slowdown": 0x08, "clocks.thermal": 0x20 | 0x40, "power.brake": 0x80}
NO_COUNTERS = dict.fromkeys(("sw_thermal", "hw_thermal", "power_brake"), NOT_SUPPORTED)


def look(memory: Any = None, at: Any = 0.0, **changes: Any) -> Judged:
    """The check over a node with one GPU."""
    return judged(subject.CHECK, node(gpu(**changes), at=at), memory)


def throttled(**seconds: float) -> dict[str, dict[str, int]]:
    """Counters of throttled time, given in seconds."""
    zero = dict.fromkeys(("sw_power_cap", "sw_thermal", "hw_thermal", "power_brake"), 0)
    return {"throttle_nanoseconds": zero | {name: int(each * 1e9) for name, each in seconds.items()}}


def found(result: Judged) -> set[str]:
    """The codes of all findings."""
    return {finding.code for finding in result.findings}


def test_combined_bits() -> None:
    """Bits that are set together are each seen: hardware slowdown with its thermal reason is two findings."""
    assert found(look(clocks_event_reasons=0x08 | 0x40)) == {"clocks.hw_slowdown", "clocks.thermal"}
    assert found(look(clocks_event_reasons=0x04 | 0x08 | 0x80)) == {"clocks.hw_slowdown", "power.brake"}


@given(st.integers(0, 0x1FF))
def test_bits_are_bits(reasons: int) -> None:
    """Whatever else is set, a code is found exactly when one of its bits is: at one look, with and without counters."""
    expected = {code for code, bits in CODES.items() if reasons & bits}
    assert found(look(clocks_event_reasons=reasons)) == expected
    assert found(look(clocks_event_reasons=reasons, throttle_nanoseconds=NO_COUNTERS)) == expected


def test_one_look_does_not_claim_a_minute() -> None:
    """Reason bits are reported as a number of samples, counters as a share of the time."""
    (seen,) = look(clocks_event_reasons=0x20).findings
    assert "at 1 of 1 looks within 60 s" in seen.message
    memory = Memory()
    look(memory, **throttled())
    (counted,) = look(memory, at=60.0, **throttled(sw_thermal=45)).findings
    assert "for 75.0 % of the last 60 s" in counted.message


def test_harmless_reasons() -> None:
    """Idle, application clocks, the power cap, sync boost and display clocks are no fault."""
    assert found(look(clocks_event_reasons=0x1 | 0x2 | 0x4 | 0x10 | 0x100)) == set()


@pytest.mark.parametrize(
    ("counter", "code", "severity"),
    [
        ("sw_thermal", "clocks.thermal", Severity.WARNING),
        ("hw_thermal", "clocks.thermal", Severity.WARNING),
        ("power_brake", "power.brake", Severity.CRITICAL),
    ],
)
def test_counters_see_between_the_looks(counter: str, code: str, severity: Severity) -> None:
    """More than half of the last 60 s is found though no look ever saw the bit; exactly half is clean."""
    memory = Memory()
    look(memory, 0, **throttled())
    assert look(memory, 60, **throttled(**{counter: 30.0})).is_clean(code)
    assert look(memory, 120, **throttled(**{counter: 60.1})).severity(code) is severity
    assert look(memory, 180, **throttled(**{counter: 60.1})).is_clean(code)


def test_bit_of_a_moment() -> None:
    """With counters a bit that happens to be set now is no fault after the first look."""
    memory = Memory()
    look(memory, 0)
    assert look(memory, 10, clocks_event_reasons=0x40, **throttled(hw_thermal=1.0)).is_clean("clocks.thermal")


def test_bits_over_rounds() -> None:
    """Without counters more than half of the rounds of the last 60 s must have the bit."""
    memory = Memory()

    def now(at: float, reasons: int) -> bool:
        changes = {"throttle_nanoseconds": NO_COUNTERS, "clocks_event_reasons": reasons}
        return "clocks.thermal" in found(look(memory, at, **changes))

    assert [now(at, 0x40 if at >= 30 else 0) for at in range(0, 70, 10)] == [False] * 6 + [True]
    assert [now(at, 0) for at in (70, 80, 90)] == [True, True, False]


def test_unread() -> None:
    """Counters that fail are not replaced by bits that cannot be read; no bits and no counters is nothing to check."""
    unread = Missing(MissingReason.ERROR, "Unknown Error (999)")
    broken = gpu(clocks_event_reasons=unread, throttle_nanoseconds=dict.fromkeys(NO_COUNTERS, unread))
    assert judged(subject.CHECK, node(broken)).why_not("clocks.thermal") is MissingReason.ERROR
    plain = gpu(clocks_event_reasons=NOT_SUPPORTED, throttle_nanoseconds=NO_COUNTERS)
    assert all(judged(subject.CHECK, node(plain)).says_nothing(code) for code in CODES)


def test_first_look_without_bits() -> None:
    """Counters without bits need a second look."""
    without: GpuReadings = gpu(clocks_event_reasons=NOT_SUPPORTED)
    memory = Memory()
    first = judged(subject.CHECK, node(without), memory)
    assert first.why_not("clocks.thermal") is MissingReason.NO_HISTORY
    assert judged(subject.CHECK, node(without, at=10), memory).is_clean("clocks.thermal")
