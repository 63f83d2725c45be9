"""One round of a node: every probe read once, all into one NodeReadings."""

from __future__ import annotations

from pathlib import Path

from gpuhealth.model.missing import NOT_SUPPORTED, Missing
from gpuhealth.monitors.burnin_results.probe import BurninProbe
from gpuhealth.monitors.nvidia.devices import FabricManagerProbe, KernelModuleProbe, device_nodes, live_pids
from gpuhealth.monitors.nvidia.nvml.process import NvmlProbe
from gpuhealth.monitors.nvidia.pci import PciProbe
from gpuhealth.monitors.nvidia.readings import NvmlReadings
from gpuhealth.monitors.readings import NodeReadings
from gpuhealth.runtime.clock import Now, wall_clock
from gpuhealth.runtime.settings import Settings


def boot_id(proc: Path) -> str:
    """The kernel's name for this boot; empty where it cannot be read."""
    try:
        return (proc / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


class NodeProbe:
    """Reads the node. The kernel log comes by itself and is followed by monitors/kernel_log/probe.py."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.nvml = NvmlProbe(settings.nvml)
        self._pci = PciProbe(settings.roots.sys)
        self._kernel_module = KernelModuleProbe(settings.roots.sys)
        self._fabric_manager = FabricManagerProbe(settings.roots.proc)
        self._burnin = BurninProbe(settings.burnin.results_dir)
        self.boot_id = boot_id(settings.roots.proc)

    async def read(self, wait_seconds: float, now: Now = wall_clock) -> NodeReadings:
        """One round; NVML is waited for at most `wait_seconds`, and the round is of the time that `now` then tells."""
        nvml = await self.nvml.read(wait_seconds)
        roots = self._settings.roots
        pci = self._pci.read()
        switches = not isinstance(pci, Missing) and any(device.is_nvswitch for device in pci)
        return NodeReadings(
            node=self._settings.node_name,
            time=now(),
            boot_id=self.boot_id,
            nvml=nvml,
            pci=pci,
            device_nodes=device_nodes(roots.dev),
            kernel_module=self._kernel_module.read(),
            live_pids=live_pids(roots.proc, _pids(nvml)),
            fabric_manager_running=self._fabric_manager.read() if switches else NOT_SUPPORTED,
            burnin=await self._burnin.read(),
        )


def _pids(nvml: NvmlReadings) -> list[int]:
    holders = (gpu.compute_processes for gpu in nvml.gpus)
    return [process.pid for held in holders if not isinstance(held, Missing) for process in held]
