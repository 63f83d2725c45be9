"""GPU recovery actions."""

import pytest

from gpuhealth.model.finding import Action, Severity
from gpuhealth.monitors.nvidia.catalog import recovery

TEXT = "GPU recovery action changed from 0x0 (None) to {}"


@pytest.mark.parametrize(
    ("value", "name", "severity", "action"),
    [
        (0, "None", Severity.INFO, Action.NONE),
        (1, "GPU Reset Required", Severity.CRITICAL, Action.RESET_GPU),
        (1, "PF FLR", Severity.CRITICAL, Action.RESET_GPU),
        (2, "Node Reboot Required", Severity.CRITICAL, Action.REBOOT_NODE),
        (2, "OS Reboot", Severity.CRITICAL, Action.REBOOT_NODE),
        (3, "Drain P2P", Severity.WARNING, Action.RESTART_WORKLOAD),
        (4, "Drain and Reset", Severity.CRITICAL, Action.RESET_GPU),
        (5, "Recover IMEX Domain", Severity.WARNING, Action.RESTART_WORKLOAD),
        (6, "Bus Reset", Severity.CRITICAL, Action.RESET_GPU),
        (7, "System Reboot", Severity.CRITICAL, Action.REBOOT_NODE),
        (9, "Drain and Reset Again", Severity.CRITICAL, Action.RESET_GPU),
        (10, "Reboot the rack", Severity.CRITICAL, Action.REBOOT_NODE),
        (11, "Dance", Severity.WARNING, Action.CONTACT_SUPPORT),
    ],
)
def test_value_and_text(value: int, name: str, severity: Severity, action: Action) -> None:
    """The value decides where the words say no more; a value that is not known is read by its words."""
    found = recovery.from_text(TEXT.format(f"{value:#x} ({name})"))
    assert found is not None
    assert (found.value, found.severity, found.action) == (value, severity, action)
    assert found.quarantine is (severity is Severity.CRITICAL)


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("0x1 (Node Reboot Required)", Action.REBOOT_NODE),
        ("0x2 (GPU Reset Required)", Action.REBOOT_NODE),
        ("0x0 (GPU Reset Required)", Action.RESET_GPU),
        ("0x3 (System Reboot)", Action.REBOOT_NODE),
        ("0x4 (Drain P2P)", Action.RESET_GPU),
    ],
)
def test_value_and_text_differ(text: str, action: Action) -> None:
    """Where number and words name different actions, the stronger one counts."""
    found = recovery.from_text(TEXT.format(text))
    assert found is not None
    assert (found.severity, found.action) == (Severity.CRITICAL, action)


def test_requests_in_words() -> None:
    """A change back to none is no request for an action called None."""
    for text, words in (("0x0 (None)", "requests no recovery action"), ("0x1 (PF FLR)", "requests GPU Reset Required")):
        found = recovery.from_text(TEXT.format(text))
        assert found is not None
        assert words in found.request


def test_no_action_in_the_text() -> None:
    """A text that names no action gives none."""
    assert recovery.from_text("GPU recovery action changed") is None
