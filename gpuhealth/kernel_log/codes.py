"""The finding codes that lines of the kernel log name, except those of XIDs and SXids, which are their numbers.

Each of them is registered by a check; tests/monitors/test_codes.py proves it.
"""

from __future__ import annotations

import enum


class LogCode(enum.StrEnum):
    """One finding code."""

    PCIE_CORRECTABLE = "pcie.aer_correctable_rate"
    PCIE_UNCORRECTABLE = "pcie.aer_uncorrectable"
    MEMORY_EDAC = "host.memory_edac"
    MCE = "host.mce"
    HUNG_TASK = "host.hung_task"
    CPU_LOCKUP = "host.cpu_lockup"
    OOM = "host.oom"
    DISK_READONLY = "host.disk_readonly"
    IO_ERRORS = "host.io_errors"
    SEGFAULT = "host.segfault"
    INFINIBAND_ERRORS = "infiniband.errors"
    INFINIBAND_DOWN = "infiniband.down"
    NIC_DOWN = "nic.down"
    DRIVER_INIT_FAILED = "driver.init_failed"
    DRIVER_CLIENT_MISMATCH = "driver.client_mismatch"
    DRIVER_NEEDS_REBOOT = "driver.needs_reboot"
    DRIVER_ERRORS = "driver.errors"
