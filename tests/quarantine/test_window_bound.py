"""The window of a budget as the API server takes it: more than 0 and at most 365 days."""

from __future__ import annotations

import pytest
from kube import ControlPlane
from kube.control_plane import RequestError
from testing.cluster_objects import Pool

from gpuhealth.quarantine.slots.budget import slot_sets


@pytest.mark.parametrize(
    "window",
    ["30m", "1h", "24h", "1h30m", "14d", "365d", "8760h", "90s", "1500ms", "0.5d", "36h30m", "1.5h", "364d23h59m59s"],
)
def test_windows_that_are_taken(plane: ControlPlane, pool: Pool, window: str) -> None:
    """What people write is taken, by the API server and by the agent."""
    pool.budget(1, maxPerWindow=1, window=window)
    made = plane.request("GET", f"/apis/gpuhealth.io/v1alpha1/quarantinebudgets/{pool.name}")
    assert 0 < slot_sets(made, 1, "xid.79")[1].seconds <= 365 * 86400


@pytest.mark.parametrize(
    "window",
    [
        "0s",
        "0h0m",
        "0.0d",
        "000ms",
        "366d",
        "1000d",
        "100000d",
        "8761h",
        "525601m",
        "31536001s",
        "99999999999s",
        "365d1h",
        "9" * 300 + "d",
        "1h1h",
        "-1h",
        "1 h",
        "soon",
        "",
    ],
)
def test_windows_that_are_refused(plane: ControlPlane, pool: Pool, window: str) -> None:
    """None at all, more than a Lease can hold, and what is no duration."""
    with pytest.raises(RequestError) as refused:
        pool.budget(1, maxPerWindow=1, window=window)
    assert refused.value.status == 422
