"""Which functions on the bus are GPUs of the node's driver, on machines that are not ours and on random ones."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testing.pci_tree import (
    AUDIO,
    BRIDGE,
    CONTROLLER_3D,
    INFINIBAND,
    INTEL,
    MELLANOX,
    NVIDIA,
    PORT,
    VGA,
    add_function,
    bind,
)
from testing.readings import gpu, judged, node, remembering

from gpuhealth.model.component import NODE
from gpuhealth.model.finding import Finding, Severity
from gpuhealth.model.missing import Missing
from gpuhealth.model.pci import PciAddress
from gpuhealth.monitors.nvidia.baseline import Baseline
from gpuhealth.monitors.nvidia.checks import gpu as subject
from gpuhealth.monitors.nvidia.ownership import unmanaged_gpus
from gpuhealth.monitors.nvidia.pci import PciProbe
from gpuhealth.monitors.nvidia.readings import NvidiaReadings, PciDevice


class Machine(NamedTuple):
    """A listing: paths of functions with class, device, vendor and driver, and how many GPUs are the driver's."""

    name: str
    functions: Sequence[tuple[str, int, int, int, str]]
    used: int
    unmanaged: int = 0


def _of_class(
    paths: str, pci_class: int, device: int, driver: str, vendor: int = NVIDIA
) -> list[tuple[str, int, int, int, str]]:
    return [(path, pci_class, device, vendor, driver) for path in paths.split()]


MACHINES = [
    Machine(  # Hyper-V gives each passed-through device a domain of its own
        "Azure NC96ads A100 v4",
        _of_class("0001:00:00.0 0002:00:00.0 0003:00:00.0 0004:00:00.0", CONTROLLER_3D, 0x20B5, "nvidia"),
        used=4,
    ),
    Machine(
        "Azure ND96isr H100 v5",
        [
            *_of_class("0001:00:00.0 0002:00:00.0 0003:00:00.0 0008:00:00.0", CONTROLLER_3D, 0x2330, "nvidia"),
            *_of_class("0009:00:00.0 000a:00:00.0 000b:00:00.0 000c:00:00.0", CONTROLLER_3D, 0x2330, "nvidia"),
            *_of_class("b1f2:00:00.0 9c6e:00:00.0", BRIDGE, 0x22A3, "nvidia-nvswitch"),
            *_of_class("0101:00:00.0", INFINIBAND, 0x101E, "mlx5_core", MELLANOX),
        ],
        used=8,
    ),
    Machine(
        "AWS p5.48xlarge",
        [
            *_of_class("0000:53:00.0 0000:64:00.0 0000:75:00.0 0000:86:00.0", CONTROLLER_3D, 0x2330, "nvidia"),
            *_of_class("0000:97:00.0 0000:a8:00.0 0000:b9:00.0 0000:ca:00.0", CONTROLLER_3D, 0x2330, "nvidia"),
            *_of_class("0000:ab:00.0 0000:ac:00.0 0000:ad:00.0 0000:ae:00.0", BRIDGE, 0x22A3, "nvidia-nvswitch"),
        ],
        used=8,
    ),
    Machine(  # a virtio display, and GPUs behind the bridges of the virtual machine
        "GKE a3-highgpu-8g",
        [
            *_of_class("0000:00:03.0/0000:04:00.0 0000:00:03.0/0000:05:00.0", CONTROLLER_3D, 0x2330, "nvidia"),
            *_of_class("0000:00:04.0/0000:0a:00.0 0000:00:04.0/0000:0b:00.0", CONTROLLER_3D, 0x2330, "nvidia"),
            *_of_class("0000:80:03.0/0000:84:00.0 0000:80:03.0/0000:85:00.0", CONTROLLER_3D, 0x2330, "nvidia"),
            *_of_class("0000:80:04.0/0000:8a:00.0 0000:80:04.0/0000:8b:00.0", CONTROLLER_3D, 0x2330, "nvidia"),
            *_of_class("0000:00:08.0", VGA, 0x1050, "virtio-pci", 0x1AF4),
        ],
        used=8,
    ),
    Machine(
        "GB200 compute tray",
        [
            *_of_class("0008:00:00.0/0008:01:00.0 0009:00:00.0/0009:01:00.0", CONTROLLER_3D, 0x2941, "nvidia"),
            *_of_class("0018:00:00.0/0018:01:00.0 0019:00:00.0/0019:01:00.0", CONTROLLER_3D, 0x2941, "nvidia"),
            *_of_class("0008:00:00.0 0009:00:00.0 0018:00:00.0 0019:00:00.0", PORT, 0x22B1, "pcieport"),
        ],
        used=4,
    ),
    Machine(
        "T4 next to a display card",
        [
            *_of_class("0000:3a:00.0/0000:3b:00.0", CONTROLLER_3D, 0x1EB8, "nvidia"),
            *_of_class("0000:00:1c.0/0000:01:00.0", VGA, 0x128B, ""),
            *_of_class("0000:00:1c.0/0000:01:00.1", AUDIO, 0x0E0F, "snd_hda_intel"),
            *_of_class("0000:03:00.0", VGA, 0x0536, "mgag200", 0x102B),
        ],
        used=1,
        unmanaged=1,
    ),
    Machine(
        "workstation with RTX 4090 and an old GT 710 at the console",
        [
            *_of_class("0000:01:00.0 0000:41:00.0", VGA, 0x2684, "nvidia"),
            *_of_class("0000:21:00.0", VGA, 0x128B, "nouveau"),
        ],
        used=2,
        unmanaged=1,
    ),
    Machine(
        "KubeVirt host",
        [
            *_of_class("0000:17:00.0 0000:31:00.0", CONTROLLER_3D, 0x20B7, "vfio-pci"),
            *_of_class("0000:b1:00.0 0000:ca:00.0", CONTROLLER_3D, 0x20B7, "nvidia"),
            *_of_class("0000:02:00.0", VGA, 0x128B, ""),
        ],
        used=2,
        unmanaged=3,
    ),
]


