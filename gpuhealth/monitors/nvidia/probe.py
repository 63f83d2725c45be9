"""Reads all of a node's NVIDIA GPUs: NVML through its child process, PCI devices, device nodes, kernel module."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from gpuhealth.model.kernel_event import KernelEvent
from gpuhealth.model.missing import NOT_SUPPORTED, Missing, MissingReason, Reading
from gpuhealth.model.pci import PciAddress, parse_address, slot_of
from gpuhealth.monitors.monitor import ProbeContext
from gpuhealth.monitors.nvidia.baseline import Baseline
from gpuhealth.monitors.nvidia.catalog import xid
from gpuhealth.monitors.nvidia.devices import (
    KernelModuleProbe,
    ProcessProbe,
    SwitchManagement,
    device_nodes,
    excluded_gpus,
    live_pids,
    system_memory,
)
from gpuhealth.monitors.nvidia.joined_gpus import JoinedGpus
from gpuhealth.monitors.nvidia.nvml.child import XidSeen
from gpuhealth.monitors.nvidia.nvml.full_round import read_full_round
from gpuhealth.monitors.nvidia.nvml.library import LibraryFinder
from gpuhealth.monitors.nvidia.nvml.process import NvmlProbe
from gpuhealth.monitors.nvidia.nvml.stale_library import StaleLibrary
from gpuhealth.monitors.nvidia.pci import PciProbe
from gpuhealth.monitors.nvidia.readings import Fabric, NvidiaReadings, NvmlReadings, PciDevice
from gpuhealth.monitors.nvidia.release import DriverRelease
from gpuhealth.monitors.nvidia.settings import NvidiaSettings
from gpuhealth.monitors.nvidia.slow_read import READ_SECONDS, SlowRead

_LATE = Missing(MissingReason.TIMEOUT, f"not read within {READ_SECONDS:g} s")
_LONGEST_BRANCH = 6  # digits
_MIN_WAIT_SECONDS = 2.0  # at least, for a round of NVML: slow answers of a busy node are normal


class NvidiaProbe:
    """Reads the NVIDIA GPUs of the node. A hung or released driver costs only NVML's readings."""

    def __init__(self, context: ProbeContext[NvidiaSettings, Baseline]) -> None:
        roots = context.core.roots
        self._context = context
        self._dev, self._proc = roots.dev, roots.proc
        self.nvml = NvmlProbe(context.settings.nvml, library=LibraryFinder(context.core))
        self._pci = PciProbe(roots.sys)
        self._kernel_module = KernelModuleProbe(roots.sys)
        self._fabric_manager = ProcessProbe(roots.proc, "nv-fabricmanager")
        self._subnet_manager = ProcessProbe(roots.proc, "nvlsm")
        self._vgpu_manager = ProcessProbe(roots.proc, "nvidia-vgpu-mgr")
        self._switch_management = SwitchManagement(roots.sys)
        self._joined_gpus = JoinedGpus()
        self._slow_management = SlowRead[Reading[tuple[str, ...]]](_LATE)
        self._slow_exclusion = SlowRead[tuple[PciAddress, ...]](())
        self._stale_library = StaleLibrary()
        self._ping: asyncio.TimerHandle | None = None
        self.on_release_change: Callable[[str], None] = lambda _: None
        self.release = DriverRelease(self.nvml, context.now, lambda sentence: self.on_release_change(sentence))

    def configure(self, settings: NvidiaSettings) -> None:
        """Applies new settings from the next round on."""
        self._context.settings = settings
        self.nvml.configure(settings.nvml)

    async def read(self) -> NvidiaReadings:
        """One round.

        Waits for NVML no longer than a deadline, and returns the readings received until then. Raises
        RestartRequiredError when the driver's library in our container is outdated.
        """
        interval, settings = self._context.interval, self._context.settings
        kernel_module = self._kernel_module.read()
        if not isinstance(kernel_module, Missing):
            self.nvml.follow_module(kernel_module.version)
        if interval is None:
            nvml = await read_full_round(self.nvml.read, settings.nvml.critical_after)
        else:
            nvml = await self.nvml.read(max(interval, _MIN_WAIT_SECONDS))
        pci = self._pci.read()
        if self._joined_gpus.seen(nvml, pci, settings.nvml.reinit_interval):
            self.nvml.restart()
        readings = NvidiaReadings(
            nvml=nvml,
            pci=pci,
            device_nodes=device_nodes(self._dev),
            kernel_module=kernel_module,
            live_pids=live_pids(self._proc, _pids(nvml)),
            excluded_gpus=await self._excluded_gpus(nvml, pci),
            system_memory_bytes=system_memory(self._proc),
            vgpu_manager_running=self._vgpu_manager.read() if self._leaks(nvml) else NOT_SUPPORTED,
            **await self._fabric(nvml, pci),
        )
        if interval is None:
            return readings
        self._stale_library.check(readings)
        self._plan_ping(interval / 2)
        known_gpus, grace = len(self._context.baseline.gpus), settings.driver_release.reacquire_grace
        return self.release.mask(readings, self._context.now(), known_gpus, grace)

    def _leaks(self, nvml: NvmlReadings) -> bool:
        """Whether memory of a GPU is in use that no process holds, as a virtual machine's is."""
        limit = self._context.settings.gpu_memory.leaked_bytes
        used = ((gpu.memory_used_bytes, gpu.compute_processes) for gpu in nvml.gpus)
        return any(isinstance(size, int) and size > limit and not holders for size, holders in used)

    async def _fabric(self, nvml: NvmlReadings, pci: Reading[tuple[PciDevice, ...]]) -> dict[str, Any]:
        """What manages the NVLink switches of this node, where it has any."""
        if not isinstance(pci, Missing) and any(device.is_nvswitch for device in pci):
            return {"fabric_manager_running": self._fabric_manager.read()}
        if not any(isinstance(gpu.fabric, Fabric) and gpu.fabric.is_of_node for gpu in nvml.gpus):
            return {"fabric_manager_running": NOT_SUPPORTED}
        management = await self._slow_management(self._switch_management.read)
        has_management = not isinstance(management, Missing) and bool(management)
        return {
            "fabric_manager_running": self._fabric_manager.read(),
            "subnet_manager_running": self._subnet_manager.read() if has_management else NOT_SUPPORTED,
            "switch_management": management,
        }

    async def _excluded_gpus(self, nvml: NvmlReadings, pci: Reading[tuple[PciDevice, ...]]) -> tuple[PciAddress, ...]:
        """GPUs on the bus that a driver which works does not list because of its options."""
        if isinstance(pci, Missing) or not nvml.is_complete:
            return ()
        listed = {gpu.pci for gpu in nvml.gpus}
        suspects = [device.address for device in pci if device.is_gpu and device.address not in listed]
        return await self._slow_exclusion(lambda: excluded_gpus(self._proc, suspects)) if suspects else ()

    def _plan_ping(self, seconds: float) -> None:
        """Sends a ping to the driver between two rounds, so that a hang is detected that much earlier."""
        if self._ping is not None:
            self._ping.cancel()
        self._ping = asyncio.get_running_loop().call_later(seconds, self.nvml.ping)

    def want_events(self, on_event: Callable[[KernelEvent], None]) -> None:
        """Enables XID events of NVML from now on: without their text, but better than no XIDs at all."""
        self.nvml.on_xid = lambda seen: on_event(event_of(seen))
        self.nvml.want_events()

    @property
    def events_missing(self) -> Missing | None:
        """Why NVML reports no XIDs, if they were enabled."""
        return self.nvml.deaf

    @property
    def pids(self) -> list[int]:
        """The NVML processes, including hung ones."""
        return self.nvml.pids

    def close(self) -> None:
        """Ends the NVML process as soon as its call returns, without waiting for it."""
        if self._ping is not None:
            self._ping.cancel()
        self.nvml.close()


def event_of(seen: XidSeen) -> KernelEvent:
    """The event of an XID reported by NVML, which has no text; for nodes whose kernel log cannot be read."""
    found = xid.assess(seen.xid, "")
    address = parse_address(seen.pci)
    return KernelEvent(
        kind="xid",
        line="",
        finding=f"xid.{seen.xid}",
        severity=found.severity,
        action=found.action,
        code=seen.xid,
        pci=slot_of(address) if address else None,
        meaning=found.meaning,
    )


def is_waiting(readings: NvidiaReadings) -> bool:
    """Whether the driver has not completed the answer of this round."""
    return readings.nvml.overdue_seconds > 0


def driver_branch(version: str) -> int | None:
    """The branch of a driver version: 570 of 570.86.15. None if the text is not a version."""
    branch = version.partition(".")[0]
    return int(branch) if branch.isdecimal() and len(branch) <= _LONGEST_BRANCH else None


def _pids(nvml: NvmlReadings) -> list[int]:
    holders = (gpu.compute_processes for gpu in nvml.gpus)
    return [process.pid for held in holders if not isinstance(held, Missing) for process in held]
