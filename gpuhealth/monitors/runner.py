"""Reads monitors, each within its own deadline: a late or failed one does not affect the others."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import structlog

from gpuhealth.model.missing import Missing, MissingReason
from gpuhealth.monitors.monitor import Probe, RestartRequiredError
from gpuhealth.monitors.registry import AnyMonitor
from gpuhealth.runtime.settings import CoreSettings

log = structlog.get_logger()


class MonitorRunner:
    """Reads one monitor. A late read continues: it is never cancelled, and no second one is started meanwhile."""

    def __init__(self, monitor: AnyMonitor, probe: Probe[Any], settings: CoreSettings) -> None:
        self.monitor = monitor
        self.probe = probe
        self.timeouts = 0
        self.errors = 0
        self.failure = ""  # error of the last round, if any
        self.read_seconds = 0.0  # duration of the last read
        self._reading: asyncio.Task[Any] | None = None
        self.configure(settings)

    def configure(self, settings: CoreSettings) -> None:
        """Applies new settings from the next round on."""
        schedule = settings.schedule(self.monitor.name)
        self.interval = schedule.interval or settings.interval
        self.deadline = schedule.deadline or self.monitor.deadline
        self.probe.configure(settings)

    async def read(self) -> Any:
        """The readings of one round, or why there are none. Raises no error except RestartRequiredError."""
        if self._reading is None:
            self._reading = asyncio.create_task(self._read())
        began = time.monotonic()
        await asyncio.wait([self._reading], timeout=self.deadline)
        self.read_seconds = time.monotonic() - began
        self.failure = ""
        if not self._reading.done():
            self.timeouts += 1
            return Missing(MissingReason.TIMEOUT, f"{self.monitor.name} was not read within {self.deadline:g} s")
        reading, self._reading = self._reading, None
        try:
            return reading.result()
        except RestartRequiredError:
            raise
        except Exception as error:  # noqa: BLE001 - an error of one probe must not affect the others
            return self._failed(error)

    async def _read(self) -> Any:
        return await self.probe.read()

    def _failed(self, error: Exception) -> Missing:
        self.errors += 1
        self.failure = f"{type(error).__name__}: {error}"
        trace = None if isinstance(error, OSError) else error  # the text of an OSError names the cause
        log.error("monitor failed", monitor=self.monitor.name, error=self.failure, exc_info=trace)
        return Missing(MissingReason.ERROR, f"{self.monitor.name} failed: {self.failure}")

    def close(self) -> None:
        """Releases the probe's resources; a read that has not returned is abandoned."""
        if self._reading is not None:
            self._reading.cancel()
        self.probe.close()
