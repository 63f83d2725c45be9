"""The readings of a whole node: one entry for each monitor. A capture stores them and `check` judges them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from gpuhealth.model.missing import UNREAD, Missing, Reading
from gpuhealth.monitors.monitor import B, Monitor, R, S
from gpuhealth.monitors.registry import monitors


class NodeReadings(msgspec.Struct, frozen=True, kw_only=True):
    """All readings of a node from one round of every monitor."""

    node: str
    time: datetime
    boot_id: str
    monitors: dict[str, Any] = {}  # by the monitor's name: its readings, or a Missing

    def of(self, monitor: Monitor[R, S, B]) -> Reading[R]:
        """The readings of one monitor."""
        found: Reading[R] = self.monitors.get(monitor.name, UNREAD)
        return found

    def with_readings(self, monitor: Monitor[R, S, B], readings: Reading[R]) -> NodeReadings:
        """A copy with other readings of one monitor."""
        return msgspec.structs.replace(self, monitors=self.monitors | {monitor.name: readings})


class _Encoded(msgspec.Struct):
    node: str
    time: datetime
    boot_id: str
    monitors: dict[str, msgspec.Raw]


def decode(text: bytes) -> NodeReadings:
    """The readings in a JSON object. Monitors unknown to this version are left out.

    Raises msgspec.DecodeError for anything else.
    """
    encoded = msgspec.json.decode(text, type=_Encoded)
    known = {
        monitor.name: msgspec.json.decode(encoded.monitors[monitor.name], type=monitor.readings | Missing)
        for monitor in monitors()
        if monitor.name in encoded.monitors
    }
    return NodeReadings(node=encoded.node, time=encoded.time, boot_id=encoded.boot_id, monitors=known)
