"""NVIDIA's functions on the PCI bus, the ports above them, and their error counters, from sysfs."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from gpuhealth.model.missing import NOT_SUPPORTED, Missing, MissingReason, Reading
from gpuhealth.model.pci import PciAddress, parse_address
from gpuhealth.monitors.nvidia.readings import PciDevice, PciPort
from gpuhealth.runtime.files import file_missing
from gpuhealth.runtime.text import printable

_NVIDIA = 0x10DE
_MOST_PORTS = 8
"""Maximum number of ports above one GPU that are read; two switches in a row have five."""
_MOST_DIGITS = 20  # of a 64-bit counter
_TOTALS = {"correctable": "TOTAL_ERR_COR", "nonfatal": "TOTAL_ERR_NONFATAL", "fatal": "TOTAL_ERR_FATAL"}
_REPORTED = {"correctable": "cor", "nonfatal": "nonfatal", "fatal": "fatal"}


class PciProbe:
    """Scans the bus. What a function is, is read once; only the list, the drivers and the counters change."""

    def __init__(self, sys: Path) -> None:
        self._devices = str(sys / "bus" / "pci" / "devices")
        self._known: dict[str, PciDevice | None] = {}  # None for other vendors' functions

    def read(self) -> Reading[tuple[PciDevice, ...]]:
        """NVIDIA's functions in the order of their addresses."""
        try:
            addresses = sorted(os.listdir(self._devices))  # noqa: PTH208 - names only
        except OSError as error:
            return file_missing(error)
        present = set(addresses)
        self._known = {address: device for address, device in self._known.items() if address in present}
        ports: dict[str, PciPort] = {}  # read once a round: GPUs share them
        found = (self._function(address, ports) for address in addresses)
        return tuple(device for device in found if device is not None)

    def _function(self, address: str, ports: dict[str, PciPort]) -> PciDevice | None:
        if address not in self._known:
            try:
                self._known[address] = self._identify(address)
            except (OSError, ValueError):
                return None  # it was removed during the scan, or is not a function; the next round will show
        device = self._known[address]
        if device is None or device.physical_function:
            return device  # errors of a virtual function are counted at the physical one
        folder = f"{self._devices}/{address}"
        driver = _driver(folder)
        return msgspec.structs.replace(
            device,
            aer_correctable=_aer(folder, "correctable"),
            aer_nonfatal=_aer(folder, "nonfatal"),
            aer_fatal=_aer(folder, "fatal"),
            driver=driver,
            reserved_for=_override(folder) if driver == "" else "",
            ports=tuple(self._port(port.address, ports, own=len(device.ports) == 1) for port in device.ports),
        )

    def _identify(self, address: str) -> PciDevice | None:
        """What the function is; None for another vendor's. Raises OSError or ValueError if it cannot be read."""
        folder = Path(self._devices, address)
        vendor, device_id, device_class = (
            _hexadecimal((folder / name).read_text()) for name in ("vendor", "device", "class")
        )
        parsed = parse_address(address)
        if vendor != _NVIDIA or parsed is None:
            return None
        device = PciDevice(
            parsed,
            device_class,
            device_id,
            physical_function=_link_name(f"{folder}/physfn"),
            has_mediated_devices=(folder / "mdev_supported_types").is_dir(),
        )
        return msgspec.structs.replace(device, ports=_ports_above(str(folder))) if device.is_gpu else device

    def _port(self, address: PciAddress, ports: dict[str, PciPort], *, own: bool) -> PciPort:
        """The counters of a port; `own` if it is the root port of this GPU alone.

        Such a port also counts the errors that are reported to it without a source that the kernel can identify.
        """
        if address not in ports:
            folder = f"{self._devices}/{address}"
            counts = (_aer(folder, kind) for kind in _TOTALS)
            reported = (_reported(folder, kind) if own else 0 for kind in _TOTALS)
            ports[address] = PciPort(address, *map(_larger, counts, reported))
        return ports[address]


def _hexadecimal(text: str) -> int:
    """A number of the configuration space, of at most 24 bits. Raises ValueError."""
    if not 0 <= (number := int(text, 16)) < 1 << 24:
        raise ValueError(f"{text[:20]!a} is no number of at most 24 bits")
    return number


def _reported(folder: str, kind: str) -> int:
    """Errors that were reported to a root port; 0 where the kernel does not count them."""
    try:
        with open(f"{folder}/aer_rootport_total_err_{_REPORTED[kind]}") as file:  # noqa: PTH123 - as below
            text = file.read(_MOST_DIGITS).strip()
    except (OSError, UnicodeDecodeError):
        return 0
    return int(text) if text.isdecimal() else 0


def _larger(counted: Reading[int], reported: int) -> Reading[int]:
    if isinstance(counted, Missing):
        return reported if reported and counted.is_unsupported else counted
    return max(counted, reported)


def _ports_above(folder: str) -> tuple[PciPort, ...]:
    """The ports on the path of a function from the root complex, such as /sys/devices/pci0000:16/0000:16:01.0/…."""
    above = os.path.realpath(folder).split("/")[-2::-1]
    ports = []
    for name in above[:_MOST_PORTS]:
        address = parse_address(name)
        if address != name:
            break  # the host bridge
        ports.append(PciPort(address))
    return tuple(ports)


def _driver(folder: str) -> Reading[str]:
    try:
        return printable(os.readlink(f"{folder}/driver").rpartition("/")[2])  # noqa: PTH115 - as fast as it can be
    except FileNotFoundError:
        return ""  # none is bound
    except OSError as error:
        return file_missing(error)


def _override(folder: str) -> str:
    """The driver that alone may bind to a function; empty if there is no such rule."""
    try:
        text = Path(folder, "driver_override").read_text(errors="replace").strip()
    except OSError:
        return ""
    return "" if text == "(null)" else printable(text)


def _link_name(path: str) -> str:
    """The name of the folder that a link leads to; empty without a link."""
    try:
        return os.readlink(path).rpartition("/")[2].lower()  # noqa: PTH115 - a name, which need not exist
    except OSError:
        return ""


def _aer(folder: str, kind: str) -> Reading[int]:
    path, total = f"{folder}/aer_dev_{kind}", _TOTALS[kind]
    try:
        with open(path) as file:  # noqa: PTH123 - dozens a round: pathlib takes longer than the kernel
            lines = file.read().splitlines()
    except FileNotFoundError:
        return NOT_SUPPORTED  # no AER capability, or a kernel built without it
    except OSError as error:
        return file_missing(error)
    except UnicodeDecodeError:
        lines = []
    for line in lines:
        name, _, count = line.rpartition(" ")
        if name == total and count.isdecimal() and len(count) <= _MOST_DIGITS:
            return int(count)
    return Missing(MissingReason.ERROR, f"{path} has no line {total}")
