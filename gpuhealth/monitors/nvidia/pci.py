"""NVIDIA's functions on the PCI bus and their error counters, from sysfs."""

from __future__ import annotations

from pathlib import Path

from gpuhealth.model.missing import NOT_SUPPORTED, Missing, MissingReason, Reading
from gpuhealth.model.pci import PciAddress
from gpuhealth.monitors.nvidia.readings import PciDevice
from gpuhealth.runtime.files import file_missing

_NVIDIA = 0x10DE


class PciProbe:
    """Scans the bus. The type of a function is read once; only the list and the counters change."""

    def __init__(self, sys: Path) -> None:
        self._devices = sys / "bus" / "pci" / "devices"
        self._known: dict[str, PciDevice | None] = {}  # None for other vendors' functions

    def read(self) -> Reading[tuple[PciDevice, ...]]:
        """NVIDIA's functions in the order of their addresses."""
        try:
            addresses = sorted(entry.name for entry in self._devices.iterdir())
        except OSError as error:
            return file_missing(error)
        self._known = {address: device for address, device in self._known.items() if address in addresses}
        found = (self._function(address) for address in addresses)
        return tuple(device for device in found if device is not None)

    def _function(self, address: str) -> PciDevice | None:
        if address not in self._known:
            try:
                vendor, device, device_class = (
                    int((self._devices / address / name).read_text(), 16) for name in ("vendor", "device", "class")
                )
            except (OSError, ValueError):
                return None  # it was removed during the scan, or is not a function; the next round will show
            self._known[address] = (
                PciDevice(PciAddress(address.lower()), device_class, device) if vendor == _NVIDIA else None
            )
        device_known = self._known[address]
        if device_known is None:
            return None
        return PciDevice(
            address=device_known.address,
            device_class=device_known.device_class,
            device_id=device_known.device_id,
            aer_correctable=self._aer(address, "correctable", "TOTAL_ERR_COR"),
            aer_nonfatal=self._aer(address, "nonfatal", "TOTAL_ERR_NONFATAL"),
            aer_fatal=self._aer(address, "fatal", "TOTAL_ERR_FATAL"),
        )

    def _aer(self, address: str, kind: str, total: str) -> Reading[int]:
        path = f"{self._devices}/{address}/aer_dev_{kind}"  # dozens a round: pathlib takes longer than the kernel
        try:
            with open(path) as file:  # noqa: PTH123
                lines = file.read().splitlines()
        except FileNotFoundError:
            return NOT_SUPPORTED  # no AER capability, or a kernel built without it
        except OSError as error:
            return file_missing(error)
        for line in lines:
            name, _, count = line.rpartition(" ")
            if name == total and count.isdecimal():
                return int(count)
        return Missing(MissingReason.ERROR, f"{path} has no line {total}")
