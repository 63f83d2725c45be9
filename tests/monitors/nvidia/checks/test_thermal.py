"""Distance to the temperatures at which GPU and memory protect themselves."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testing.readings import Judged, gpu, judged, node

from gpuhealth.model.finding import Severity
from gpuhealth.model.missing import NOT_SUPPORTED, Missing, MissingReason
from gpuhealth.monitors.judge import Memory
from gpuhealth.monitors.nvidia.checks import thermal as subject


def look(memory: Memory | None = None, at: float = 0.0, **changes: Any) -> Judged:
    """The check over a node with one GPU."""
    return judged(subject.CHECK, node(gpu(**changes), at=at), memory)


OLD = {"temperature_margin_celsius": NOT_SUPPORTED, "slowdown_celsius": 90, "gpu_max_celsius": 85}
OLDER = OLD | {"slowdown_celsius": NOT_SUPPORTED}


@pytest.mark.parametrize(
    ("code", "hot", "warm", "cool"),
    [
        (
            "thermal.gpu",
            {"temperature_margin_celsius": 0},
            {"temperature_margin_celsius": 5},
            {"temperature_margin_celsius": 6},
        ),
        (
            "thermal.gpu",
            OLD | {"temperature_celsius": 90},
            OLD | {"temperature_celsius": 85},
            OLD | {"temperature_celsius": 84},
        ),
        (
            "thermal.gpu",
            OLDER | {"temperature_celsius": 85},
            OLDER | {"temperature_celsius": 80},
            OLDER | {"temperature_celsius": 79},
        ),
        ("thermal.memory", {"memory_celsius": 95}, {"memory_celsius": 90}, {"memory_celsius": 89}),
    ],
)
def test_thresholds(code: str, hot: dict[str, Any], warm: dict[str, Any], cool: dict[str, Any]) -> None:
    """Within 5 degrees is a warning, at the limit critical after 30 s; by margin or by the card's own threshold."""
    memory = Memory()
    assert look(memory, 0, **cool).is_clean(code)
    assert look(memory, 10, **warm).severity(code) is Severity.WARNING
    assert look(memory, 100, **hot).severity(code) is Severity.WARNING
    assert look(memory, 129, **hot).severity(code) is Severity.WARNING
    assert look(memory, 130, **hot).severity(code) is Severity.CRITICAL
    assert look(memory, 140, **warm).severity(code) is Severity.WARNING
    assert look(memory, 150, **hot).severity(code) is Severity.WARNING
    assert look(memory, 160, **cool).is_clean(code)


def test_single_look() -> None:
    """One look at a GPU at its limit is critical: there is nothing to wait for."""
    assert look(temperature_margin_celsius=-2).severity("thermal.gpu") is Severity.CRITICAL


def test_no_fixed_number() -> None:
    """At 88 degrees one card is fine and another is at its limit."""
    cool: dict[str, Any] = {"temperature_margin_celsius": NOT_SUPPORTED, "temperature_celsius": 88}
    assert look(**cool, slowdown_celsius=100).is_clean("thermal.gpu")
    assert look(**cool, slowdown_celsius=88).severity("thermal.gpu") is Severity.CRITICAL


def test_unread() -> None:
    """A margin that cannot be read is not replaced by another source; a card without any limit has nothing to check."""
    unread = Missing(MissingReason.ERROR, "Unknown Error (999)")
    assert look(temperature_margin_celsius=unread, slowdown_celsius=90).why_not("thermal.gpu") is MissingReason.ERROR
    assert look(temperature_margin_celsius=NOT_SUPPORTED).says_nothing("thermal.gpu")
    assert look(memory_celsius=NOT_SUPPORTED).says_nothing("thermal.memory")


@given(st.integers(-50, 100))
def test_every_margin_has_one_outcome(margin: int) -> None:
    """Any margin is clean or a finding, and never less bad than a larger one."""
    result = look(temperature_margin_celsius=margin)
    assert result.is_clean("thermal.gpu") is (margin > 5)
    if margin <= 5:
        assert result.severity("thermal.gpu") is (Severity.CRITICAL if margin <= 0 else Severity.WARNING)
