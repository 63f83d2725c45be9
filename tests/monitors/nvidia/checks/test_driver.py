"""The driver: hanging, absent, mismatching, failing."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from testing.readings import LOADED, NOT_LOADED, Judged, device, gpu, judged, node, nvml, pci, remembering, uuid

from gpuhealth.model.component import NODE
from gpuhealth.model.finding import Action, Finding, Severity
from gpuhealth.model.missing import Missing, MissingReason
from gpuhealth.monitors.judge import Memory
from gpuhealth.monitors.nvidia.checks import driver as subject
from gpuhealth.monitors.nvidia.checks import own_faults
from gpuhealth.monitors.nvidia.readings import KernelModule, LibrarySearch, NvmlLibrary, NvmlReadings

HANGING = "nvmlDeviceGetEccMode on GPU 3"


def look(answer: NvmlReadings, memory: Memory | None = None, **changes: Any) -> Judged:
    """The check over a node whose NVML answers so."""
    settings = {"expected_gpus": changes.pop("expected_gpus", None)}
    return judged(subject.CHECK, node(gpu(0), nvml=answer, **changes), memory, **settings)


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
    away = problem(MissingReason.NOT_LOADED, "nvmlInit_v2 (9)")
    finding = look(away, kernel_module=NOT_LOADED).finding("driver.not_loaded", NODE)
    assert finding.severity is Severity.CRITICAL
    assert pci(0) in finding.message


def test_no_library() -> None:
    """GPUs on the bus, no libnvidia-ml and no kernel module: a fault, and not a node without GPUs."""
    finding = look(problem(MissingReason.NOT_INSTALLED), kernel_module=NOT_LOADED).finding("driver.not_loaded", NODE)
    assert "kernel module nvidia is not loaded" in finding.message


def test_no_library_and_hidden_bus() -> None:
    """If the bus is hidden, remembered or expected GPUs imply that a driver is required."""
    memory = remembering(gpus={uuid(0): pci(0)})
    absent = problem(MissingReason.NOT_INSTALLED)
    hidden: dict[str, Any] = {"pci": (), "kernel_module": NOT_LOADED}
    assert look(absent, memory, **hidden).severity("driver.not_loaded", NODE) is Severity.CRITICAL
    assert look(absent, expected_gpus=8, **hidden).severity("driver.not_loaded", NODE) is Severity.CRITICAL


@pytest.mark.parametrize("reason", [MissingReason.NOT_INSTALLED, MissingReason.NOT_LOADED])
def test_a_library_missing_in_our_container_is_no_fault_of_the_node(reason: MissingReason) -> None:
    """While the node's module is loaded, or cannot be looked for, the driver is not said to be missing."""
    assert look(problem(reason), kernel_module=LOADED).is_clean("driver.not_loaded", NODE)
    hidden = Missing(MissingReason.NOT_INSTALLED, "/sys/module does not exist")
    assert look(problem(reason), kernel_module=hidden).why_not("driver.not_loaded", NODE) is hidden.reason


@pytest.mark.parametrize("reason", [MissingReason.NOT_INSTALLED, MissingReason.NOT_LOADED])
def test_no_gpu_at_all(reason: MissingReason) -> None:
    """No driver and no GPU known of: not checked, never clean."""
    result = look(problem(reason), pci=(), kernel_module=NOT_LOADED)
    assert result.findings == []
    for code in ("driver.not_loaded", "driver.unresponsive", "driver.version_mismatch"):
        assert result.why_not(code, NODE) is reason


def test_sound_card_is_no_gpu() -> None:
    """NVIDIA functions that are not GPUs need no driver."""
    sound = device(0, device_class=0x040300)
    assert look(problem(MissingReason.NOT_INSTALLED), pci=(sound,)).findings == []


def test_mismatch() -> None:
    """Library and module of different versions: critical, a reboot, and the module is loaded."""
    result = look(problem(MissingReason.MISMATCH, "nvmlInit_v2: Driver/library version mismatch (18)"))
    finding = result.finding("driver.version_mismatch", NODE)
    assert (finding.severity, finding.action) == (Severity.CRITICAL, Action.REBOOT_NODE)
    assert result.is_clean("driver.not_loaded", NODE)


def test_a_library_older_than_the_module_is_no_fault_of_the_node() -> None:
    """A module that was loaded after the agent started says nothing about the node's own library."""
    upgraded = KernelModule("570.86.15", version_at_start="550.54.15")
    assert look(problem(MissingReason.MISMATCH), kernel_module=upgraded).is_clean("driver.version_mismatch", NODE)


