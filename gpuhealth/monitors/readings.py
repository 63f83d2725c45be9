"""Readings."""

from __future__ import annotations

from datetime import datetime

import msgspec

from gpuhealth.model.kernel_event import KernelEvent
from gpuhealth.model.missing import NOT_SUPPORTED, UNREAD, Reading
from gpuhealth.monitors.burnin_results.readings import BurninReadings
from gpuhealth.monitors.fleet_findings.readings import FleetFinding
from gpuhealth.monitors.kernel_log.readings import KernelLog
from gpuhealth.monitors.nvidia.readings import KernelModule, NvmlReadings, PciDevice, Release


class NodeReadings(msgspec.Struct, frozen=True, omit_defaults=True):
    """Everything read in one round, and the kernel events since the round before."""

    node: str
    time: datetime
    boot_id: str
    nvml: Reading[NvmlReadings] = UNREAD
    pci: Reading[tuple[PciDevice, ...]] = UNREAD
    device_nodes: Reading[tuple[int, ...]] = UNREAD  # N of every /dev/nvidiaN
    kernel_module: Reading[KernelModule] = UNREAD
    kernel_log: Reading[KernelLog] = UNREAD
    live_pids: Reading[tuple[int, ...]] = UNREAD  # of the processes that hold a GPU, those that exist
    fabric_manager_running: Reading[bool] = UNREAD
    burnin: Reading[BurninReadings] = UNREAD
    release: Release | None = None  # of the driver, now
    fleet: Reading[tuple[FleetFinding, ...]] = NOT_SUPPORTED  # only in a cluster
    events: tuple[KernelEvent, ...] = ()
