"""Settings of the monitor of the kernel log."""

from __future__ import annotations

from gpuhealth.runtime.settings import Duration, Section


class Kmsg(Section):
    """Reading of the kernel log, /dev/kmsg."""

    lookback: Duration = 600.0  # at the agent's very first start: older records are not raised


class KernelLogSettings(Section):
    """Settings for reading the kernel log."""

    kmsg: Kmsg = Kmsg()
