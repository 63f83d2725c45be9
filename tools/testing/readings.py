"""Readings to judge: a healthy node, and what a test changes of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from gpuhealth.model.component import Component
from gpuhealth.model.context import Check
from gpuhealth.model.finding import Clean, Finding, NotChecked, Outcome, Severity
from gpuhealth.model.kernel_event import KernelEvent, KernelLogStatus
from gpuhealth.model.missing import NOT_SUPPORTED, UNREAD, Missing, MissingReason, Reading
from gpuhealth.model.pci import PciAddress
from gpuhealth.monitors.burnin_results.readings import BurninReadings
from gpuhealth.monitors.fleet_findings.readings import FleetReadings
from gpuhealth.monitors.judge import Judge, Memory
from gpuhealth.monitors.nvidia.baseline import Baseline
from gpuhealth.monitors.nvidia.readings import (
    Fabric,
    GpuReadings,
    KernelModule,
    NvidiaReadings,
    NvLink,
    NvmlReadings,
    PciDevice,
)
from gpuhealth.monitors.readings import NodeReadings
from gpuhealth.monitors.settings import Settings

START = datetime(2026, 1, 1, tzinfo=UTC)
LOST = Missing(MissingReason.GPU_LOST, "nvmlDeviceGetTemperature: GPU is lost (15)")
BROKEN = Missing(MissingReason.DRIVER_ERROR, "Unknown Error (999)")
LOADED = KernelModule("550.54.15", "550.54.15")
NOT_LOADED = KernelModule("", "")


def uuid(index: int) -> str:
    """The uuid of the GPU at an index."""
    return f"GPU-{index}"


FIRST = uuid(0)
"""The GPU that is meant where none is named."""


def pci(index: int) -> PciAddress:
    """The PCI address of the GPU at an index."""
    return PciAddress(f"0000:{index + 1:02x}:00.0")


def gpu(index: int = 0, **changes: Any) -> GpuReadings:
    """A healthy, idle GPU on which everything can be read."""
    links = tuple(NvLink(link, 1, errors={"crc_flit": 0, "replay": 0}, effective_ber=0.0) for link in range(4))
    healthy = GpuReadings(
        index=index,
        calls=40,
        uuid=uuid(index),
        pci=pci(index),
        name="NVIDIA H100 80GB HBM3",
        inforom_checksum=0x1234,
        temperature_celsius=35,
        temperature_margin_celsius=50,
        slowdown_celsius=NOT_SUPPORTED,
        gpu_max_celsius=NOT_SUPPORTED,
        memory_celsius=40,
        memory_max_celsius=95,
        sm_clock_mhz=345,
        utilization_percent=0,
        memory_total_bytes=80 << 30,
        memory_used_bytes=1 << 20,
        ecc_enabled=True,
        ecc_pending=True,
        ecc_errors={
            f"{kind}_{severity}_{place}": 0
            for kind in ("volatile", "aggregate")
            for severity in ("corrected", "uncorrected")
            for place in ("total", "dram", "sram")
        },
        sram_threshold_exceeded=False,
        remap_pending=False,
        remap_failed=False,
        remap_histogram={"max": 640, "high": 0, "partial": 0, "low": 0, "none": 0},
        retired_pages={"single_bit": NOT_SUPPORTED, "double_bit": NOT_SUPPORTED},
        retirement_pending=NOT_SUPPORTED,
        repair_pending={"channel": NOT_SUPPORTED, "tpc": NOT_SUPPORTED},
        unrepairable_memory=False,
        recovery_action=0,
        clocks_event_reasons=1,
        throttle_nanoseconds=dict.fromkeys(("sw_power_cap", "sw_thermal", "hw_thermal", "power_brake"), 0),
        pcie_generation=5,
        pcie_generation_max=5,
        pcie_width=16,
        pcie_width_max=16,
        pcie_replays=0,
        nvlinks=links,
        fabric=Fabric(state=3, status=0, health_mask=0xAA | 1 << 8, health_summary=1),
        compute_processes=(),
        graphics_processes=(),
        persistence_mode=True,
        mig_enabled=False,
    )
    return msgspec.structs.replace(healthy, **changes)


def gpus(count: int, *, changed: int | None = None, **changes: Any) -> tuple[GpuReadings, ...]:
    """Several healthy GPUs, one of them changed."""
    return tuple(gpu(index, **(changes if index == changed else {})) for index in range(count))


def nvml(*listed: GpuReadings, **changes: Any) -> NvmlReadings:
    """A complete answer of NVML."""
    return msgspec.structs.replace(NvmlReadings(answered=True, count=len(listed), gpus=listed), **changes)


def device(index: int, **changes: Any) -> PciDevice:
    """The function of a GPU in sysfs."""
    function = PciDevice(pci(index), 0x030200, 0x2330, 0, 0, 0, driver="nvidia")
    return msgspec.structs.replace(function, **changes)


SWITCH = PciDevice(PciAddress("0000:aa:00.0"), 0x068000, 0x22A3, NOT_SUPPORTED, NOT_SUPPORTED, NOT_SUPPORTED)


def node(*listed: GpuReadings, at: float = 0.0, **changes: Any) -> Round:
    """A node with these GPUs on all its trees, `at` seconds after the start."""
    healthy = NvidiaReadings(
        nvml=nvml(*listed),
        pci=tuple(device(each.index) for each in listed),
        device_nodes=tuple(each.index for each in listed),
        kernel_module=LOADED,
        live_pids=(),
        fabric_manager_running=True,
    )
    rest = {name: changes.pop(name) for name in ("kernel_log", "burnin", "fleet", "events") if name in changes}
    return Round(
        time=START + timedelta(seconds=at),
        nvidia=msgspec.structs.replace(healthy, **changes),
        **rest,
    )


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """One round of a node, as the monitors read it."""

    time: datetime
    nvidia: NvidiaReadings
    kernel_log: Reading[KernelLogStatus] = UNREAD
    burnin: Reading[BurninReadings] = BurninReadings()
    fleet: Reading[FleetReadings] = NOT_SUPPORTED
    events: tuple[KernelEvent, ...] = ()

    def readings(self) -> NodeReadings:
        """The readings of the whole node."""
        return NodeReadings(
            node="node-1",
            time=self.time,
            boot_id="boot-1",
            monitors={
                "nvidia": self.nvidia,
                "kernel_log": self.kernel_log,
                "burnin_results": self.burnin,
                "fleet_findings": self.fleet,
            },
        )


class Judged(dict[tuple[str, str], Outcome]):
    """Outcomes by code and id of the component, each of which may have but one."""

    def add(self, outcome: Outcome) -> None:
        """Adds an outcome; fails for a second one of its code and component."""
        key = (outcome.code, outcome.component.id)
        assert key not in self, f"two outcomes for {key}"
        self[key] = outcome

    def of(self, code: str, component: Component | str) -> Outcome | None:
        """The outcome for a component, or for the one with this id."""
        if isinstance(component, str):
            return self.get((code, component))
        outcome = self.get((code, component.id))
        assert outcome is None or outcome.component == component, outcome
        return outcome

    def finding(self, code: str, component: Component | str = FIRST) -> Finding:
        """The finding, which must be there."""
        outcome = self.of(code, component)
        assert isinstance(outcome, Finding), outcome
        return outcome

    def severity(self, code: str, component: Component | str = FIRST) -> Severity:
        """How bad it is."""
        return self.finding(code, component).severity

    def is_clean(self, code: str, component: Component | str = FIRST) -> bool:
        """Whether it was looked for and not there."""
        return isinstance(self.of(code, component), Clean)

    def why_not(self, code: str, component: Component | str = FIRST) -> MissingReason:
        """Why it could not be looked for."""
        outcome = self.of(code, component)
        assert isinstance(outcome, NotChecked), outcome
        return outcome.reason.reason

    def says_nothing(self, code: str, component: Component | str = FIRST) -> bool:
        """Whether there is no outcome at all."""
        return self.of(code, component) is None

    @property
    def findings(self) -> list[Finding]:
        """All findings among the outcomes."""
        return [outcome for outcome in self.values() if isinstance(outcome, Finding)]


def remembering(**baseline: Any) -> Memory:
    """The memory of a node whose GPUs have shown this so far: fields of the monitor's baseline."""
    return Memory(baselines={"nvidia": Baseline(**baseline)})


def judged(check: Check[Any], round_: Round, memory: Memory | None = None, **settings: Any) -> Judged:
    """The outcomes of one check of a round."""
    judge = Judge(Settings(**settings), memory or Memory(), boot_id="boot-1", time=round_.time)
    readings = round_.readings()
    for monitor in judge.monitors:
        judge.set_readings(monitor, readings.of(monitor), round_.time)
    (owner,) = (monitor for monitor in judge.monitors if any(own is check for own in monitor.checks))
    result = Judged()
    for outcome in check.run(judge.context(owner, round_.events)):
        result.add(outcome)
    return result


def outcomes(judge: Judge, round_: Round) -> list[Outcome]:
    """The outcomes of a whole round of every monitor, all of which were read at the same time."""
    readings = round_.readings()
    for monitor in judge.monitors:
        judge.set_readings(monitor, readings.of(monitor), round_.time)
    return [
        outcome
        for monitor in judge.monitors
        for outcome in judge.round(monitor, readings.of(monitor), round_.time, round_.events)
    ]
