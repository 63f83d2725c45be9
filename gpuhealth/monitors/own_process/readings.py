"""Readings of the agent's own process."""

from __future__ import annotations

import msgspec

from gpuhealth.runtime.single_instance import RefusedInstance


class OwnProcessReadings(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """What other agents have left in the agent's folder."""

    refused: RefusedInstance | None = None
