"""GPUs that join or leave the driver of a running node: added to a virtual machine, given to one, or given back."""

from __future__ import annotations

import math
import time

from gpuhealth.model.missing import Missing, Reading
from gpuhealth.model.pci import PciAddress
from gpuhealth.monitors.nvidia.readings import NVIDIA_DRIVERS, NvmlReadings, PciDevice

_PATIENCE_SECONDS = 300.0
"""How long NVML is started again for a GPU: the start disturbs the readings of the others."""


class JoinedGpus:
    """Detects GPUs that join or leave the driver while NVML runs: its list changes only when it is started again."""

    def __init__(self) -> None:
        self._before: set[PciAddress] | None = None  # those of the driver, in the last round
        self._joined: dict[PciAddress, float] = {}  # and when
        self._restarted_at = -math.inf

    def seen(self, nvml: NvmlReadings, pci: Reading[tuple[PciDevice, ...]], interval: float) -> bool:
        """Whether NVML should be started again; at most once in `interval` seconds."""
        if isinstance(pci, Missing) or not nvml.is_complete:
            return False
        bound = {device.address for device in pci if device.is_gpu and device.driver in NVIDIA_DRIVERS}
        now = time.monotonic()
        if self._before is not None:
            self._joined |= dict.fromkeys(bound - self._before, now)
        self._before = bound
        awaited = bound - {gpu.pci for gpu in nvml.gpus}
        self._joined = {
            address: since
            for address, since in self._joined.items()
            if address in awaited and now - since < _PATIENCE_SECONDS
        }
        handed_over = {device.address for device in pci if device.is_passed_through}
        left = any(gpu.pci in handed_over for gpu in nvml.gpus)
        if not (self._joined or left) or now - self._restarted_at < interval:
            return False
        self._restarted_at = now
        return True
