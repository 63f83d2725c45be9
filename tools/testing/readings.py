"""Readings to judge: a healthy node, and what a test changes of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from gpuhealth.model.code import Check
from gpuhealth.model.finding import Clean, Finding, NotChecked, Outcome, Severity
from gpuhealth.model.history import History
from gpuhealth.model.missing import NOT_SUPPORTED, Missing, MissingReason
from gpuhealth.monitors.burnin_results.readings import BurninReadings
from gpuhealth.monitors.nvidia.readings import Fabric, GpuReadings, KernelModule, NvLink, NvmlReadings, PciDevice
from gpuhealth.monitors.readings import NodeReadings
from gpuhealth.runtime.settings import Settings

START = datetime(2026, 1, 1, tzinfo=UTC)
LOST = Missing(MissingReason.GPU_LOST, "nvmlDeviceGetTemperature: GPU is lost (15)")
BROKEN = Missing(MissingReason.DRIVER_ERROR, "Unknown Error (999)")
LOADED = KernelModule("550.54.15", "550.54.15")
NOT_LOADED = KernelModule("", "")


def uuid(index: int) -> str:
    """The uuid of the GPU at an index."""
    return f"GPU-{index}"


def pci(index: int) -> str:
    """The PCI address of the GPU at an index."""
    return f"0000:{index + 1:02x}:00.0"


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
    function = PciDevice(pci(index), 0x030200, 0x2330, aer_correctable=0, aer_nonfatal=0, aer_fatal=0)
    return msgspec.structs.replace(function, **changes)


SWITCH = PciDevice("0000:aa:00.0", 0x068000, 0x22A3, NOT_SUPPORTED, NOT_SUPPORTED, NOT_SUPPORTED)


def node(*listed: GpuReadings, at: float = 0.0, **changes: Any) -> NodeReadings:
    """A node with these GPUs on all its trees, `at` seconds after the start."""
    healthy = NodeReadings(
        node="node-1",
        time=START + timedelta(seconds=at),
        boot_id="boot-1",
        nvml=nvml(*listed),
        pci=tuple(device(each.index) for each in listed),
        device_nodes=tuple(each.index for each in listed),
        kernel_module=LOADED,
        live_pids=(),
        fabric_manager_running=True,
        burnin=BurninReadings(),
    )
    return msgspec.structs.replace(healthy, **changes)


class Judged(dict[tuple[str, str], Outcome]):
    """Outcomes by code and component, each of which may have but one."""

    def add(self, outcome: Outcome) -> None:
        """Adds an outcome; fails for a second one of its code and component."""
        key = (outcome.code, outcome.component)
        assert key not in self, f"two outcomes for {key}"
        self[key] = outcome

    def finding(self, code: str, component: str = uuid(0)) -> Finding:
        """The finding, which must be there."""
        outcome = self.get((code, component))
        assert isinstance(outcome, Finding), outcome
        return outcome

    def severity(self, code: str, component: str = uuid(0)) -> Severity:
        """How bad it is."""
        return self.finding(code, component).severity

    def is_clean(self, code: str, component: str = uuid(0)) -> bool:
        """Whether it was looked for and not there."""
        return isinstance(self.get((code, component)), Clean)

    def why_not(self, code: str, component: str = uuid(0)) -> MissingReason:
        """Why it could not be looked for."""
        outcome = self.get((code, component))
        assert isinstance(outcome, NotChecked), outcome
        return outcome.reason.reason

    def says_nothing(self, code: str, component: str = uuid(0)) -> bool:
        """Whether there is no outcome at all."""
        return (code, component) not in self

    @property
    def findings(self) -> list[Finding]:
        """All findings among the outcomes."""
        return [outcome for outcome in self.values() if isinstance(outcome, Finding)]


def judged(check: Check, readings: NodeReadings, history: History | None = None, **settings: Any) -> Judged:
    """What a check says of a round."""
    result = Judged()
    for outcome in check.run(readings, Settings(**settings), history or History()):
        result.add(outcome)
    return result