def test_healthy() -> None:
    """A driver that answers is clean in every respect."""
    result = look(nvml(gpu(0)))
    assert all(
        result.is_clean(code, NODE) for code in ("driver.unresponsive", "driver.not_loaded", "driver.version_mismatch")
    )
    assert result.is_clean("nvml.error", NODE)
    assert result.is_clean("nvml.error", uuid(0))


def test_error_of_the_whole() -> None:
    """NVML that fails to start is a warning, and critical in the third round within ten minutes."""
    memory, broken = Memory(), problem(MissingReason.DRIVER_ERROR, "nvmlInit_v2: Unknown Error (999)")
    rounds = [look(broken, memory, at=at).severity("nvml.error", NODE) for at in (0, 10, 20)]
    assert rounds == [Severity.WARNING, Severity.WARNING, Severity.CRITICAL]
    assert look(broken, memory, at=3600).severity("nvml.error", NODE) is Severity.WARNING
    assert look(nvml(gpu(0)), memory, at=3610).is_clean("nvml.error", NODE)


def failed(count: int, code: int = 999) -> dict[str, Missing]:
    """So many calls of a GPU that failed."""
    reason = MissingReason.DRIVER_ERROR if code == 999 else MissingReason.ERROR
    return {f"nvmlCall{number}": Missing(reason, f"nvmlCall{number}: ({code})") for number in range(count)}


def test_a_gpu_that_fails_most_calls() -> None:
    """A GPU on which more than half of the calls fail is at fault, and critical when it repeats."""
    failing, memory = gpu(0, calls=40, failed_calls=failed(21)), Memory()
    for at, severity in ((0, Severity.WARNING), (10, Severity.WARNING), (20, Severity.CRITICAL)):
        result = look(nvml(failing), memory, at=at)
        assert result.severity("nvml.error") is severity
        assert "nvmlCall20" in result.finding("nvml.error").message
        assert result.is_clean("nvml.error", NODE)
    assert look(nvml(gpu(0)), memory, at=30).is_clean("nvml.error")


@pytest.mark.parametrize("calls", [failed(1), failed(20), failed(40, code=26)])
def test_single_calls_do_not_stand_for_a_gpu(calls: dict[str, Missing]) -> None:
    """Up to half of the calls, or all with a code that says nothing about hardware, are no fault of the GPU."""
    memory = Memory()
    for at in range(0, 100, 10):
        assert look(nvml(gpu(0, calls=40, failed_calls=calls)), memory, at=at).is_clean("nvml.error")


def test_a_gpu_that_cannot_be_opened() -> None:
    """A handle that the driver refuses for one GPU is critical at the first look."""
    refused = Missing(MissingReason.DRIVER_ERROR, "nvmlDeviceGetHandleByIndex: Unknown Error (999)")
    assert look(nvml(gpu(0, error=refused))).severity("nvml.error") is Severity.CRITICAL


def test_corrupt_inforom_is_no_unexpected_return() -> None:
    """What inforom.corrupted reports is not reported again."""
    calls = {"nvmlDeviceGetSerial": Missing(MissingReason.CORRUPTED_INFOROM, "Corrupted infoROM (14)")}
    assert look(nvml(gpu(0, failed_calls=calls))).is_clean("nvml.error")


FITS, OTHER = NvmlLibrary("/host/usr/lib64/libnvidia-ml.so.1", LOADED.version), NvmlLibrary("/host/other.so", "1.2.3")


@pytest.mark.parametrize(
    ("search", "is_of_node"),
    [
        (LibrarySearch((OTHER,), elsewhere=True), True),
        (LibrarySearch((OTHER, FITS), elsewhere=True), False),
        (LibrarySearch((), elsewhere=True), False),  # what the loader found is the container's
        (LibrarySearch((OTHER,)), True),
        (LibrarySearch(()), True),
    ],
)
def test_a_mismatch_of_the_node_is_one_with_every_library(search: LibrarySearch, is_of_node: bool) -> None:
    """Module and library do not fit only if no library that the node has fits; otherwise the fault is ours."""
    answer = msgspec.structs.replace(problem(MissingReason.MISMATCH), libraries=search)
    result = look(answer)
    assert result.is_clean("driver.version_mismatch", NODE) is not is_of_node
    ours = judged(own_faults.CHECK, node(gpu(0), nvml=answer))
    assert isinstance(ours.of("agent.nvml_library", NODE), Finding) is not is_of_node


def test_a_mismatch_names_the_libraries() -> None:
    """The finding says which libraries there are, and has the grace that an upgrade takes."""
    answer = msgspec.structs.replace(problem(MissingReason.MISMATCH), libraries=LibrarySearch((OTHER,)))
    assert (
        f"/host/other.so and kernel module ({LOADED.version})"
        in look(answer).finding("driver.version_mismatch", NODE).message
    )
    assert subject.MISMATCH.raise_after == subject.NOT_LOADED.raise_after == 600.0
