"""Readings of NVIDIA GPUs, their driver and their PCI devices.

A field that could not be read holds a `Missing`. Names include the units; NVML's own units are kept. The NVML child
process sends these structures, and a capture stores them.
"""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta

import msgspec

from gpuhealth.model.component import Component, Kind
from gpuhealth.model.missing import NOT_SUPPORTED, UNREAD, Missing, MissingReason, Reading
from gpuhealth.model.pci import PciAddress
from gpuhealth.runtime.text import printable


class NvLink(msgspec.Struct, frozen=True, omit_defaults=True):
    """One NVLink of a GPU. Error counters count since the driver was loaded."""

    link: int
    state: Reading[int]  # 0 inactive, 1 active, 2 sleep, 3 active without traffic
    remote_pci: Reading[str] = NOT_SUPPORTED
    errors: dict[str, int] = {}  # counter name -> count; only counters of this link
    effective_ber: Reading[float] = NOT_SUPPORTED
    symbol_ber: Reading[float] = NOT_SUPPORTED


class Fabric(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """nvmlDeviceGetGpuFabricInfoV: state of the GPU in its NVLink domain."""

    state: int  # 0 not supported, 1 not started, 2 in progress, 3 completed
    status: int  # an nvmlReturn; 0 is success
    clique: int = 0
    cluster: str = ""
    health_mask: int | None = None  # None if the structure's version has no mask
    health_summary: int | None = None  # 1 healthy, 2 unhealthy, 3 limited capacity

    @property
    def is_of_node(self) -> bool:
        """Whether the fabric is within this node: one across nodes (NVL72) has a cluster uuid."""
        return self.state != 0 and not self.cluster.strip("0")


class MigDevice(msgspec.Struct, frozen=True, omit_defaults=True):
    """One MIG device of a GPU."""

    uuid: str
    gpu_instance: int
    compute_instance: int


class GpuProcess(msgspec.Struct, frozen=True, omit_defaults=True):
    """A process that holds the GPU."""

    pid: int
    used_memory_bytes: int | None = None


class GpuReadings(msgspec.Struct, frozen=True, omit_defaults=True):
    """One GPU as read from NVML. `error` is the error of the device as a whole: lost, reset required."""

    index: int
    uuid: Reading[str] = UNREAD
    pci: Reading[PciAddress] = UNREAD
    error: Missing | None = None
    calls: int = 0  # different NVML calls made in this round
    failed_calls: dict[str, Missing] = {}  # NVML call -> what was returned instead of a usable answer
    name: Reading[str] = UNREAD
    serial: Reading[str] = UNREAD
    vbios: Reading[str] = UNREAD
    minor: Reading[int] = UNREAD
    temperature_celsius: Reading[int] = UNREAD
    temperature_margin_celsius: Reading[int] = UNREAD  # to the slowdown point; positive is headroom
    slowdown_celsius: Reading[int] = UNREAD
    gpu_max_celsius: Reading[int] = UNREAD
    memory_celsius: Reading[int] = UNREAD
    memory_max_celsius: Reading[int] = UNREAD
    power_milliwatts: Reading[int] = UNREAD
    power_limit_milliwatts: Reading[int] = UNREAD
    sm_clock_mhz: Reading[int] = UNREAD
    memory_clock_mhz: Reading[int] = UNREAD
    max_sm_clock_mhz: Reading[int] = UNREAD
    application_sm_clock_mhz: Reading[int] = UNREAD
    utilization_percent: Reading[int] = UNREAD
    memory_total_bytes: Reading[int] = UNREAD
    memory_used_bytes: Reading[int] = UNREAD  # without memory reserved by the driver
    memory_bus_bits: Reading[int] = NOT_SUPPORTED
    ecc_enabled: Reading[bool] = UNREAD
    ecc_pending: Reading[bool] = UNREAD
    ecc_errors: dict[str, Reading[int]] = {}  # "volatile_uncorrected_dram" and so on
    sram_threshold_exceeded: Reading[bool] = UNREAD
    remap_correctable_rows: Reading[int] = UNREAD
    remap_uncorrectable_rows: Reading[int] = UNREAD
    remap_pending: Reading[bool] = UNREAD
    remap_failed: Reading[bool] = UNREAD
    remap_histogram: dict[str, Reading[int]] = {}  # banks by spare rows left: max, high, partial, low, none
    retired_pages: dict[str, Reading[int]] = {}  # by cause: single_bit, double_bit
    retirement_pending: Reading[bool] = UNREAD
    repair_pending: dict[str, Reading[bool]] = {}  # channel, tpc
    unrepairable_memory: Reading[bool] = UNREAD
    inforom_checksum: Reading[int] = UNREAD  # Missing with corrupted_inforom if it is wrong
    recovery_action: Reading[int] = UNREAD  # field 230
    clocks_event_reasons: Reading[int] = UNREAD  # bits
    throttle_nanoseconds: dict[str, Reading[int]] = {}  # sw_power_cap, sw_thermal, hw_thermal, power_brake
    pcie_generation: Reading[int] = UNREAD
    pcie_generation_max: Reading[int] = UNREAD  # supported by both GPU and slot
    pcie_width: Reading[int] = UNREAD
    pcie_width_max: Reading[int] = UNREAD
    pcie_replays: Reading[int] = UNREAD
    nvlinks: Reading[tuple[NvLink, ...]] = UNREAD
    fabric: Reading[Fabric] = UNREAD
    compute_processes: Reading[tuple[GpuProcess, ...]] = UNREAD
    graphics_processes: Reading[tuple[GpuProcess, ...]] = UNREAD
    virtualization_mode: Reading[int] = UNREAD  # 0 none, 1 passed to this VM, 2 vGPU of this VM, 3 and 4 vGPU host
    addressing_mode: Reading[int] = UNREAD  # 0 none, 1 HMM, 2 ATS: one address space with the CPU's memory
    persistence_mode: Reading[bool] = UNREAD
    compute_mode: Reading[int] = UNREAD
    mig_enabled: Reading[bool] = UNREAD
    mig_devices: tuple[MigDevice, ...] = ()

    @property
    def id(self) -> str:
        """The uuid; if it cannot be read the PCI address, and without that the index."""
        if isinstance(self.uuid, str):
            return self.uuid
        return self.pci if isinstance(self.pci, str) else f"gpu{self.index}"

    @property
    def component(self) -> Component:
        """The component of findings on this GPU."""
        return Component(Kind.GPU, self.id)


class NvmlLibrary(msgspec.Struct, frozen=True, omit_defaults=True):
    """A libnvidia-ml.so.1 of the node."""

    path: str  # as the agent sees it
    version: str = ""  # from its name, such as 550.54.15; empty if that has none

    def __str__(self) -> str:
        return printable(self.path)


class LibrarySearch(msgspec.Struct, frozen=True, omit_defaults=True):
    """The libraries of the node, for a process that is to load one. Without any, it loads what the loader finds."""

    found: tuple[NvmlLibrary, ...] = ()  # in the order in which they are tried
    skipped: tuple[str, ...] = ()  # files that cannot be used, each with the reason
    elsewhere: bool = False  # whether the node's root is mounted elsewhere, as in a container

    def fits(self, module_version: str) -> bool:
        """Whether one of the libraries is of the version of the kernel module."""
        return any(library.version == module_version for library in self.found)


class NvmlReadings(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """One round of NVML, as far as received before the deadline."""

    problem: Missing | None = None  # why NVML as a whole does not answer
    waiting_seconds: float = 0.0  # duration of the outstanding or the slowest finished round
    waiting_for: str = ""  # the call that has not returned
    answered: bool = False  # the round is complete
    driver_version: Reading[str] = UNREAD
    nvml_version: Reading[str] = UNREAD
    cuda_version: Reading[str] = UNREAD
    count: Reading[int] = UNREAD
    gpus: tuple[GpuReadings, ...] = ()
    library: str = ""  # path of the library that was loaded; empty if the loader found it, or none was
    libraries: LibrarySearch = LibrarySearch()  # what was found before the process was started

    @property
    def is_complete(self) -> bool:
        """Whether NVML works and has completed every call of the round."""
        return self.answered and self.problem is None

    @property
    def overdue_seconds(self) -> float:
        """Seconds for which NVML's answer has been outstanding; 0 once it has answered or failed."""
        return 0.0 if self.answered else self.waiting_seconds


NVIDIA_DRIVERS = ("nvidia", "nvidia-nvswitch")
UNINTENDED_DRIVERS = ("", "nouveau", "nova_core", "nova-core", "NovaCore", "nvidiafb", "rivafb")
"""Drivers of a function that NVIDIA's driver did not take: none, or one that binds by itself at boot. Any other one,
such as vfio-pci, pci-stub, xen-pciback or nvgrace_gpu_vfio_pci, was bound on purpose."""


class PciPort(msgspec.Struct, frozen=True, omit_defaults=True):
    """A PCI Express port between a GPU and the CPU: of a switch, or a root port. AER counters count since boot."""

    address: PciAddress
    aer_correctable: Reading[int] = UNREAD  # totals: errors that the port has detected, or that were reported to it
    aer_nonfatal: Reading[int] = UNREAD
    aer_fatal: Reading[int] = UNREAD


def with_own_names(nvml: NvmlReadings) -> NvmlReadings:
    """The readings with distinct GPUs: uuids and addresses that several of them report are missing.

    Under one name, the clean readings of one GPU would hide the faults of another.
    """
    shared = {
        name
        for names in (Counter(gpu.uuid for gpu in nvml.gpus), Counter(gpu.pci for gpu in nvml.gpus))
        for name, count in names.items()
        if count > 1 and isinstance(name, str)
    }
    if not shared:
        return nvml
    return msgspec.structs.replace(nvml, gpus=tuple(_without_names(gpu, shared) for gpu in nvml.gpus))


def _without_names(gpu: GpuReadings, shared: set[str]) -> GpuReadings:
    failed, changes = dict(gpu.failed_calls), {}
    for field, call in (("uuid", "nvmlDeviceGetUUID"), ("pci", "nvmlDeviceGetPciInfo")):
        name = getattr(gpu, field)
        if isinstance(name, str) and name in shared:
            changes[field] = failed[call] = Missing(MissingReason.ERROR, f"{call}: another GPU also reports {name}")
    return msgspec.structs.replace(gpu, failed_calls=failed, **changes) if changes else gpu


class PciDevice(msgspec.Struct, frozen=True, omit_defaults=True):
    """One NVIDIA function on the PCI bus, from sysfs. AER counters count since boot."""

    address: PciAddress
    device_class: int  # 0x030200 is a 3D controller, 0x030000 VGA, 0x068000 a bridge (NVSwitch)
    device_id: int
    aer_correctable: Reading[int] = UNREAD  # totals from the kernel
    aer_nonfatal: Reading[int] = UNREAD
    aer_fatal: Reading[int] = UNREAD
    driver: Reading[str] = UNREAD  # the kernel driver that is bound to it; empty if none is
    reserved_for: str = ""  # the only driver that may bind to it (driver_override); empty if any may
    physical_function: str = ""  # address of the function that this one is an SR-IOV virtual function of
    has_mediated_devices: bool = False  # whether it can be shared with virtual machines through mdev
    ports: tuple[PciPort, ...] = ()  # between the GPU and the CPU, the nearest first

    @property
    def is_gpu(self) -> bool:
        """Whether it is a GPU: a display controller (VGA, 3D, other), and not a virtual function of one.

        Bridges are NVSwitches, 0x0403 is a card's audio function. In a virtual machine the kernel shows a virtual
        function that was passed to it as an ordinary one.
        """
        return self.device_class >> 8 in (0x0300, 0x0302, 0x0380) and not self.physical_function

    @property
    def is_nvswitch(self) -> bool:
        """Whether it is an NVSwitch, which is a bridge of class 0x0680."""
        return self.device_class >> 8 == 0x0680

    @property
    def is_handed_over(self) -> bool:
        """Whether it is bound to another driver on purpose, or reserved for one: vfio-pci for a virtual machine."""
        driver = self.driver or self.reserved_for
        return isinstance(driver, str) and driver not in (*NVIDIA_DRIVERS, *UNINTENDED_DRIVERS)

    @property
    def is_passed_through(self) -> bool:
        """Whether that driver is one that gives the function to a virtual machine: NVML cannot use it."""
        driver = self.driver or self.reserved_for
        return (
            self.is_handed_over
            and isinstance(driver, str)
            and any(name in driver for name in ("vfio", "stub", "pciback"))
        )


class KernelModule(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """The NVIDIA kernel module of the node, as visible in every container."""

    version: str  # of the loaded module, such as 550.54.15; empty while none is loaded
    version_at_start: str  # when the agent's process started: the container's libraries date from then

    @property
    def is_loaded(self) -> bool:
        """Whether the module is loaded."""
        return self.version != ""

    @property
    def has_changed(self) -> bool:
        """Whether a different module is loaded than when the agent's process started."""
        return self.is_loaded and self.version != self.version_at_start


class Release(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """A request to close the driver, so that others can reset GPUs or replace it."""

    reasons: tuple[str, ...]  # signal, or those that a Node may have: quarantine.driver_work
    since: datetime
    known: bool = False  # whether the node's state was known when the release began
    until: datetime | None = None  # when the last request ended; the driver is not back since then

    def __str__(self) -> str:
        text = f"the driver is released ({', '.join(self.reasons)}) since {self.since:%Y-%m-%dT%H:%M:%SZ}"
        return text if self.until is None else f"{text}, and not back since {self.until:%H:%M:%SZ}"

    def shifted(self, seconds: float) -> Release:
        """A copy with its times shifted by so many seconds."""
        step = timedelta(seconds=seconds)
        until = None if self.until is None else self.until + step
        return msgspec.structs.replace(self, since=self.since + step, until=until)


class NvidiaReadings(msgspec.Struct, frozen=True, tag=True, omit_defaults=True, kw_only=True):
    """One round of all readings of the monitor of NVIDIA GPUs."""

    nvml: NvmlReadings = NvmlReadings(problem=UNREAD)
    pci: Reading[tuple[PciDevice, ...]] = UNREAD
    device_nodes: Reading[tuple[int, ...]] = UNREAD  # N of every /dev/nvidiaN
    kernel_module: Reading[KernelModule] = UNREAD
    live_pids: Reading[tuple[int, ...]] = UNREAD  # existing processes that hold a GPU
    fabric_manager_running: Reading[bool] = UNREAD
    subnet_manager_running: Reading[bool] = NOT_SUPPORTED  # nvlsm, for NVLink switches reached over InfiniBand
    switch_management: Reading[tuple[str, ...]] = NOT_SUPPORTED  # InfiniBand devices that lead to NVLink switches
    excluded_gpus: tuple[PciAddress, ...] = ()  # on the bus, excluded by the driver's options
    system_memory_bytes: Reading[int] = UNREAD
    vgpu_manager_running: Reading[bool] = NOT_SUPPORTED  # read where GPU memory is in use and no process holds it
    release: Release | None = None  # the active release of the driver

    @property
    def working_nvml(self) -> Reading[NvmlReadings]:
        """NVML's readings, or why NVML as a whole does not answer."""
        return self.nvml.problem or self.nvml

    @property
    def released(self) -> Missing | None:
        """Set while the driver is released on request: no finding is possible until it is opened again."""
        problem = self.nvml.problem
        return problem if problem and problem.reason is MissingReason.RELEASED else None
