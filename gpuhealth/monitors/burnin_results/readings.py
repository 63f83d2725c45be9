"""Readings of burn-in results stored on the node."""

from __future__ import annotations

import msgspec

from gpuhealth.model.burnin_run import BurninRun


class BurninReadings(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """The results of active tests stored on the node. The last conclusive one of each test and GPU is complete; of
    earlier ones only the outcome is kept."""

    runs: tuple[BurninRun, ...] = ()  # oldest first
    unreadable: str = ""  # results that could not be read, and why
