"""What a node tells of itself in one round: plain data, one structure for each source.

A field that could not be read holds a `Missing`. The same structures are what the NVML child sends, what a capture
stores and what the checks judge. Units stand in the names; NVML's own units are kept where it has one.
"""

from __future__ import annotations

import enum
from datetime import datetime, timedelta
from typing import Annotated

import msgspec

from gpuhealth.model import KernelEvent, Missing, MissingReason, Reading

UNREAD = Missing(MissingReason.ERROR, "not read")
NOT_SUPPORTED = Missing(MissingReason.NOT_SUPPORTED)


class NvLink(msgspec.Struct, frozen=True, omit_defaults=True):
    """One NVLink of a GPU. Error counters count since the driver was loaded."""

    link: int
    state: Reading[int]  # 0 inactive, 1 active, 2 sleep, 3 active without traffic
    remote_pci: Reading[str] = NOT_SUPPORTED
    errors: dict[str, int] = {}  # counter name -> count; only those the link has
    effective_ber: Reading[float] = NOT_SUPPORTED
    symbol_ber: Reading[float] = NOT_SUPPORTED


class Fabric(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """nvmlDeviceGetGpuFabricInfoV: how the GPU stands in its NVLink domain."""

    state: int  # 0 not supported, 1 not started, 2 in progress, 3 completed
    status: int  # an nvmlReturn; 0 is success
    clique: int = 0
    cluster: str = ""
    health_mask: int | None = None  # None where the structure's version has no mask
    health_summary: int | None = None  # 1 healthy, 2 unhealthy, 3 limited capacity


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
    """One GPU as NVML answers for it. `error` is what the device as a whole answers: lost, reset required."""

    index: int
    uuid: Reading[str] = UNREAD
    pci: Reading[str] = UNREAD  # dddd:bb:dd.f, lower case
    error: Missing | None = None
    calls: int = 0  # different NVML calls made in this round
    failed_calls: dict[str, Missing] = {}  # NVML call -> what was seen instead of an answer that can be used
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
    memory_used_bytes: Reading[int] = UNREAD  # without what the driver reserves for itself
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
    inforom_checksum: Reading[int] = UNREAD  # Missing with corrupted_inforom where it does not hold
    recovery_action: Reading[int] = UNREAD  # field 230
    clocks_event_reasons: Reading[int] = UNREAD  # bits
    throttle_nanoseconds: dict[str, Reading[int]] = {}  # sw_power_cap, sw_thermal, hw_thermal, power_brake
    pcie_generation: Reading[int] = UNREAD
    pcie_generation_max: Reading[int] = UNREAD  # what GPU and slot can do together
    pcie_width: Reading[int] = UNREAD
    pcie_width_max: Reading[int] = UNREAD
    pcie_replays: Reading[int] = UNREAD
    nvlinks: Reading[tuple[NvLink, ...]] = UNREAD
    fabric: Reading[Fabric] = UNREAD
    compute_processes: Reading[tuple[GpuProcess, ...]] = UNREAD
    graphics_processes: Reading[tuple[GpuProcess, ...]] = UNREAD
    persistence_mode: Reading[bool] = UNREAD
    compute_mode: Reading[int] = UNREAD
    mig_enabled: Reading[bool] = UNREAD
    mig_devices: tuple[MigDevice, ...] = ()

    @property
    def component(self) -> str:
        """The name findings carry: the uuid, or what else is known while the GPU does not tell it."""
        if isinstance(self.uuid, str):
            return self.uuid
        return self.pci if isinstance(self.pci, str) else f"gpu{self.index}"


class NvmlReadings(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """One round of NVML, as complete as it came before the deadline."""

    problem: Missing | None = None  # why NVML as a whole does not answer
    waiting_seconds: float = 0.0  # how long the outstanding or the slowest finished round has taken
    waiting_for: str = ""  # the call that has not returned
    answered: bool = False  # the round is complete
    driver_version: Reading[str] = UNREAD
    nvml_version: Reading[str] = UNREAD
    cuda_version: Reading[str] = UNREAD
    count: Reading[int] = UNREAD
    gpus: tuple[GpuReadings, ...] = ()


class PciDevice(msgspec.Struct, frozen=True, omit_defaults=True):
    """One NVIDIA function on the PCI bus, from sysfs. AER counters count since boot."""

    address: str  # dddd:bb:dd.f, lower case
    device_class: int  # 0x030200 is a 3D controller, 0x030000 VGA, 0x068000 a bridge (NVSwitch)
    device_id: int
    aer_correctable: Reading[int] = UNREAD  # the kernel's own totals
    aer_nonfatal: Reading[int] = UNREAD
    aer_fatal: Reading[int] = UNREAD

    @property
    def is_gpu(self) -> bool:
        """Display controllers are GPUs; bridges are NVSwitches, 0x0403 is a card's sound."""
        return self.device_class >> 8 in (0x0300, 0x0302)

    @property
    def is_nvswitch(self) -> bool:
        """NVSwitches show as bridges of class 0x0680."""
        return self.device_class >> 8 == 0x0680


class KernelModule(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """The NVIDIA kernel module of the node, as the kernel shows it to every container."""

    version: str  # of the loaded module, such as 550.54.15; empty while none is loaded
    version_at_start: str  # when the agent's process started: the container's libraries are of that time

    @property
    def is_loaded(self) -> bool:
        """Whether the module is loaded."""
        return self.version != ""

    @property
    def has_changed(self) -> bool:
        """Whether another module is loaded than when the agent's process started."""
        return self.is_loaded and self.version != self.version_at_start


class KernelLog(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """How well the kernel log is being read."""

    source: str  # "kmsg", or "nvml" where only XID events reach us
    records: int = 0  # read since the reader started
    lost_records: int = 0  # overwritten before we could read them, since the last round
    lag_seconds: float = 0.0


ZonedTime = Annotated[datetime, msgspec.Meta(tz=True)]
"""A time with its zone: without one it cannot be compared, and is refused when it is read from a file."""


class TestStatus(enum.StrEnum):
    """How one burn-in test of one GPU ended."""

    __test__ = False  # no test of pytest's

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"  # this device has no such thing, or the run does not ask for it; the message says which
    STOPPED = "stopped"  # told to stop before it could say anything

    @property
    def says_something(self) -> bool:
        """Whether anything follows from it for the GPU."""
        return self in (TestStatus.PASSED, TestStatus.FAILED)


class Span(msgspec.Struct, frozen=True):
    """What a quantity was during a test."""

    min: float
    mean: float
    max: float


class Miscompare(msgspec.Struct, frozen=True, omit_defaults=True):
    """A value that is not what it must be, and how it behaved when the same was done again."""

    what: str  # of what: "bf16 1024x1024x1024 seed 7", "pattern 0xaa"
    index: int  # of the first wrong element, or its byte offset in memory
    wrong: int  # how many elements were
    xor: str = ""  # the bits that differ, in hex; empty where the right value is not known
    got: str = ""  # bits in hex
    expected: str = ""
    kind: str = ""  # transient, repeatable, data_dependent, hot_only
    repeats: str = ""  # how often it came back: "3 of 5 hot, 0 of 5 after rest"
    temperature_celsius: float | None = None


class TestResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one burn-in test says of one GPU."""

    __test__ = False

    test: str  # exact, repeat, memory, bandwidth, p2p, collectives, soak
    gpu: str  # uuid; the name of the device where it is no GPU
    status: TestStatus
    message: str  # one sentence
    started: ZonedTime
    seconds: float
    figures: dict[str, float] = {}  # units in the names: bf16_tflops, h2d_gigabytes_per_second
    miscompares: tuple[Miscompare, ...] = ()
    digests: dict[str, str] = {}  # of repeated products: what was computed -> SHA-256 of the result
    telemetry: dict[str, Span] = {}  # temperature_celsius, power_watts, sm_clock_megahertz …
    evidence: str = ""  # of a crash or a hang: signal, the end of its standard error, the stack


class BurninRun(msgspec.Struct, frozen=True, omit_defaults=True):
    """One run of active tests on one node, as `gpuhealth burnin --json` prints it and the agent reads it."""

    node: str
    boot_id: str
    level: str  # quick, standard, long
    reason: str  # manual, preflight, periodic, return (before a node goes back into service)
    started: ZonedTime
    ended: ZonedTime
    status: TestStatus  # failed when any test failed, stopped when it was not completed, else passed
    results: tuple[TestResult, ...]
    software: dict[str, str] = {}  # torch, cuda, driver: digests are comparable within the same only
    models: dict[str, str] = {}  # gpu -> model as NVML names it
    notes: tuple[str, ...] = ()  # what limits the run's word: no telemetry, faults put in on purpose

    def gpu_status(self, gpu: str) -> TestStatus:
        """How the run ended for one of its GPUs: another one's failure is not this one's."""
        ended = {result.status for result in self.results if result.gpu == gpu}
        if TestStatus.FAILED in ended:
            return TestStatus.FAILED
        if self.status is TestStatus.STOPPED or TestStatus.STOPPED in ended:
            return TestStatus.STOPPED
        return TestStatus.PASSED if TestStatus.PASSED in ended else TestStatus.SKIPPED

    def passed_on(self, gpu: str) -> bool:
        """Whether it was completed on the GPU, and nothing was wrong."""
        return self.gpu_status(gpu) is TestStatus.PASSED


class BurninReadings(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """The results of active tests that lie on the node: of each test and GPU the last one that says something is
    whole, of earlier ones only how they ended."""

    runs: tuple[BurninRun, ...] = ()  # oldest first
    unreadable: str = ""  # results that could not be read, and why


class Release(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """The driver was let go of on request, so that others can work on it."""

    reasons: tuple[str, ...]  # annotation, signal, driver_upgrade
    since: datetime
    known: bool = False  # whether the node's state was, when it began
    until: datetime | None = None  # when the last request was taken back; the driver is not back since then

    def __str__(self) -> str:
        text = f"the driver is released ({', '.join(self.reasons)}) since {self.since:%Y-%m-%dT%H:%M:%SZ}"
        return text if self.until is None else f"{text}, and not back since {self.until:%H:%M:%SZ}"

    def shifted(self, seconds: float) -> Release:
        """The same with its times moved."""
        step = timedelta(seconds=seconds)
        return msgspec.structs.replace(self, since=self.since + step, until=self.until and self.until + step)


class FleetFinding(msgspec.Struct, frozen=True):
    """What the controller says of one GPU of the node, from comparing it with all others of its kind."""

    code: str
    gpu: str
    message: str


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
