"""The driver: hanging, absent, mismatching, failing."""

from __future__ import annotations

from typing import Any

import pytest

from gpuhealth.checks import driver as subject
from gpuhealth.checks.history import Baseline, History
from gpuhealth.model import NODE, Action, Missing, MissingReason, Severity
from gpuhealth.readings import NvmlReadings
from tests.checks.builders import Judged, device, gpu, judged, node, nvml, pci, uuid

HANGING = "nvmlDeviceGetEccMode on GPU 3"


def look(answer: NvmlReadings | Missing, history: History | None = None, **changes: Any) -> Judged:
    """The check over a node whose NVML answers so."""
    settings = {"expect_gpus": changes.pop("expect_gpus", None)}
    return judged(subject.CHECK, node(gpu(0), nvml=answer, **changes), history, **settings)


def problem(reason: MissingReason, detail: str = "") -> NvmlReadings:
    """NVML that as a whole does not answer."""
    return NvmlReadings(problem=Missing(reason, detail))


@pytest.mark.parametrize(
    ("seconds", "severity"),
    [(20.0, Severity.WARNING), (59.9, Severity.WARNING), (60.0, Severity.CRITICAL), (3600.0, Severity.CRITICAL)],
)
def test_hang(seconds: float, severity: Severity) -> None:
    """A call that does not return is a warning after 20 s and critical after 60 s, and is named."""
    finding = look(NvmlReadings(waiting_seconds=seconds, waiting_for=HANGING)).finding("driver.unresponsive", NODE)
    assert finding.severity is severity
    assert HANGING in finding.message
    assert finding.evidence.source == HANGING


def test_hang_with_a_timeout_as_problem() -> None:
    """A driver that hangs before its first word is unresponsive as well."""
    hung = NvmlReadings(problem=Missing(MissingReason.TIMEOUT), waiting_seconds=61.0, waiting_for="nvmlInit_v2")
    assert look(hung).severity("driver.unresponsive", NODE) is Severity.CRITICAL


def test_waiting_is_not_clean() -> None:
    """A round that is on its way is neither a fault nor clean."""
    waiting = NvmlReadings(waiting_seconds=19.9, waiting_for=HANGING)
    assert look(waiting).why_not("driver.unresponsive", NODE) is MissingReason.TIMEOUT


def test_slow_round_that_came_back() -> None:
    """An answer after 45 s is still reported, and one after 90 s is critical."""
    for seconds, severity in ((45.0, Severity.WARNING), (90.0, Severity.CRITICAL)):
        result = look(nvml(gpu(0), waiting_seconds=seconds))
        assert result.severity("driver.unresponsive", NODE) is severity
    assert look(nvml(gpu(0), waiting_seconds=0.3)).is_clean("driver.unresponsive", NODE)


def test_not_loaded() -> None:
    """GPUs on the bus and no kernel module: critical, and they are named."""
    finding = look(problem(MissingReason.NOT_LOADED, "nvmlInit_v2 (9)")).finding("driver.not_loaded", NODE)
    assert finding.severity is Severity.CRITICAL
    assert pci(0) in finding.message


def test_no_library() -> None:
    """GPUs on the bus and no libnvidia-ml: a fault, and not a node without GPUs."""
    finding = look(problem(MissingReason.NOT_INSTALLED)).finding("driver.not_loaded", NODE)
    assert "library not installed" in finding.message


def test_no_library_and_hidden_bus() -> None:
    """Where the bus is hidden, the remembered and the expected GPUs tell that a driver ought to be there."""
    history = History(baseline=Baseline(gpus={uuid(0): pci(0)}))
    absent = problem(MissingReason.NOT_INSTALLED)
    assert look(absent, history, pci=()).severity("driver.not_loaded", NODE) is Severity.CRITICAL
    assert look(absent, pci=(), expect_gpus=8).severity("driver.not_loaded", NODE) is Severity.CRITICAL


@pytest.mark.parametrize("reason", [MissingReason.NOT_INSTALLED, MissingReason.NOT_LOADED])
def test_no_gpu_at_all(reason: MissingReason) -> None:
    """No driver and no GPU known of: not checked, never clean."""
    result = look(problem(reason), pci=())
    assert result.findings == []
    for code in ("driver.not_loaded", "driver.unresponsive", "driver.mismatch"):
        assert result.why_not(code, NODE) is reason


def test_sound_card_is_no_gpu() -> None:
    """NVIDIA functions that are not GPUs need no driver."""
    sound = device(0, device_class=0x040300)
    assert look(problem(MissingReason.NOT_INSTALLED), pci=(sound,)).findings == []


def test_mismatch() -> None:
    """Library and module of different versions: critical, a reboot, and the module is loaded."""
    result = look(problem(MissingReason.MISMATCH, "nvmlInit_v2: Driver/library version mismatch (18)"))
    finding = result.finding("driver.mismatch", NODE)
    assert (finding.severity, finding.action) == (Severity.CRITICAL, Action.REBOOT_NODE)
    assert result.is_clean("driver.not_loaded", NODE)


def test_healthy() -> None:
    """A driver that answers is clean in every respect."""
    result = look(nvml(gpu(0)))
    assert all(result.is_clean(code, NODE) for code in ("driver.unresponsive", "driver.not_loaded", "driver.mismatch"))
    assert result.is_clean("nvml.error", NODE)
    assert result.is_clean("nvml.error", uuid(0))


def test_error_of_the_whole() -> None:
    """NVML that fails to start is a warning, and critical in the third round within ten minutes."""
    history, broken = History(), problem(MissingReason.ERROR, "nvmlInit_v2: Unknown Error (999)")
    rounds = [look(broken, history, at=at).severity("nvml.error", NODE) for at in (0, 10, 20)]
    assert rounds == [Severity.WARNING, Severity.WARNING, Severity.CRITICAL]
    assert look(broken, history, at=3600).severity("nvml.error", NODE) is Severity.WARNING
    assert look(nvml(gpu(0)), history, at=3610).is_clean("nvml.error", NODE)


def test_error_of_a_call() -> None:
    """An unexpected return of a call is a finding on its GPU, with the call's name, and critical when it repeats."""
    failing = gpu(0, failed_calls={"nvmlDeviceGetPowerUsage": "error: nvmlDeviceGetPowerUsage: Unknown Error (999)"})
    history = History()
    for at, severity in ((0, Severity.WARNING), (10, Severity.WARNING), (20, Severity.CRITICAL)):
        result = look(nvml(failing), history, at=at)
        assert result.severity("nvml.error") is severity
        assert "nvmlDeviceGetPowerUsage" in result.finding("nvml.error").message
        assert result.is_clean("nvml.error", NODE)
    assert look(nvml(gpu(0)), history, at=30).is_clean("nvml.error")


def test_corrupt_inforom_is_no_unexpected_return() -> None:
    """What inforom.corrupted reports is not reported again."""
    calls = {"nvmlDeviceGetSerial": "corrupted_inforom: nvmlDeviceGetSerial: Corrupted infoROM (14)"}
    assert look(nvml(gpu(0, failed_calls=calls))).is_clean("nvml.error")
