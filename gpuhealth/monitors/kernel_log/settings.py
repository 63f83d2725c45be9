"""Settings of the monitor of the kernel log."""

from __future__ import annotations

from pydantic import Field

from gpuhealth.runtime.settings import LARGEST, Duration, Section


class Kmsg(Section):
    """Reading of the kernel log, /dev/kmsg."""

    lookback: Duration = 600.0  # seconds that the agent's very first start, and `gpuhealth check`, look back
    since_boot: bool = True  # they also look in all older records of this boot for what only a reset or a reboot ends


class HostMemory(Section):
    """Pages of the host's memory that failed and that the kernel took out of use."""

    recovered_critical: int = Field(default=10, ge=1, le=LARGEST)  # pages within the window that are a critical fault
    window: Duration = 86400.0


class KernelLog(Section):
    """Which records of the kernel log count. A change needs a restart of the agent."""

    accept_user_records: bool = False  # for drills: also those that a program with write access to /dev/kmsg wrote


class KernelLogSettings(Section):
    """Settings for reading the kernel log."""

    kmsg: Kmsg = Kmsg()
    host_memory: HostMemory = HostMemory()
    kernel_log: KernelLog = KernelLog()
