"""Letting go of the driver while others work on it: on whose request, since when, and until it is back.

What they work on vanishes under us: GPUs are reset, the kernel module is unloaded, device nodes go. So nothing of NVML
is judged while a request stands, and after the last one only when the driver answers with all its GPUs, or when the
grace in which it ought to is over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from gpuhealth.model.missing import Missing, MissingReason
from gpuhealth.monitors.nvidia.nvml.process import NvmlProbe
from gpuhealth.monitors.nvidia.readings import NvmlReadings, Release
from gpuhealth.monitors.readings import NodeReadings
from gpuhealth.runtime.clock import Now


class DriverRelease:
    """The requests that stand, and what they make of a round."""

    def __init__(self, nvml: NvmlProbe, now: Now, told: Callable[[str], None]) -> None:
        """`told` gets a sentence for every change."""
        self._nvml = nvml
        self._now = now
        self._told = told
        self._working: set[asyncio.Task[None]] = set()
        self.current: Release | None = None  # also after the last request, until the driver is back

    @property
    def reasons(self) -> tuple[str, ...]:
        """The requests that stand."""
        return self.current.reasons if self.current and self.current.until is None else ()

    def take_up(self, remembered: Release) -> None:
        """Goes on with a release that an earlier agent has begun in this boot; before the loop runs."""
        self.current = remembered
        if remembered.until is None:
            self._nvml.let_go()

    def shift(self, step: float) -> None:
        """The clock has been set by so many seconds."""
        if self.current:
            self.current = self.current.shifted(step)

    def ask(self, reason: str, *, wanted: bool, known: bool) -> None:
        """Adds a request or takes it back; `known` says whether the node's state is, should this be the first one."""
        if wanted is (reason in self.reasons):
            return
        now = self._now()
        before = self.current or Release((), now, known)
        if wanted:
            already = bool(self.reasons)
            self.current = msgspec.structs.replace(before, reasons=(*self.reasons, reason), until=None)
            if already:
                self._told(f"the driver stays released: {', '.join(self.reasons)}")
            else:
                self._nvml.let_go()  # at once: a round may begin before the task does
                task = asyncio.create_task(self._let_go())
                self._working.add(task)
                task.add_done_callback(self._working.discard)
        elif left := tuple(each for each in self.reasons if each != reason):
            self.current = msgspec.structs.replace(before, reasons=left)
            self._told(f"the driver stays released: {', '.join(left)}")
        else:
            self.current = msgspec.structs.replace(before, until=now)
            self._nvml.acquire()
            self._told("the driver is taken again")

    def judged(self, readings: NodeReadings, gpus: int, grace: float) -> NodeReadings:
        """The round without what a release, or its end up to `grace` seconds ago, makes of NVML.

        `gpus` is how many the node is known to have.
        """
        release = self.current
        if release is None:
            return readings
        if release.until is not None:
            waited = (readings.time - release.until).total_seconds()
            if waited >= grace or _is_back(readings, gpus):
                self.current = None
                self._told(f"the release of the driver is over after {waited:.0f} s without it")
                return readings
        away = NvmlReadings(problem=Missing(MissingReason.RELEASED, str(release)))
        return msgspec.structs.replace(readings, nvml=away, release=release)

    async def _let_go(self) -> None:
        complete = await self._nvml.release()
        rest = "" if complete else "; a call that has not returned keeps it open"
        self._told(f"the driver is let go on request: {', '.join(self.reasons)}{rest}")


def _is_back(readings: NodeReadings, gpus: int) -> bool:
    """Whether the driver answers for as many GPUs as the node is known to have."""
    nvml = readings.nvml
    if isinstance(nvml, Missing) or nvml.problem or not nvml.answered or isinstance(nvml.count, Missing):
        return False
    return nvml.count >= gpus
