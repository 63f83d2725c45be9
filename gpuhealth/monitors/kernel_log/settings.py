"""Settings of the monitor of the kernel log."""

from __future__ import annotations

from gpuhealth.runtime.settings import Duration, Section


class Kmsg(Section):
    """Reading of the kernel log, /dev/kmsg."""

    lookback: Duration = 600.0  # seconds that the agent's very first start, and `gpuhealth check`, look back
    since_boot: bool = True  # they also look in all older records of this boot for what only a reset or a reboot ends


class KernelLog(Section):
    """Which records of the kernel log count. A change needs a restart of the agent."""

    accept_user_records: bool = False  # for drills: also those that a program with write access to /dev/kmsg wrote


class KernelLogSettings(Section):
    """Settings for reading the kernel log."""

    kmsg: Kmsg = Kmsg()
    kernel_log: KernelLog = KernelLog()
