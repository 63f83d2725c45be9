"""The monitor of the kernel log: faults of the host reported in its lines, and gaps in the log itself.

`gpuhealth.kernel_log` follows the log continuously; this monitor reads how completely that works, and which block
devices are the node's own.
"""

from __future__ import annotations

import asyncio

import msgspec

from gpuhealth.model.kernel_event import KernelLogStatus
from gpuhealth.model.missing import Missing
from gpuhealth.monitors.kernel_log.checks import CHECKS, judge_events
from gpuhealth.monitors.kernel_log.mounted_disks import MountedDisks
from gpuhealth.monitors.kernel_log.patterns import PATTERNS
from gpuhealth.monitors.kernel_log.settings import KernelLogSettings
from gpuhealth.monitors.monitor import Monitor, NoBaseline, ProbeContext


class _StatusProbe:
    def __init__(self, context: ProbeContext[KernelLogSettings, NoBaseline]) -> None:
        self._status = context.kernel_log
        self._disks = MountedDisks(context.core.roots.proc, context.core.roots.sys)

    async def read(self) -> KernelLogStatus | Missing:
        status = self._status()
        if isinstance(status, Missing):
            return status
        return msgspec.structs.replace(status, disks=await asyncio.to_thread(self._disks.read))

    def configure(self, _settings: KernelLogSettings) -> None:
        pass

    def close(self) -> None:
        pass


MONITOR = Monitor(
    name="kernel_log",
    summary="Faults of the host and its network adapters that the kernel log reports, and gaps in the log.",
    readings=KernelLogStatus,
    settings=KernelLogSettings,
    baseline=NoBaseline,
    probe=_StatusProbe,
    checks=CHECKS,
    patterns=PATTERNS,
    judge_events=judge_events,
)