def scan(sys: Path) -> tuple[PciDevice, ...]:
    """NVIDIA's functions in a tree."""
    found = PciProbe(sys).read()
    assert not isinstance(found, Missing)
    return found


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name)
def test_machines_that_are_not_ours(tmp_path: Path, machine: Machine) -> None:
    """GPUs are distinguished from switches, audio and other vendors' displays, and by their driver."""
    for path, pci_class, device, vendor, driver in machine.functions:
        add_function(tmp_path, path, pci_class, device, vendor=vendor, driver=driver)
    found = scan(tmp_path)
    gpus = [device for device in found if device.is_gpu]
    unmanaged = unmanaged_gpus(NvidiaReadings(pci=found), Baseline())
    assert (len(gpus) - len(unmanaged), len(unmanaged)) == (machine.used, machine.unmanaged)
    listed = [gpu(index, pci=each.address) for index, each in enumerate(gpus) if each.address not in unmanaged]
    result = judged(subject.CHECK, node(*listed, pci=found))
    assert result.is_clean("gpu.missing", NODE)
    assert [finding.code for finding in result.findings] == ["gpu.unmanaged"] * bool(unmanaged)
    assert "gpu.missing" in {each.code for each in judged(subject.CHECK, node(*listed[1:], pci=found)).findings}


def test_ports_above_a_gpu(tmp_path: Path) -> None:
    """The ports of a switch and the root port are listed from the GPU upwards, each with its counters."""
    path = "0000:15:01.0/0000:16:00.0/0000:17:02.0/0000:18:00.0"
    for end, counts in ((1, {"fatal": 1}), (2, {"nonfatal": 2}), (3, {"correctable": 3})):
        port = "/".join(path.split("/")[:end])
        add_function(tmp_path, port, PORT, 0xC030, vendor=INTEL, driver="pcieport", aer=counts)
    add_function(tmp_path, path, CONTROLLER_3D, 0x2330, driver="nvidia", aer={})
    (found,) = scan(tmp_path)
    assert [port.address for port in found.ports] == ["0000:17:02.0", "0000:16:00.0", "0000:15:01.0"]
    assert [port.aer_correctable for port in found.ports] == [3, 0, 0]
    assert [port.aer_nonfatal for port in found.ports] == [0, 2, 0]
    assert [port.aer_fatal for port in found.ports] == [0, 0, 1]


def test_errors_reported_to_a_root_port(tmp_path: Path) -> None:
    """The root port of one GPU also counts errors whose source is not identified; one with a switch below does not."""
    direct, shared = "0000:15:01.0/0000:16:00.0", "0000:25:01.0/0000:26:00.0/0000:27:02.0/0000:28:00.0"
    for path in (direct, shared):
        add_function(tmp_path, path[:12], PORT, 0x352A, vendor=INTEL, driver="pcieport", aer={"nonfatal": 1})
        for kind, text in (("cor", "12\n"), ("nonfatal", "\xb2\n"), ("fatal", "3\n")):
            (tmp_path / "bus/pci/devices" / path[:12] / f"aer_rootport_total_err_{kind}").write_text(text)
        add_function(tmp_path, path, CONTROLLER_3D, 0x2330, driver="nvidia", aer={})
    roots = [each.ports[-1] for each in scan(tmp_path)]
    counts = [(port.aer_correctable, port.aer_nonfatal, port.aer_fatal) for port in roots]
    assert counts == [(12, 1, 3), (0, 1, 0)]


