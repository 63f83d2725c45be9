"""Releases the driver on request: all /dev/nvidia* handles are closed, so that others can reset GPUs or replace it.

The hardware may disappear meanwhile: GPUs are reset, the kernel module is unloaded, device nodes go. So NVML is not
judged while a request is open, and after the last one only when the driver answers with all its GPUs, or when a grace
period is over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime

import msgspec

from gpuhealth.model.missing import Missing, MissingReason
from gpuhealth.monitors.nvidia.nvml.process import NvmlProbe
from gpuhealth.monitors.nvidia.readings import NvidiaReadings, NvmlReadings, Release
from gpuhealth.runtime.clock import Now


class DriverRelease:
    """The open requests to release the driver."""

    def __init__(self, nvml: NvmlProbe, now: Now, on_change: Callable[[str], None]) -> None:
        """`on_change` is called with one sentence for each change."""
        self._nvml = nvml
        self._now = now
        self._on_change = on_change
        self._working: set[asyncio.Task[None]] = set()
        self.current: Release | None = None  # also after the last request, until the driver is back

    @property
    def reasons(self) -> tuple[str, ...]:
        """The sources of all open requests."""
        return self.current.reasons if self.current and self.current.until is None else ()

    def resume(self, remembered: Release) -> None:
        """Continues a release that an earlier agent began in this boot; call it before the first round."""
        self.current = remembered
        if remembered.until is None:
            self._nvml.begin_release()

    def shift(self, step: float) -> None:
        """Shifts its times by the seconds by which the wall clock was set."""
        if self.current:
            self.current = self.current.shifted(step)

    def ask(self, reason: str, *, wanted: bool, known: bool) -> None:
        """Adds or withdraws a request; `known` is whether the state of the node is known now."""
        if wanted is (reason in self.reasons):
            return
        now = self._now()
        before = self.current or Release((), now, known)
        if wanted:
            already = bool(self.reasons)
            self.current = msgspec.structs.replace(before, reasons=(*self.reasons, reason), until=None)
            if already:
                self._on_change(f"the driver stays released: {', '.join(self.reasons)}")
            else:
                self._nvml.begin_release()  # at once: a round may begin before the task does
                task = asyncio.create_task(self._release())
                self._working.add(task)
                task.add_done_callback(self._working.discard)
        elif left := tuple(other for other in self.reasons if other != reason):
            self.current = msgspec.structs.replace(before, reasons=left)
            self._on_change(f"the driver stays released: {', '.join(left)}")
        else:
            self.current = msgspec.structs.replace(before, until=now)
            self._nvml.acquire()
            self._on_change("driver opened again")

    def mask(self, readings: NvidiaReadings, now: datetime, known_gpus: int, grace: float) -> NvidiaReadings:
        """The round without the effects on NVML of a release, or of its end up to `grace` seconds ago.

        `known_gpus` is the number of GPUs that the node is known to have.
        """
        release = self.current
        if release is None:
            return readings
        if release.until is not None:
            waited = (now - release.until).total_seconds()
            if waited >= grace or _is_back(readings.nvml, known_gpus):
                self.current = None
                self._on_change(f"the release of the driver is over after {waited:.0f} s without it")
                return readings
        away = NvmlReadings(problem=Missing(MissingReason.RELEASED, str(release)))
        return msgspec.structs.replace(readings, nvml=away, release=release)

    def excused(self, now: datetime, max_duration: float) -> MissingReason | None:
        """The excused reason for missing readings while the release is not too old; None otherwise."""
        return excused(self.current, now, max_duration)

    async def _release(self) -> None:
        complete = await self._nvml.release()
        rest = "" if complete else "; a call that has not returned keeps it open"
        self._on_change(f"driver released on request: {', '.join(self.reasons)}{rest}")


def excused(release: Release | None, now: datetime, max_duration: float) -> MissingReason | None:
    """The excused reason for missing readings: a release, if the state of the node was known before it."""
    if release is None or not release.known or (now - release.since).total_seconds() >= max_duration:
        return None
    return MissingReason.RELEASED


def _is_back(nvml: NvmlReadings, known_gpus: int) -> bool:
    """Whether the driver answers for the known number of GPUs of the node."""
    return nvml.is_complete and not isinstance(nvml.count, Missing) and nvml.count >= known_gpus
