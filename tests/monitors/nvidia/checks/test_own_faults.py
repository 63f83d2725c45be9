"""The agent's own faults: found, and never held against the node."""

from __future__ import annotations

from typing import Any

import pytest
from testing.readings import LOADED, NOT_LOADED, Judged, gpu, judged, node, nvml, pci, uuid

from gpuhealth.model.component import NODE
from gpuhealth.model.finding import Action, Severity
from gpuhealth.model.missing import Missing, MissingReason
from gpuhealth.monitors.nvidia.checks import own_faults as subject
from gpuhealth.monitors.nvidia.readings import KernelModule, NvmlReadings
from gpuhealth.monitors.registry import code_of, known_codes


def look(answer: NvmlReadings, **changes: Any) -> Judged:
    """The check over a node whose NVML answers so."""
    return judged(subject.CHECK, node(gpu(0), nvml=answer, **changes))


def problem(reason: MissingReason) -> NvmlReadings:
    """NVML that as a whole does not answer."""
    return NvmlReadings(problem=Missing(reason, "what was seen"))


def test_none_takes_a_node_out_or_asks_for_a_reboot() -> None:
    """No code agent.* quarantines, drains or asks for a reboot: the fault is ours."""
    codes = [code_of(name) for name in known_codes() if name.startswith("agent.")]
    assert len(codes) >= 4
    for code in codes:
        assert (code.quarantine, code.drain) == (False, False)
        assert code.severity is not Severity.CRITICAL
        assert code.action is not Action.REBOOT_NODE
        assert "reboot" not in code.advice.lower()


@pytest.mark.parametrize(
    ("reason", "module"),
    [
        (MissingReason.NOT_INSTALLED, LOADED),
        (MissingReason.NOT_LOADED, LOADED),
        (MissingReason.NOT_INSTALLED, KernelModule("550.54.15", version_at_start="")),
        (MissingReason.MISMATCH, KernelModule("570.86.15", version_at_start="550.54.15")),
    ],
)
def test_library(reason: MissingReason, module: KernelModule) -> None:
    """A loaded module that our library does not work with is found, with both versions where they differ."""
    finding = look(problem(reason), kernel_module=module).finding("agent.nvml_library", NODE)
    assert module.version in finding.message
    assert (module.version_at_start in finding.message) is True


@pytest.mark.parametrize(
    ("reason", "module"),
    [
        (MissingReason.NOT_LOADED, NOT_LOADED),
        (MissingReason.NOT_INSTALLED, NOT_LOADED),
        (MissingReason.MISMATCH, LOADED),
    ],
)
def test_a_fault_of_the_node_is_not_ours(reason: MissingReason, module: KernelModule) -> None:
    """No module, or one that was loaded before us and does not fit, is driver.not_loaded or driver.version_mismatch."""
    assert look(problem(reason), kernel_module=module).why_not("agent.nvml_library", NODE) is reason


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("agent.permission", MissingReason.NO_PERMISSION),
        ("agent.monitor_failed", MissingReason.AGENT_FAULT),
        ("agent.unexpected_reading", MissingReason.ERROR),
    ],
)
def test_of_the_node(code: str, reason: MissingReason) -> None:
    """What NVML as a whole answers is found under its own code, and clean when NVML works."""
    assert "what was seen" in look(problem(reason)).finding(code, NODE).message
    assert look(nvml(gpu(0))).is_clean(code, NODE)
    assert look(problem(MissingReason.DRIVER_ERROR)).why_not(code, NODE) is MissingReason.DRIVER_ERROR


def test_a_gpu_that_our_process_could_not_read() -> None:
    """A GPU whose line was lost between our own processes is our fault, and no other code judges it."""
    unread = Missing(MissingReason.AGENT_FAULT, "the line could not be read")
    result = look(nvml(gpu(0, error=unread)))
    assert result.finding("agent.monitor_failed").severity is Severity.WARNING
    assert result.why_not("agent.unexpected_reading") is MissingReason.AGENT_FAULT


def test_unexpected_answers_of_a_gpu() -> None:
    """Odd answers are named, at most three of them, and a single failing call counts among them."""
    odd = {
        f"call{number}": Missing(MissingReason.ERROR, f"call{number}: 0.5 is not a whole number") for number in range(5)
    }
    message = look(nvml(gpu(0, failed_calls=odd))).finding("agent.unexpected_reading").message
    assert "call2: 0.5 is not a whole number" in message
    assert "and 2 more" in message
    assert "call3" not in message
    once = {"nvmlDeviceGetPowerUsage": Missing(MissingReason.DRIVER_ERROR, "Unknown Error (999)")}
    assert "(999)" in look(nvml(gpu(0, failed_calls=once))).finding("agent.unexpected_reading").message


def test_a_gpu_with_a_code_of_its_own_is_not_unexpected() -> None:
    """A GPU that fails most calls is nvml.error, a corrupt InfoROM is inforom.corrupted: neither is found twice."""
    failing = {f"call{number}": Missing(MissingReason.DRIVER_ERROR, "(999)") for number in range(30)}
    assert look(nvml(gpu(0, failed_calls=failing))).is_clean("agent.unexpected_reading")
    corrupt = {"nvmlDeviceGetSerial": Missing(MissingReason.CORRUPTED_INFOROM, "(14)")}
    assert look(nvml(gpu(0, failed_calls=corrupt))).is_clean("agent.unexpected_reading")


def test_gpus_that_report_one_uuid_are_a_warning() -> None:
    """Each GPU that reports the uuid of another has a finding that says so."""
    found = judged(subject.CHECK, node(gpu(0), gpu(1, uuid=uuid(0))))
    for place in (pci(0), pci(1)):
        assert f"another GPU also reports {uuid(0)}" in found.finding("agent.unexpected_reading", place).message