def test_driver_changes_while_we_look(tmp_path: Path) -> None:
    """The driver is read in every scan; virtual functions appear and go."""
    address = add_function(tmp_path, "0000:17:00.0", CONTROLLER_3D, 0x20B7, driver="nvidia")
    probe = PciProbe(tmp_path)
    for driver in ("nvidia", "vfio-pci", "", "nvidia"):
        bind(tmp_path, address, driver)
        found = probe.read()
        assert not isinstance(found, Missing)
        assert [(each.driver, each.is_gpu) for each in found] == [(driver, True)]
    add_function(tmp_path, "0000:17:00.4", CONTROLLER_3D, 0x20B7, physical=address)
    found = probe.read()
    assert not isinstance(found, Missing)
    assert [each.is_gpu for each in found] == [True, False]


# --- random machines --------------------------------------------------------------------------------------------------

DRIVERS = ["nvidia", "vfio-pci", "nouveau", "", "pci-stub", "nvidia-nvswitch", "\x1b[2J", "x" * 200]
FUNCTION = st.tuples(
    st.sampled_from(["0000:17:00.0", "0001:00:00.0", "0000:18:00.1", "10000:01:00.0", "c2cd:00:1f.7", "0000:02:00.0"]),
    st.sampled_from([VGA, CONTROLLER_3D, 0x038000, AUDIO, BRIDGE, PORT, 0]),
    st.sampled_from([0x2330, 0x128B, 0]),
    st.sampled_from([NVIDIA, INTEL]),
    st.sampled_from(DRIVERS),
    st.booleans(),  # a virtual function
)


@given(
    st.lists(FUNCTION, min_size=1, unique_by=lambda function: function[0]), st.sets(st.integers(0, 5)), st.booleans()
)
def test_never_healthy_without_a_gpu_of_the_driver(
    functions: list[tuple[str, int, int, int, str, bool]], absent: set[int], known: bool
) -> None:
    """Whatever is on the bus: a GPU that is bound to the driver, and that NVML does not list, is missing."""
    with TemporaryDirectory() as folder:
        for path, pci_class, device, vendor, driver, virtual in functions:
            physical = "0000:99:00.0" if virtual else ""
            add_function(Path(folder), path, pci_class, device, vendor=vendor, driver=driver, physical=physical)
        found = scan(Path(folder))
    bound = [each for each in found if each.is_gpu and each.driver == "nvidia"]
    listed = [gpu(index, pci=each.address) for index, each in enumerate(bound) if index not in absent]
    memory = remembering(gpus={f"GPU-{index}": each.address for index, each in enumerate(bound)}) if known else None
    outcome = judged(subject.CHECK, node(*listed, pci=found, device_nodes=())).of("gpu.missing", NODE)
    if len(listed) < len(bound):
        assert isinstance(outcome, Finding)
        assert outcome.severity is Severity.CRITICAL
    for looked in (node(*listed, pci=found), node(pci=found)):
        for finding in judged(subject.CHECK, looked, memory).findings:
            assert len(finding.message) < 2_000
            assert finding.message.isprintable()


JUNK = st.sampled_from(
    [b"", b"\xff\xfe", b"0x10de\n", b"0x030200\n", b"-1", b"nan", b"9" * 5000, b"0x", b"TOTAL_ERR_COR x\n"]
)


@given(
    st.dictionaries(
        st.sampled_from(["vendor", "device", "class", "aer_dev_correctable", "aer_dev_fatal", "physfn", "driver"]), JUNK
    ),
    st.sampled_from(["0000:17:00.0", "pci", "..17", "0000:17:00.0\x1b", os.fsdecode(b"\xff")]),
)
def test_random_files(files: dict[str, bytes], name: str) -> None:
    """Whatever the files of a function hold, the scan returns: each reading is a value or the reason for none."""
    with TemporaryDirectory() as folder:
        function = Path(folder, "bus/pci/devices", name)
        function.mkdir(parents=True)
        for file, content in files.items():
            (function / file).write_bytes(content)
        for device in scan(Path(folder)):
            assert isinstance(device.aer_correctable, int | Missing)
            assert isinstance(device.driver, str | Missing)
            assert PciAddress(device.address).isprintable()
