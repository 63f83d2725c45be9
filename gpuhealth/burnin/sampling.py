"""Samples NVML and the kernel log while the tests run: what each GPU was doing, and which errors were reported."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterable

import msgspec

from gpuhealth.burnin.telemetry_window import TelemetryWindow, temperature_rise
from gpuhealth.kernel_log.kmsg import KmsgError, KmsgReader
from gpuhealth.model.burnin_run import Span
from gpuhealth.model.kernel_event import KernelEvent
from gpuhealth.model.missing import Missing, Reading
from gpuhealth.model.pci import PciAddress, slot_of
from gpuhealth.monitors.nvidia.nvml.child import XidSeen
from gpuhealth.monitors.nvidia.nvml.full_round import read_full_round
from gpuhealth.monitors.nvidia.nvml.library import LibraryFinder
from gpuhealth.monitors.nvidia.nvml.process import NvmlProbe
from gpuhealth.monitors.nvidia.pci import PciProbe
from gpuhealth.monitors.nvidia.probe import driver_branch, event_of
from gpuhealth.monitors.nvidia.readings import GpuReadings, NvmlReadings, PciDevice
from gpuhealth.monitors.registry import kernel_log_parser
from gpuhealth.monitors.settings import Settings
from gpuhealth.runtime.files import boot_id

INTERVAL_SECONDS = 1.0
_STOPPED_SECONDS = 0.3
_QUANTITIES = {  # name in results -> field of GpuReadings, and factor to the unit in the name
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
    """Telemetry of one GPU at one moment."""

    seconds: float  # on the monotonic clock
    values: dict[str, float]  # those of _QUANTITIES that the GPU reports
    reasons: int | None  # mask of nvmlClocksEventReasons; None where it could not be read


class _WindowRecorder:
    """Collects the telemetry of one GPU during one test."""

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

    def window(self, events: Iterable[KernelEvent]) -> TelemetryWindow:
        pci = slot_of(self.before.pci) if isinstance(self.before.pci, str) else None
        return TelemetryWindow(
            before=self.before,
            after=self.after,
            pci_before=self.pci_before,
            pci_after=self.pci_after,
            clocks_event_reasons=self.reasons,
            spans={
                name: Span(min(values), sum(values) / len(values), max(values)) for name, values in self.values.items()
            },
            # An SXid names a switch, which all GPUs share.
            events=tuple(event for event in events if event.pci in (None, pci) or event.kind == "sxid"),
            temperature_rise_celsius=temperature_rise(self.values.get("temperature_celsius", [])),
        )


class Sampler:
    """Samples all GPUs of the node between the two ends of `sampling()`. A driver that hangs does not block it."""

    def __init__(self, settings: Settings, interval: float = INTERVAL_SECONDS) -> None:
        # A run leaves at most one process behind in a driver that hangs: no replacement is started.
        nvml = settings.nvml.model_copy(update={"max_extra_processes": 0})
        self._probe = NvmlProbe(nvml, library=LibraryFinder(settings))
        self._first_timeout = settings.nvml.critical_after  # the driver may have to initialize all GPUs
        self._timeout = settings.nvml.warn_after
        self._interval = interval
        self._kmsg = KmsgReader(
            settings.roots.kmsg,
            boot_id(settings.roots.proc),
            None,
            0.0,
            accept_user_records=settings.kernel_log.accept_user_records,
        )
        self._kernel = kernel_log_parser()
        self._events: list[KernelEvent] = []
        self._recorders: dict[str, _WindowRecorder] = {}
        self._nvml_lock = asyncio.Lock()
        self._pci = PciProbe(settings.roots.sys)
        self.device_ids: dict[str, int] = {}  # GPU -> PCI device id, which distinguishes variants of a model
        self.nvml = NvmlReadings()
        self.kernel_log: Reading[str] = "kmsg"
        self.samples: dict[str, list[Sample]] = {}  # by GPU; of the whole run, for its curves

    @contextlib.asynccontextmanager
    async def sampling(self) -> AsyncIterator[None]:
        """Take a first reading, then sample in the background until the context ends."""
        try:
            await self._read_log()
            await self._read_nvml(self._first_timeout)
            self._identify()
            task = asyncio.create_task(self._sample_periodically())
            try:
                yield
            finally:
                task.cancel()
        finally:
            self._kmsg.close()
            self._probe.close()

    @property
    def gpus(self) -> dict[str, GpuReadings]:
        """The latest readings of each GPU by uuid; empty without NVML."""
        return {gpu.id: gpu for gpu in self.nvml.gpus}

    @property
    def missing(self) -> str:
        """Why there is no telemetry; empty where there is some."""
        if self.nvml.problem:
            return str(self.nvml.problem)
        return "" if self.nvml.gpus else "NVML lists no GPU"

    def latest(self, gpu: str) -> Sample | None:
        """The newest sample of a GPU, or None."""
        samples = self.samples.get(gpu)
        return samples[-1] if samples else None

    def begin_test(self) -> None:
        """Start a new window; its counters count from the latest reading."""
        self._events.clear()
        functions = self._functions()
        self._recorders = {name: _WindowRecorder(gpu, functions.get(gpu.pci)) for name, gpu in self.gpus.items()}

    async def end_test(self, stopped: bool = False) -> dict[str, TelemetryWindow]:
        """The window of each GPU since begin_test(), with a last reading.

        Empty where NVML no longer answers: then no test may pass. After a stop there is no time to wait for that
        reading, and the window ends with the latest sample.
        """
        answered = await self._read_nvml(_STOPPED_SECONDS if stopped else self._timeout)
        await self._read_log()
        functions = self._functions()
        for recorder in self._recorders.values():
            recorder.pci_after = functions.get(recorder.before.pci)
        if not (answered or stopped):
            return {}
        return {name: recorder.window(self._events) for name, recorder in self._recorders.items()}

    def _identify(self) -> None:
        version = self.nvml.driver_version
        if isinstance(version, str):
            self._kernel.driver_branch = driver_branch(version)
        functions = self._functions()
        self.device_ids = {
            name: functions[gpu.pci].device_id for name, gpu in self.gpus.items() if gpu.pci in functions
        }

    def _functions(self) -> dict[Reading[PciAddress], PciDevice]:
        """PCI functions in sysfs by address; a virtual machine or container may not show those of its GPUs."""
        functions = self._pci.read()
        return {} if isinstance(functions, Missing) else {function.address: function for function in functions}

    async def _sample_periodically(self) -> None:
        while True:
            await asyncio.sleep(self._interval)
            await self._read_nvml(self._timeout)
            await self._read_log()

    async def _read_nvml(self, timeout_seconds: float) -> bool:
        """Take a sample of all GPUs; whether NVML answered in time. A late answer is taken by the next call."""
        try:
            async with asyncio.timeout(timeout_seconds), self._nvml_lock:
                readings = await read_full_round(self._probe.read, timeout_seconds)
        except TimeoutError:
            return False
        if not (readings.answered or readings.problem):
            return False
        self.nvml = readings
        now = time.monotonic()
        for name, gpu in self.gpus.items():
            sample = _sample(gpu, now)
            self.samples.setdefault(name, []).append(sample)
            if name in self._recorders:
                self._recorders[name].add(gpu, sample)
        return readings.problem is None

    async def _read_log(self) -> None:
        if isinstance(self.kernel_log, Missing):
            return
        try:
            async for batch in self._kmsg.available():
                self._events += filter(None, map(self._kernel.feed, batch))
        except KmsgError as error:
            self.kernel_log = error.missing
            self._probe.on_xid = self._on_xid
            self._probe.want_events()

    def _on_xid(self, seen: XidSeen) -> None:
        self._events.append(event_of(seen))


def _sample(gpu: GpuReadings, now: float) -> Sample:
    values = {name: getattr(gpu, field) * unit for name, (field, unit) in _QUANTITIES.items() if _known(gpu, field)}
    reasons = gpu.clocks_event_reasons
    return Sample(now, values, None if isinstance(reasons, Missing) else reasons)


def _known(gpu: GpuReadings, field: str) -> bool:
    return not isinstance(getattr(gpu, field), Missing)
