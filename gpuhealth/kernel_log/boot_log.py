"""The log of one boot, read once from its beginning: recent events, and earlier faults that may still be there.

Older records are history, except for faults that only a reset or a reboot ends: one that was logged days ago is as
present as one of the last minute, unless the log or a reading proves the reset.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgspec

from gpuhealth.kernel_log.parser import KernelLogParser
from gpuhealth.model.codes import CODES, Clears
from gpuhealth.model.finding import Severity
from gpuhealth.model.kernel_event import KernelEvent, KernelRecord

MAX_EARLIER = 1000
"""Number of different earlier faults that are kept, the newest ones."""
_LASTING = (Clears.RECOVERY, Clears.REBOOT, Clears.REBOOT_OR_BURNIN)


class EarlierFault(msgspec.Struct):
    """A fault that was logged before the look-back."""

    event: KernelEvent  # the last one of this fault
    ended: bool = False  # a later record reports a reset of the component, or that its driver was loaded again


class BootLog:
    """Takes the records of one boot in their order; `begin` divides recent events from earlier ones."""

    def __init__(self, parser: KernelLogParser, begin: datetime) -> None:
        self.recent: list[KernelEvent] = []
        self._parser = parser
        self._begin = begin
        self._earlier: dict[tuple[object, ...], EarlierFault] = {}

    def add(self, records: Sequence[KernelRecord]) -> None:
        """Takes the next records."""
        for record in records:
            event = self._parser.feed(record)
            if self._earlier and (ends := self._parser.ends(record, event)):
                for fault in self._earlier.values():
                    fault.ended |= ends(fault.event)
            if event is None:
                continue
            if event.time is None or event.time >= self._begin:
                self.recent.append(event)
            elif _lasts(event):
                self._keep(event)

    def _keep(self, event: KernelEvent) -> None:
        key = event.finding, event.severity, event.pci, event.gpu_instance
        self._earlier.pop(key, None)
        if len(self._earlier) >= MAX_EARLIER:
            del self._earlier[next(iter(self._earlier))]
        self._earlier[key] = EarlierFault(event)

    @property
    def earlier(self) -> list[EarlierFault]:
        """The earlier faults that only a reset or a reboot ends, in the order of the log."""
        return list(self._earlier.values())


def _lasts(event: KernelEvent) -> bool:
    """Whether only a reset or a reboot ends the fault of this event."""
    if event.severity is Severity.INFO:
        return False
    return CODES.get(event.finding, event.severity, event.action).clears in _LASTING
