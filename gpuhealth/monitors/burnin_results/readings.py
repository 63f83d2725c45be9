"""Readings of burn-in results that lie on the node."""

from __future__ import annotations

import msgspec

from gpuhealth.model.burnin_run import BurninRun


class BurninReadings(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """The results of active tests that lie on the node: of each test and GPU the last one that says something is
    whole, of earlier ones only how they ended."""

    runs: tuple[BurninRun, ...] = ()  # oldest first
    unreadable: str = ""  # results that could not be read, and why
