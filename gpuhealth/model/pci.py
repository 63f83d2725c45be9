"""PCI addresses in one form, independent of their source.

The driver, the kernel log, NVML and sysfs write them differently (`0000:3B:00.0`, `00000000:3b:00`, `PCI:0000:3b:00`).
Everything is kept as sysfs names it: `dddd:bb:dd.f` in lower case.
"""

from __future__ import annotations

import functools
import re
from typing import NewType

PciAddress = NewType("PciAddress", str)
"""One PCI function: `dddd:bb:dd.f`."""

PciSlot = NewType("PciSlot", str)
"""One PCI device without its function, as the driver names a GPU in the kernel log: `dddd:bb:dd`."""

_ADDRESS = re.compile(r"(?:PCI:)?(?:([0-9a-fA-F]{1,8}):)?([0-9a-fA-F]{2}):([01][0-9a-fA-F])(?:\.([0-7]))?", re.ASCII)


@functools.lru_cache(maxsize=256)  # a node has few devices, and an error storm repeats one of them in every line
def slot(domain: str | None, bus: str, device: str) -> PciSlot:
    """The slot with these hexadecimal numbers. Domains have 4 to 8 digits; leading zeros beyond four are dropped."""
    return PciSlot(f"{int(domain or '0', 16):04x}:{bus.lower()}:{device.lower()}")


def slot_of(address: PciAddress) -> PciSlot:
    """The device that a function belongs to."""
    return PciSlot(address.partition(".")[0])


def function_zero(place: PciSlot) -> PciAddress:
    """The first function of a device, which is the GPU on every NVIDIA card."""
    return PciAddress(f"{place}.0")


def parse_address(text: str) -> PciAddress | None:
    """The address in a text of any of the usual forms; function 0 if it has none. None for any other text."""
    match = _ADDRESS.fullmatch(text.strip())
    if match is None:
        return None
    return PciAddress(f"{slot(match[1], match[2], match[3])}.{match[4] or '0'}")
