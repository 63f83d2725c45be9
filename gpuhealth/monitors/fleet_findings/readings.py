"""Readings."""

from __future__ import annotations

import msgspec


class FleetFinding(msgspec.Struct, frozen=True):
    """What the controller says of one GPU of the node, from comparing it with all others of its kind."""

    code: str
    gpu: str
    message: str
