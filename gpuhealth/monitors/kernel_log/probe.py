"""The node's kernel log, followed: its events as they come, and how well it was read since the last round.

Where the device cannot be opened, NVML tells of XIDs in its place; opening it is tried again from time to time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from gpuhealth.kernel_log import parser as kernel_lines
from gpuhealth.kernel_log.kmsg import KmsgReader, Position
from gpuhealth.model.kernel_event import KernelEvent, KernelRecord
from gpuhealth.model.missing import Missing, MissingReason, Reading
from gpuhealth.monitors.kernel_log.readings import KernelLog
from gpuhealth.monitors.node_probe import NodeProbe
from gpuhealth.monitors.nvidia.nvml.child import XidSeen
from gpuhealth.runtime.clock import Now

log = structlog.get_logger()

_RETRY_SECONDS = 60.0  # of opening what could not be opened


class KernelLogProbe:
    """One task follows the log; any may look at the figures. `take` is told of events, after `position` has moved."""

    def __init__(
        self, probe: NodeProbe, position: Position | None, take: Callable[[list[KernelEvent]], None], now: Now
    ) -> None:
        """`position` is that of the last record that was handled, by us or by an agent before us."""
        self.position = position
        self.records = 0
        self.lost_records = 0
        self.lag_seconds = 0.0
        self._probe = probe
        self._take = take
        self._now = now
        self._parser = kernel_lines.KernelLog()
        self._reader: KmsgReader | None = None
        self._problem = Missing(MissingReason.ERROR, "the kernel log has not been opened yet")
        self._nvml_tells_xids = False  # in the place of a kernel log that cannot be opened
        probe.nvml.on_xid = self._take_nvml_xid

    def know_driver(self, branch: int) -> None:
        """The branch of the NVIDIA driver (570, 575 …), on which the meaning of some lines depends."""
        self._parser.driver = branch

    async def follow(self, kmsg: Path, lookback: float, after: asyncio.Event) -> None:
        """Opens the log, and `after` that reads it as it comes. Returns when it is time to try again.

        Raises KmsgError when it breaks.
        """
        reader = KmsgReader(kmsg, self._probe.boot_id, self.position, lookback, self._now)
        problem = reader.open()
        if problem is not None:
            if self._problem != problem:
                log.warning("kernel log unreadable: XIDs come from NVML, without their text", reason=str(problem))
            self._problem, self._nvml_tells_xids = problem, True
            self._probe.nvml.want_events()
            await asyncio.sleep(_RETRY_SECONDS)
            return
        self._reader = reader
        try:
            await after.wait()
            async for records in reader:
                self._take_records(records, reader.position)
        finally:
            self._reader = None
            reader.close()

    def read(self) -> Reading[KernelLog]:
        """How well the log was read since this was last asked."""
        if self._reader is None:
            return self._from_nvml() if self._nvml_tells_xids else self._problem
        lost = self._reader.take_lost_records()
        self.lost_records += lost
        self.lag_seconds = self._reader.lag_seconds
        return KernelLog("kmsg", self._reader.records, lost, self._reader.lag_seconds)

    def _from_nvml(self) -> Reading[KernelLog]:
        """The kernel log that NVML stands in for."""
        deaf = self._probe.nvml.deaf
        if deaf is None or deaf.reason is MissingReason.RELEASED:
            return deaf or KernelLog("nvml")
        return Missing(
            self._problem.reason, f"{self._problem.detail}; NVML does not tell of XIDs either: {deaf.detail}"
        )

    def _take_records(self, records: Sequence[KernelRecord], position: Position | None) -> None:
        self.records += len(records)
        events = [event for record in records if (event := self._parser.feed(record))]
        self.position = position
        if events:
            self._take(events)

    def _take_nvml_xid(self, seen: XidSeen) -> None:
        self._take([kernel_lines.nvml_xid_event(seen.xid, seen.pci[:-2] or None)])
