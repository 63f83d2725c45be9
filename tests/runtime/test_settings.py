"""Settings: durations as Prometheus writes them, and what holds for one finding on one node."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuhealth.model.finding import Severity
from gpuhealth.model.policy import FindingPolicy
from gpuhealth.monitors.settings import Settings
from gpuhealth.runtime.settings import seconds


@pytest.mark.parametrize(
    ("text", "value"), [("90", 90.0), ("90s", 90.0), ("1m30s", 90.0), ("1.5h", 5400.0), ("14d", 1209600.0), (5, 5)]
)
def test_durations(text: object, value: float) -> None:
    """Durations are written as Prometheus writes them, or as seconds."""
    assert seconds(text) == value


@given(st.text())
def test_no_text_crashes_a_duration(text: str) -> None:
    """A text is a duration or is refused."""
    try:
        value = seconds(text)
    except ValueError:
        return
    assert isinstance(value, float)


def test_policies_go_from_general_to_special() -> None:
    """A pattern is overridden by the exact code, and both by the pools whose labels the node has."""
    settings = Settings.model_validate(
        {
            "findings": {"xid.*": {"quarantine": False, "drain": False}, "xid.94": {"quarantine": True}},
            "pools": [{"node_labels": {"pool": "spot"}, "findings": {"xid.*": {"severity": "info"}}}],
        }
    )
    assert settings.policy("xid.79") == FindingPolicy(quarantine=False, drain=False)
    assert settings.policy("xid.94") == FindingPolicy(quarantine=True, drain=False)
    assert settings.policy("ecc.uncorrectable") == FindingPolicy()
    assert settings.policy("xid.94", {"pool": "spot", "zone": "a"}).severity is Severity.INFO
    assert settings.policy("xid.94", {"pool": "other"}).severity is None
