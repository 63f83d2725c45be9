"""NVML and the kernel log beside the tests: what every GPU was doing while it was tested."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterable

import msgspec

from gpuhealth.burnin.telemetry_window import Watched, warming
from gpuhealth.kernel_log.kmsg import KmsgError, KmsgReader
from gpuhealth.model.burnin_run import Span
from gpuhealth.model.kernel_event import KernelEvent
from gpuhealth.model.missing import Missing, Reading
from gpuhealth.model.pci import PciAddress, slot_of
from gpuhealth.monitors.nvidia.nvml.child import XidSeen
from gpuhealth.monitors.nvidia.nvml.process import NvmlProbe
from gpuhealth.monitors.nvidia.pci import PciProbe
from gpuhealth.monitors.nvidia.probe import driver_branch, event_of
from gpuhealth.monitors.nvidia.readings import GpuReadings, NvmlReadings, PciDevice
from gpuhealth.monitors.registry import kernel_log_parser
from gpuhealth.monitors.settings import Settings
from gpuhealth.runtime.files import boot_id

INTERVAL_SECONDS = 1.0
_STOPPED_SECONDS = 0.3
_QUANTITIES = {  # name in results -> field, and what one of its units is of ours
    "temperature_celsius": ("temperature_celsius", 1.0),
    "temperature_margin_celsius": ("temperature_margin_celsius", 1.0),
    "memory_temperature_celsius": ("memory_celsius", 1.0),
    "power_watts": ("power_milliwatts", 1e-3),
    "sm_clock_megahertz": ("sm_clock_mhz", 1.0),
    "memory_clock_megahertz": ("memory_clock_mhz", 1.0),
    "utilization_percent": ("utilization_percent", 1.0),
    "pcie_generation": ("pcie_generation", 1.0),
    "pcie_width": ("pcie_width", 1.0),
}


class Sample(msgspec.Struct, frozen=True):
    """One GPU at one time."""

    seconds: float  # on the monotonic clock
    values: dict[str, float]  # of _QUANTITIES, those that the GPU reports
    reasons: int | None  # nvmlClocksEventReasons


class _Window:
    """What is kept of one GPU between the two ends of a test."""

    def __init__(self, before: GpuReadings, pci_before: PciDevice | None) -> None:
        self.before = self.after = before
        self.pci_before = self.pci_after = pci_before
        self.reasons: dict[int, int] = {}
        self.values: dict[str, list[float]] = {}

    def add(self, gpu: GpuReadings, sample: Sample) -> None:
        self.after = gpu
        if sample.reasons is not None:
            self.reasons[sample.reasons] = self.reasons.get(sample.reasons, 0) + 1
        for name, value in sample.values.items():
            self.values.setdefault(name, []).append(value)

    def watched(self, events: Iterable[KernelEvent]) -> Watched:
        spans = {name: Span(min(each), sum(each) / len(each), max(each)) for name, each in self.values.items()}
        pci = slot_of(self.before.pci) if isinstance(self.before.pci, str) else None
        # An SXid names a switch, which all GPUs share.
        own = tuple(event for event in events if event.pci in (None, pci) or event.kind == "sxid")
        rise = warming(self.values.get("temperature_celsius", []))
        return Watched(self.before, self.after, self.pci_before, self.pci_after, self.reasons, spans, own, rise)


class Sampler:
    """Samples all GPUs of the node, for as long as its context lasts. A driver that hangs holds nothing up."""

    def __init__(self, settings: Settings, interval: float = INTERVAL_SECONDS) -> None:
        # A run leaves at most one process behind in a driver that hangs: no replacement is started beside it.
        self._probe = NvmlProbe(settings.nvml.model_copy(update={"max_extra_processes": 0}))
        self._first_patience = settings.nvml.critical_after  # the driver starts, on all GPUs
        self._patience = settings.nvml.warn_after
        self._interval = interval
        self._kmsg = KmsgReader(settings.roots.kmsg, boot_id(settings.roots.proc), None, 0.0)
        self._kernel = kernel_log_parser()
        self._events: list[KernelEvent] = []
        self._windows: dict[str, _Window] = {}
        self._reading = asyncio.Lock()
        self._pci = PciProbe(settings.roots.sys)
        self.device_ids: dict[str, int] = {}  # GPU -> PCI device id, which tells variants of a model apart
        self.nvml = NvmlReadings()
        self.kernel_log: Reading[str] = "kmsg"
        self.samples: dict[str, list[Sample]] = {}  # by component; all of the run, for its curves

    @contextlib.asynccontextmanager
    async def sampling(self) -> AsyncIterator[None]:
        """Reads once, then again and again."""
        try:
            await self._read_log()
            await self._read_nvml(self._first_patience)
            self._identify()
            task = asyncio.create_task(self._watch())
            try:
                yield
            finally:
                task.cancel()
        finally:
            self._kmsg.close()
            self._probe.close()

    @property
    def gpus(self) -> dict[str, GpuReadings]:
        """The GPUs by their uuid, as last read; none where there is no NVML."""
        return {gpu.id: gpu for gpu in self.nvml.gpus}

    @property
    def missing(self) -> str:
        """Why there is no telemetry; empty where there is."""
        return str(self.nvml.problem) if self.nvml.problem else "" if self.nvml.gpus else "NVML tells of no GPU"

    def latest(self, gpu: str) -> Sample | None:
        """The newest sample of a GPU."""
        taken = self.samples.get(gpu)
        return taken[-1] if taken else None

    def begin(self) -> None:
        """A test begins: its counters start from the last reading."""
        self._events.clear()
        functions = self._functions()
        self._windows = {name: _Window(gpu, functions.get(gpu.pci)) for name, gpu in self.gpus.items()}

    async def end(self, stopped: bool = False) -> dict[str, Watched]:
        """A test has ended: what was seen of each GPU since it began.

        Of a driver that does not answer any more nothing was seen, and nothing may pass. Where the test was stopped,
        what was seen until then counts: there is no time to wait.
        """
        answered = await self._read_nvml(_STOPPED_SECONDS if stopped else self._patience)
        await self._read_log()
        functions = self._functions()
        for window in self._windows.values():
            window.pci_after = functions.get(window.before.pci)
        if not (answered or stopped):
            return {}
        return {name: window.watched(self._events) for name, window in self._windows.items()}

    def _identify(self) -> None:
        version = self.nvml.driver_version
        if isinstance(version, str):
            self._kernel.driver_branch = driver_branch(version)
        functions = self._functions()
        self.device_ids = {
            name: functions[gpu.pci].device_id for name, gpu in self.gpus.items() if gpu.pci in functions
        }

    def _functions(self) -> dict[Reading[PciAddress], PciDevice]:
        """What sysfs shows on the PCI bus, by address; the GPUs of a virtual machine or container may not be there."""
        functions = self._pci.read()
        return {} if isinstance(functions, Missing) else {each.address: each for each in functions}

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._interval)
            await self._read_nvml(self._patience)
            await self._read_log()

    async def _read_nvml(self, wait_seconds: float) -> bool:
        """Whether a whole round has come."""
        try:
            async with asyncio.timeout(wait_seconds), self._reading:
                readings = await self._probe.read(wait_seconds)
                while not (readings.answered or readings.problem):  # it returns early when a deadline is crossed
                    readings = await self._probe.read(wait_seconds)
        except TimeoutError:
            return False  # late; what it says when it comes is taken then
        self.nvml = readings
        now = time.monotonic()
        for name, gpu in self.gpus.items():
            sample = _sample(gpu, now)
            self.samples.setdefault(name, []).append(sample)
            if name in self._windows:
                self._windows[name].add(gpu, sample)
        return readings.problem is None

    async def _read_log(self) -> None:
        if isinstance(self.kernel_log, Missing):
            return
        try:
            async for batch in self._kmsg.available():
                self._events += filter(None, map(self._kernel.feed, batch))
        except KmsgError as error:
            self.kernel_log = error.missing
            self._probe.on_xid = self._xid
            self._probe.want_events()

    def _xid(self, seen: XidSeen) -> None:
        self._events.append(event_of(seen))


def _sample(gpu: GpuReadings, now: float) -> Sample:
    values = {name: getattr(gpu, field) * unit for name, (field, unit) in _QUANTITIES.items() if _known(gpu, field)}
    reasons = gpu.clocks_event_reasons
    return Sample(now, values, None if isinstance(reasons, Missing) else reasons)


def _known(gpu: GpuReadings, field: str) -> bool:
    return not isinstance(getattr(gpu, field), Missing)
