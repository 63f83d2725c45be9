"""Functions on the PCI bus in the files of sysfs, for machines of which only a listing is known."""

from __future__ import annotations

from pathlib import Path

from gpuhealth.model.pci import PciAddress

NVIDIA, INTEL, MELLANOX = 0x10DE, 0x8086, 0x15B3
VGA, CONTROLLER_3D, AUDIO, USB, BRIDGE, PORT, INFINIBAND = (
    0x030000,
    0x030200,
    0x040300,
    0x0C0330,
    0x068000,
    0x060400,
    0x020700,
)


def add_function(
    sys: Path,
    path: str,
    pci_class: int,
    device: int,
    *,
    vendor: int = NVIDIA,
    driver: str = "",
    physical: str = "",
    aer: dict[str, int] | None = None,
) -> PciAddress:
    """Adds a function to a tree. `path` has the ports above it, as in the kernel: `0000:16:01.0/0000:17:00.0`.

    `physical` is the address of the function that it is a virtual function of; `aer` are totals of errors by kind.
    """
    address = path.rpartition("/")[2]
    folder = sys / "devices" / f"pci{path[:7]}" / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in (("vendor", f"0x{vendor:04x}"), ("device", f"0x{device:04x}"), ("class", f"0x{pci_class:06x}")):
        (folder / name).write_text(f"{value}\n")
    for kind, total in {"correctable": "COR", "nonfatal": "NONFATAL", "fatal": "FATAL"}.items():
        if aer is not None:
            (folder / f"aer_dev_{kind}").write_text(f"Undefined 0\nTOTAL_ERR_{total} {aer.get(kind, 0)}\n")
    if driver:
        (folder / "driver").symlink_to(f"../../../bus/pci/drivers/{driver}")
    if physical:
        (folder / "physfn").symlink_to(f"../{physical}")
    bus = sys / "bus/pci/devices"
    bus.mkdir(parents=True, exist_ok=True)
    (bus / address).symlink_to(folder)
    return PciAddress(address)


def bind(sys: Path, address: str, driver: str) -> None:
    """Binds a function to a driver, or to none if the name is empty."""
    link = sys / "bus/pci/devices" / address / "driver"
    link.unlink(missing_ok=True)
    if driver:
        link.symlink_to(f"../../../bus/pci/drivers/{driver}")
