"""Changes that a deployment makes to a finding's defaults."""

from __future__ import annotations

import msgspec

from gpuhealth.model.finding import Severity


class FindingPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Changes for one finding code; None keeps the default. Durations in seconds."""

    severity: Severity | None = None
    quarantine: bool | None = None
    drain: bool | None = None
    cordon: bool | None = None
    raise_after: float | None = None
    clear_after: float | None = None
    test_before_return: bool | None = None  # None: value of the setting quarantine.test_before_return
    ignore: bool = False
