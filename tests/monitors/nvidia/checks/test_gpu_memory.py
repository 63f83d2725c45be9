"""Remapped rows, retired pages, repairs and the InfoROM."""

from __future__ import annotations

from typing import Any

import pytest
from testing.readings import Judged, gpu, judged, node

from gpuhealth.model.finding import Action, Severity
from gpuhealth.model.missing import NOT_SUPPORTED, Missing, MissingReason
from gpuhealth.monitors.judge import Memory
from gpuhealth.monitors.nvidia.checks import gpu_memory as subject

DAY = 86400.0
UNREAD = Missing(MissingReason.ERROR, "Unknown Error (999)")
FLAGS = [
    ("gpu_memory.remap_pending", "remap_pending", Severity.WARNING, Action.RESET_GPU),
    ("gpu_memory.remap_failed", "remap_failed", Severity.CRITICAL, Action.INSPECT_HARDWARE),
    ("gpu_memory.retirement_pending", "retirement_pending", Severity.WARNING, Action.RESET_GPU),
    ("gpu_memory.unrepairable", "unrepairable_memory", Severity.CRITICAL, Action.INSPECT_HARDWARE),
]


def look(memory: Any = None, at: Any = 0.0, **changes: Any) -> Judged:
    """The check over a node with one GPU."""
    return judged(subject.CHECK, node(gpu(**changes), at=at), memory)


@pytest.mark.parametrize(("code", "field", "severity", "action"), FLAGS)
def test_flags(code: str, field: str, severity: Severity, action: Action) -> None:
    """The GPU's own flags are found, clean, not checked, or not there at all."""
    finding = look(**{field: True}).finding(code)
    assert (finding.severity, finding.action) == (severity, action)
    assert look(**{field: False}).is_clean(code)
    assert look(**{field: UNREAD}).why_not(code) is MissingReason.ERROR
    assert look(**{field: NOT_SUPPORTED}).says_nothing(code)


def test_remap_reserve() -> None:
    """A bank without a spare row is a warning."""
    banks = {"max": 639, "high": 0, "partial": 0, "low": 0}
    assert look(remap_histogram=banks | {"none": 1}).severity("gpu_memory.remap_reserve") is Severity.WARNING
    assert look(remap_histogram=banks | {"none": 0}).is_clean("gpu_memory.remap_reserve")
    assert look(remap_histogram=dict.fromkeys(banks | {"none": 0}, NOT_SUPPORTED)).says_nothing(
        "gpu_memory.remap_reserve"
    )
    assert look(remap_histogram={}).why_not("gpu_memory.remap_reserve") is MissingReason.ERROR


@pytest.mark.parametrize(
    ("single", "double", "severity"),
    [(59, 0, None), (60, 0, Severity.WARNING), (42, 20, Severity.WARNING), (43, 20, Severity.CRITICAL)],
)
def test_retired_pages(single: int, double: int, severity: Severity | None) -> None:
    """A nearly full table is a warning, a full one critical, whatever the pages were retired for."""
    result = look(retired_pages={"single_bit": single, "double_bit": double})
    if severity is None:
        assert result.is_clean("gpu_memory.retired_pages")
    else:
        assert result.severity("gpu_memory.retired_pages") is severity


def test_retired_pages_that_keep_coming() -> None:
    """More than 15 double-bit pages and two new ones within a week are critical; old ones alone are clean."""
    memory = Memory()
    pages = {"single_bit": 0, "double_bit": 15}
    assert look(memory, retired_pages=pages).is_clean("gpu_memory.retired_pages")
    assert look(memory, DAY, retired_pages=pages | {"double_bit": 16}).is_clean("gpu_memory.retired_pages")
    growing = pages | {"double_bit": 17}
    assert look(memory, 2 * DAY, retired_pages=growing).severity("gpu_memory.retired_pages") is Severity.CRITICAL
    assert look(memory, 9 * DAY, retired_pages=growing).is_clean("gpu_memory.retired_pages")


def test_retired_pages_unread() -> None:
    """One cause unread is not clean; on GPUs that remap rows there is nothing to check."""
    half = {"single_bit": 0, "double_bit": UNREAD}
    assert look(retired_pages=half).why_not("gpu_memory.retired_pages") is MissingReason.ERROR
    assert look().says_nothing("gpu_memory.retired_pages")


@pytest.mark.parametrize("kind", ["channel", "tpc"])
def test_repair_pending(kind: str) -> None:
    """A repair that waits for a reset is a warning and is named."""
    pending = {"channel": False, "tpc": False}
    assert kind in look(repair_pending=pending | {kind: True}).finding("gpu_memory.repair_pending").message
    assert look(repair_pending=pending).is_clean("gpu_memory.repair_pending")
    assert look().says_nothing("gpu_memory.repair_pending")


def test_mig_hides_remapped_rows() -> None:
    """With MIG instances remapped rows are not supported: nothing to check, and no fault."""
    rows = {"remap_pending": NOT_SUPPORTED, "remap_failed": NOT_SUPPORTED}
    result = look(mig_enabled=True, **rows)
    assert result.says_nothing("gpu_memory.remap_pending")
    assert result.findings == []


def test_inforom() -> None:
    """One call that reports a corrupt InfoROM is enough, whichever call it is."""
    corrupt = Missing(MissingReason.CORRUPTED_INFOROM, "nvmlDeviceGetSerial: Corrupted infoROM (14)")
    assert look(serial=corrupt).severity("inforom.corrupted") is Severity.CRITICAL
    assert look(failed_calls={"nvmlDeviceGetRetiredPages": corrupt}).severity("inforom.corrupted")
    result = look(error=corrupt)
    assert [finding.code for finding in result.findings] == ["inforom.corrupted"]
    assert look(inforom_checksum=corrupt).severity("inforom.corrupted")
    assert look().is_clean("inforom.corrupted")
    assert look(inforom_checksum=UNREAD).why_not("inforom.corrupted") is MissingReason.ERROR
    assert look(inforom_checksum=NOT_SUPPORTED).says_nothing("inforom.corrupted")
