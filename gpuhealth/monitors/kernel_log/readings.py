"""Readings."""

from __future__ import annotations

import msgspec


class KernelLog(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """How well the kernel log is being read."""

    source: str  # "kmsg", or "nvml" where only XID events reach us
    records: int = 0  # read since the reader started
    lost_records: int = 0  # overwritten before we could read them, since the last round
    lag_seconds: float = 0.0
