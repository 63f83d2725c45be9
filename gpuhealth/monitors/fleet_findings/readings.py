"""Readings of the controller's comparison of GPUs across the fleet."""

from __future__ import annotations

import msgspec


class FleetFinding(msgspec.Struct, frozen=True):
    """The controller's result for one GPU of the node, from comparing it with all others of its model."""

    code: str
    gpu: str
    message: str


class FleetReadings(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """The controller's findings about this node."""

    findings: tuple[FleetFinding, ...] = ()
