"""All NVML readings of one GPU. Runs in the child process only: any of these calls may never return.

Every call goes through `Gpu.ask`, which shows the call to the parent before it is made and turns every return code,
exception and answer of another type into a `Missing` for that one reading.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from ctypes import byref
from typing import Any

import msgspec
import pynvml

from gpuhealth.model.missing import NOT_SUPPORTED, UNREAD, Missing, MissingReason, Reading
from gpuhealth.monitors.nvidia.nvml import value as nvml_value
from gpuhealth.monitors.nvidia.nvml.value import flag, missing, pci_address, text, unexpected, whole
from gpuhealth.monitors.nvidia.readings import Fabric, GpuProcess, GpuReadings, MigDevice, NvLink

Progress = Callable[[str], None]

_ECC = [
    (f"{kind}_{severity}_{place}", error_type, counter, location)
    for kind, counter in (("volatile", pynvml.NVML_VOLATILE_ECC), ("aggregate", pynvml.NVML_AGGREGATE_ECC))
    for severity, error_type in (
        ("corrected", pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED),
        ("uncorrected", pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED),
    )
    for place, location in (
        ("total", None),
        ("dram", pynvml.NVML_MEMORY_LOCATION_DRAM),
        ("sram", pynvml.NVML_MEMORY_LOCATION_SRAM),
    )
]

_THROTTLE_FIELDS = {
    "sw_power_cap": pynvml.NVML_FI_DEV_PERF_POLICY_POWER,
    "sw_thermal": pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN,
    "hw_thermal": pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN,
    "power_brake": pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN,
}
_FIELDS = [
    pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION,
    pynvml.NVML_FI_DEV_MEMORY_TEMP,
    *_THROTTLE_FIELDS.values(),
]

# Up to NVLink 4 (Hopper): one call a counter and link.
_LINK_COUNTERS = {
    "replay": pynvml.NVML_NVLINK_ERROR_DL_REPLAY,
    "recovery": pynvml.NVML_NVLINK_ERROR_DL_RECOVERY,
    "crc_flit": pynvml.NVML_NVLINK_ERROR_DL_CRC_FLIT,
    "crc_data": pynvml.NVML_NVLINK_ERROR_DL_CRC_DATA,
}
# NVLink 5 (Blackwell): fields with the link as their scope.
_LINK5_COUNTERS = {
    "malformed_packets": pynvml.NVML_FI_DEV_NVLINK_COUNT_MALFORMED_PACKET_ERRORS,
    "buffer_overruns": pynvml.NVML_FI_DEV_NVLINK_COUNT_BUFFER_OVERRUN_ERRORS,
    "receive_errors": pynvml.NVML_FI_DEV_NVLINK_COUNT_RCV_ERRORS,
    "remote_errors": pynvml.NVML_FI_DEV_NVLINK_COUNT_RCV_REMOTE_ERRORS,
    "local_integrity_errors": pynvml.NVML_FI_DEV_NVLINK_COUNT_LOCAL_LINK_INTEGRITY_ERRORS,
    "recovery": pynvml.NVML_FI_DEV_NVLINK_COUNT_LINK_RECOVERY_EVENTS,
    "recovery_failed": pynvml.NVML_FI_DEV_NVLINK_COUNT_LINK_RECOVERY_FAILED_EVENTS,
}
_MOST_MIG_DEVICES = 64  # seven today

# Reasons of calls without a usable answer: unspecified driver errors, and answers only a developer can explain.
_FAILURES = (MissingReason.DRIVER_ERROR, MissingReason.ERROR, MissingReason.CORRUPTED_INFOROM)

_EFFECTIVE_BER = pynvml.NVML_FI_DEV_NVLINK_COUNT_EFFECTIVE_BER
_SYMBOL_BER = pynvml.NVML_FI_DEV_NVLINK_COUNT_SYMBOL_BER


class DeviceGoneError(Exception):
    """The GPU answers every call with "lost", so further calls are pointless."""


class Gpu:
    """One GPU as enumerated by NVML."""

    def __init__(self, index: int, progress: Progress, known: dict[tuple[Any, ...], Any] | None = None) -> None:
        self.index = index
        self._progress = progress
        self._handle: Any = None
        self.known: dict[tuple[Any, ...], Any] = {} if known is None else known
        self._nvlink5: bool | None = None
        self._error: Missing | None = None
        self._called: set[str] = set()
        self._failed: dict[str, Missing] = {}

    def ask(self, name: str, *arguments: Any, convert: Callable[[Any], Any] = whole, absent: int | None = None) -> Any:
        """The value of one NVML call converted by `convert`, or Missing. Raises DeviceGoneError when the GPU is lost.

        `absent` is a return code that means "does not exist" for this call.
        """
        if self._handle is None:
            self._open()
        call = self._function(name)
        if isinstance(call, Missing):
            return call
        return self._guarded(name, lambda: convert(call(self._handle, *arguments)), absent)

    def _function(self, name: str) -> Any:
        self._called.add(name)
        self._progress(f"{name} on GPU {self.index}")
        absent = Missing(MissingReason.NOT_SUPPORTED, f"this version of nvidia-ml-py has no {name}")
        return getattr(pynvml, name, absent)

    def _guarded(self, name: str, read: Callable[[], Any], absent: int | None = None) -> Any:
        """The result of `read`; Missing for every kind of failure."""
        try:
            return read()
        except pynvml.NVMLError as error:
            return NOT_SUPPORTED if error.value == absent else self._refused(missing(error, name), name)
        except Exception as error:  # noqa: BLE001 - bindings raise anything: this costs one reading, not the round
            return self._refused(unexpected(error, name), name)

    def _part(self, name: str, answer: Any, read: Callable[[Any], Any], absent: int | None = None) -> Any:
        """One value from an answer with several."""
        return answer if isinstance(answer, Missing) else self._guarded(name, lambda: read(answer), absent)

    def _refused(self, reason: Missing, name: str) -> Missing:
        if reason.reason is MissingReason.GPU_LOST:
            self._error = reason
            raise DeviceGoneError
        if reason.reason is MissingReason.RESET_REQUIRED:
            self._error = reason
        elif reason.reason in _FAILURES:
            self._failed[name] = reason
        return reason

    def _once(self, name: str, *arguments: Any, convert: Callable[[Any], Any] = whole) -> Any:
        """Like `ask`, for fixed properties: a lost GPU still has its name."""
        key = (name, *arguments)
        if key not in self.known:
            value = self.ask(name, *arguments, convert=convert)
            if isinstance(value, Missing) and value.reason is not MissingReason.NOT_SUPPORTED:
                return value
            self.known[key] = value
        return self.known[key]

    def read(self) -> GpuReadings:
        """All readings; for a lost GPU, its fixed properties."""
        self._forget()
        values: dict[str, Any] = {}
        try:
            for part in (self._identity, self._state, self._memory_health, self._throttling, self._links, self._use):
                values |= part()
        except DeviceGoneError:
            pass  # see self._error; the other readings are missing for the same reason
        if self._error is not None:
            values = dict.fromkeys(_PLAIN_READINGS, self._error) | values
        return GpuReadings(
            index=self.index, error=self._error, calls=len(self._called), failed_calls=self._failed, **values
        )

    def _forget(self) -> None:
        self._error, self._called, self._failed = None, set(), {}

    def _open(self) -> None:
        name = "nvmlDeviceGetHandleByIndex"
        call = self._function(name)
        handle = call if isinstance(call, Missing) else self._guarded(name, lambda: call(self.index))
        if isinstance(handle, Missing):
            # Without a handle no call is possible. "Not supported" would mean that there is nothing to check.
            unsupported = handle.reason is MissingReason.NOT_SUPPORTED
            self._error = Missing(MissingReason.ERROR, f"{name}: {handle}") if unsupported else handle
            raise DeviceGoneError
        self._handle = handle

    def _identity(self) -> dict[str, Any]:
        threshold = "nvmlDeviceGetTemperatureThreshold"
        return {
            "uuid": self._once("nvmlDeviceGetUUID", convert=nvml_value.name_of_device),
            "pci": self._once("nvmlDeviceGetPciInfo", convert=pci_address),
            "name": self._once("nvmlDeviceGetName", convert=text),
            "serial": self._once("nvmlDeviceGetSerial", convert=text),
            "vbios": self._once("nvmlDeviceGetVbiosVersion", convert=text),
            "minor": self._once("nvmlDeviceGetMinorNumber"),
            "virtualization_mode": self._once("nvmlDeviceGetVirtualizationMode"),
            "addressing_mode": self._once("nvmlDeviceGetAddressingMode"),
            "slowdown_celsius": self._once(threshold, pynvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN),
            "gpu_max_celsius": self._once(threshold, pynvml.NVML_TEMPERATURE_THRESHOLD_GPU_MAX),
            "memory_max_celsius": self._once(threshold, pynvml.NVML_TEMPERATURE_THRESHOLD_MEM_MAX),
            "max_sm_clock_mhz": self._once("nvmlDeviceGetMaxClockInfo", pynvml.NVML_CLOCK_SM),
            "memory_bus_bits": self._once("nvmlDeviceGetMemoryBusWidth"),
            "pcie_width_max": self._once("nvmlDeviceGetMaxPcieLinkWidth"),
            "pcie_generation_max": self._once("nvmlDeviceGetMaxPcieLinkGeneration"),
        }

    def _state(self) -> dict[str, Any]:
        usage = "nvmlDeviceGetMemoryInfo"
        memory = self.ask(usage, pynvml.nvmlMemory_v2, convert=_as_it_is)  # v1 counts the driver's own as used
        if isinstance(memory, Missing) and memory.reason is MissingReason.NOT_SUPPORTED:
            memory = self.ask(usage, convert=_as_it_is)
        mode = "nvmlDeviceGetEccMode"
        ecc = self.ask(mode, convert=_as_it_is)
        return {
            "temperature_celsius": self.ask("nvmlDeviceGetTemperature", pynvml.NVML_TEMPERATURE_GPU),
            "temperature_margin_celsius": self.ask("nvmlDeviceGetMarginTemperature"),
            "power_milliwatts": self.ask("nvmlDeviceGetPowerUsage"),
            "power_limit_milliwatts": self.ask("nvmlDeviceGetEnforcedPowerLimit"),
            "sm_clock_mhz": self.ask("nvmlDeviceGetClockInfo", pynvml.NVML_CLOCK_SM),
            "memory_clock_mhz": self.ask("nvmlDeviceGetClockInfo", pynvml.NVML_CLOCK_MEM),
            "application_sm_clock_mhz": self.ask("nvmlDeviceGetApplicationsClock", pynvml.NVML_CLOCK_SM),
            "utilization_percent": self.ask("nvmlDeviceGetUtilizationRates", convert=_attribute("gpu")),
            "memory_total_bytes": self._part(usage, memory, _attribute("total")),
            "memory_used_bytes": self._part(usage, memory, _attribute("used")),
            "ecc_enabled": self._part(mode, ecc, _flag_at(0)),
            "ecc_pending": self._part(mode, ecc, _flag_at(1)),
            "pcie_generation": self.ask("nvmlDeviceGetCurrPcieLinkGeneration"),
            "pcie_width": self.ask("nvmlDeviceGetCurrPcieLinkWidth"),
            "pcie_replays": self.ask("nvmlDeviceGetPcieReplayCounter"),
            "persistence_mode": self.ask("nvmlDeviceGetPersistenceMode", convert=flag),
            "compute_mode": self.ask("nvmlDeviceGetComputeMode"),
        }

    def _memory_health(self) -> dict[str, Any]:
        sram = pynvml.c_nvmlEccSramErrorStatus_v1_t()
        remapped, spare, repairs = (
            "nvmlDeviceGetRemappedRows",
            "nvmlDeviceGetRowRemapperHistogram",
            "nvmlDeviceGetRepairStatus",
        )
        rows, histogram, repair = (self.ask(name, convert=_as_it_is) for name in (remapped, spare, repairs))
        pages = {
            "single_bit": pynvml.NVML_PAGE_RETIREMENT_CAUSE_MULTIPLE_SINGLE_BIT_ECC_ERRORS,
            "double_bit": pynvml.NVML_PAGE_RETIREMENT_CAUSE_DOUBLE_BIT_ECC_ERROR,
        }
        return {
            "ecc_errors": {name: self._ecc_count(*where) for name, *where in _ECC},
            "sram_threshold_exceeded": self.ask(
                "nvmlDeviceGetSramEccErrorStatus", byref(sram), convert=lambda _: flag(sram.bThresholdExceeded)
            ),
            "remap_correctable_rows": self._part(remapped, rows, _number_at(0)),
            "remap_uncorrectable_rows": self._part(remapped, rows, _number_at(1)),
            "remap_pending": self._part(remapped, rows, _flag_at(2)),
            "remap_failed": self._part(remapped, rows, _flag_at(3)),
            "remap_histogram": {
                name: self._part(spare, histogram, _attribute(name))
                for name in ("max", "high", "partial", "low", "none")
            },
            "retired_pages": {
                name: self.ask("nvmlDeviceGetRetiredPages", cause, convert=_length) for name, cause in pages.items()
            },
            "retirement_pending": self.ask("nvmlDeviceGetRetiredPagesPendingStatus", convert=flag),
            "repair_pending": {
                name: self._part(repairs, repair, _flag_at(place)) for place, name in enumerate(("channel", "tpc"))
            },
            # nvmlDeviceValidateInforom would read the flash itself, which is too expensive for every round.
            "inforom_checksum": self.ask("nvmlDeviceGetInforomConfigurationChecksum"),
            "unrepairable_memory": self.ask("nvmlDeviceGetUnrepairableMemoryFlag_v1", convert=flag),
        }

    def _ecc_count(self, error_type: int, counter: int, location: int | None) -> Any:
        if location is None:
            return self.ask("nvmlDeviceGetTotalEccErrors", error_type, counter)
        return self.ask("nvmlDeviceGetMemoryErrorCounter", error_type, counter, location)

    def _throttling(self) -> dict[str, Any]:
        fields = self._fields(dict.fromkeys(_FIELDS, whole))
        return {
            "clocks_event_reasons": self.ask("nvmlDeviceGetCurrentClocksEventReasons"),
            "recovery_action": fields[pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION],
            "memory_celsius": fields[pynvml.NVML_FI_DEV_MEMORY_TEMP],
            "throttle_nanoseconds": {name: fields[field] for name, field in _THROTTLE_FIELDS.items()},
        }

    def _fields(self, fields: Mapping[int, Callable[[Any], Any]], link: int | None = None) -> dict[int, Any]:
        """Field values by id, each read by its own function; `link` is the scope of fields of NVLinks."""
        call = "nvmlDeviceGetFieldValues"
        asked = list(fields) if link is None else [(field, link) for field in fields]
        answer = self.ask(call, asked, convert=_as_it_is)

        def read(place: int, field: int, convert: Callable[[Any], Any]) -> Any:
            name = f"{call}({field})"
            value = self._part(name, answer, lambda values: values[place])
            # A field id unknown to the driver is rejected as an invalid argument.
            absent = pynvml.NVML_ERROR_INVALID_ARGUMENT
            return self._part(name, value, lambda value: convert(nvml_value.field(value)), absent)

        return {field: read(place, field, convert) for place, (field, convert) in enumerate(fields.items())}

    def _links(self) -> dict[str, Any]:
        links = []
        for link in range(pynvml.NVML_NVLINK_MAX_LINKS):
            past_the_last = pynvml.NVML_ERROR_INVALID_ARGUMENT
            state = self.ask("nvmlDeviceGetNvLinkState", link, absent=past_the_last)
            if isinstance(state, Missing) and state.reason is MissingReason.NOT_SUPPORTED:
                break
            links.append(self._link(link, state))
        return {"nvlinks": tuple(links) if links else NOT_SUPPORTED, "fabric": self._fabric()}

    def _link(self, link: int, state: Reading[int]) -> NvLink:
        remote = self._once("nvmlDeviceGetNvLinkRemotePciInfo", link, convert=pci_address)
        rates: list[Any] = [NOT_SUPPORTED, NOT_SUPPORTED]
        counts: dict[str, Any] = {}
        if self._nvlink5 is not False:
            rate = nvml_value.bit_error_rate
            fields = self._fields(
                {**dict.fromkeys(_LINK5_COUNTERS.values(), whole), _EFFECTIVE_BER: rate, _SYMBOL_BER: rate}, link
            )
            counts = {name: fields[field] for name, field in _LINK5_COUNTERS.items()}
            rates = [fields[_EFFECTIVE_BER], fields[_SYMBOL_BER]]
            if self._nvlink5 is None:
                self._nvlink5 = any(not isinstance(count, Missing) for count in counts.values())
        if self._nvlink5 is False:
            counts = {
                name: self.ask("nvmlDeviceGetNvLinkErrorCounter", link, counter)
                for name, counter in _LINK_COUNTERS.items()
            }
        errors = {name: count for name, count in counts.items() if not isinstance(count, Missing)}
        return NvLink(link, state, remote, errors, *rates)

    def _fabric(self) -> Reading[Fabric]:
        call = "nvmlDeviceGetGpuFabricInfoV"
        info = pynvml.c_nvmlGpuFabricInfo_v3_t()
        answer = self.ask(call, byref(info), convert=_as_it_is)
        if isinstance(answer, Missing) and answer.reason is MissingReason.NOT_SUPPORTED:
            info = pynvml.c_nvmlGpuFabricInfo_v2_t()  # drivers before R550 have no health summary
            answer = self.ask(call, byref(info), convert=_as_it_is)
        if isinstance(answer, Missing):
            return answer
        fabric: Reading[Fabric] = self._part(call, info, _fabric)
        return fabric

    def _use(self) -> dict[str, Any]:
        enabled = self.ask("nvmlDeviceGetMigMode", convert=_flag_at(0))
        return {
            "compute_processes": self.ask("nvmlDeviceGetComputeRunningProcesses", convert=_processes),
            "graphics_processes": self.ask("nvmlDeviceGetGraphicsRunningProcesses", convert=_processes),
            "mig_enabled": enabled,
            "mig_devices": tuple(self._mig_devices()) if enabled is True else (),
        }

    def _mig_devices(self) -> Iterator[MigDevice]:
        most = self.ask(
            "nvmlDeviceGetMaxMigDeviceCount", convert=lambda most: nvml_value.count(most, _MOST_MIG_DEVICES)
        )
        empty = pynvml.NVML_ERROR_NOT_FOUND  # a slot without MIG device
        for index in range(0 if isinstance(most, Missing) else most):
            device = self.ask("nvmlDeviceGetMigDeviceHandleByIndex", index, convert=_mig_device, absent=empty)
            if isinstance(device, MigDevice):
                yield device


_PLAIN_READINGS = [field.name for field in msgspec.structs.fields(GpuReadings) if field.default is UNREAD]


def _as_it_is(answer: Any) -> Any:
    return answer


def _attribute(name: str) -> Callable[[Any], int]:
    return lambda answer: whole(getattr(answer, name))


def _number_at(place: int) -> Callable[[Any], int]:
    return lambda answer: whole(answer[place])


def _flag_at(place: int) -> Callable[[Any], bool]:
    return lambda answer: flag(answer[place])


def _length(pages: list[Any]) -> int:
    return len([*pages])


def _fabric(info: Any) -> Reading[Fabric]:
    state = whole(info.state)
    if state == pynvml.NVML_GPU_FABRIC_STATE_NOT_SUPPORTED:
        return NOT_SUPPORTED
    return Fabric(
        state=state,
        status=whole(info.status),
        clique=whole(info.cliqueId),
        cluster=bytes(info.clusterUuid).hex(),
        health_mask=whole(info.healthMask),
        health_summary=whole(info.healthSummary) if hasattr(info, "healthSummary") else None,
    )


def _mig_device(handle: Any) -> MigDevice:
    return MigDevice(
        uuid=nvml_value.name_of_device(pynvml.nvmlDeviceGetUUID(handle)),
        gpu_instance=whole(pynvml.nvmlDeviceGetGpuInstanceId(handle)),
        compute_instance=whole(pynvml.nvmlDeviceGetComputeInstanceId(handle)),
    )


def _processes(processes: list[Any]) -> tuple[GpuProcess, ...]:
    def used(process: Any) -> int | None:
        return None if process.usedGpuMemory is None else whole(process.usedGpuMemory)  # None: the driver hides it

    return tuple(GpuProcess(whole(process.pid), used(process)) for process in processes)
