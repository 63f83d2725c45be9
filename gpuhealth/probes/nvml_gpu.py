"""Everything that NVML tells of one GPU. Runs in the child process only: any of these calls may never return.

Every call goes through `Gpu.ask`, which tells the parent the call's name before it is made and turns NVML's return
codes into `Missing`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from ctypes import byref
from typing import Any

import msgspec
import pynvml

from gpuhealth.model import Missing, MissingReason, Reading
from gpuhealth.readings import NOT_SUPPORTED, UNREAD, Fabric, GpuProcess, GpuReadings, MigDevice, NvLink

Progress = Callable[[str], None]

_REASONS = {
    pynvml.NVML_ERROR_NOT_SUPPORTED: MissingReason.NOT_SUPPORTED,
    # An old driver's library lacks the newer calls: this node has no such thing.
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: MissingReason.NOT_SUPPORTED,
    pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH: MissingReason.NOT_SUPPORTED,
    pynvml.NVML_ERROR_NO_PERMISSION: MissingReason.NO_PERMISSION,
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: MissingReason.NOT_LOADED,
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: MissingReason.NOT_INSTALLED,
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: MissingReason.MISMATCH,
    pynvml.NVML_ERROR_CORRUPTED_INFOROM: MissingReason.CORRUPTED_INFOROM,
    pynvml.NVML_ERROR_GPU_IS_LOST: MissingReason.GPU_LOST,
    pynvml.NVML_ERROR_RESET_REQUIRED: MissingReason.RESET_REQUIRED,
}

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
_EFFECTIVE_BER = pynvml.NVML_FI_DEV_NVLINK_COUNT_EFFECTIVE_BER
_SYMBOL_BER = pynvml.NVML_FI_DEV_NVLINK_COUNT_SYMBOL_BER

_VALUE_FIELD = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")  # by nvmlValueType_t


class DeviceGoneError(Exception):
    """The GPU answers every call with "lost": asking further tells nothing."""


def missing(error: pynvml.NVMLError, call: str) -> Missing:
    """The reason that stands for an NVML return code."""
    reason = _REASONS.get(error.value, MissingReason.ERROR)
    return Missing(reason, "" if reason is MissingReason.NOT_SUPPORTED else f"{call}: {error} ({error.value})")


def plain(value: Any) -> Any:
    """A value as it is, text decoded."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value


class Gpu:
    """One GPU of the enumeration."""

    def __init__(self, index: int, progress: Progress, known: dict[tuple[Any, ...], Any] | None = None) -> None:
        self.index = index
        self._progress = progress
        self._handle: Any = None
        self.known: dict[tuple[Any, ...], Any] = {} if known is None else known
        self._nvlink5: bool | None = None
        self._error: Missing | None = None
        self._failed: dict[str, str] = {}

    def ask(self, name: str, *arguments: Any, convert: Callable[[Any], Any] = plain) -> Any:
        """The value of one NVML call, or Missing. Raises DeviceGoneError when the GPU is lost."""
        if self._handle is None:
            self._open()
        self._progress(f"{name} on GPU {self.index}")
        try:
            return convert(getattr(pynvml, name)(self._handle, *arguments))
        except pynvml.NVMLError as error:
            return self._refused(missing(error, name), name)

    def _refused(self, reason: Missing, name: str) -> Missing:
        if reason.reason is MissingReason.GPU_LOST:
            self._error = reason
            raise DeviceGoneError
        if reason.reason is MissingReason.RESET_REQUIRED:
            self._error = reason
        elif reason.reason in (MissingReason.ERROR, MissingReason.CORRUPTED_INFOROM):
            self._failed[name] = str(reason)
        return reason

    def _once(self, name: str, *arguments: Any, convert: Callable[[Any], Any] = plain) -> Any:
        """As ask, for what never changes: a lost GPU still has its name."""
        key = (name, *arguments)
        if key not in self.known:
            value = self.ask(name, *arguments, convert=convert)
            if isinstance(value, Missing) and value.reason is not MissingReason.NOT_SUPPORTED:
                return value
            self.known[key] = value
        return self.known[key]

    def read(self) -> GpuReadings:
        """All readings; of a GPU that is lost, what was known of it before."""
        self._forget()
        values: dict[str, Any] = {}
        try:
            for part in (self._identity, self._state, self._memory_health, self._throttling, self._links, self._use):
                values |= part()
        except DeviceGoneError:
            pass  # self._error says so, and the rest is missing for the same reason
        if self._error is not None:
            values = dict.fromkeys(_PLAIN_READINGS, self._error) | values
        return GpuReadings(index=self.index, error=self._error, failed_calls=self._failed, **values)

    def _forget(self) -> None:
        self._error, self._failed = None, {}

    def _open(self) -> None:
        name = "nvmlDeviceGetHandleByIndex_v2"
        self._progress(f"{name} on GPU {self.index}")
        try:
            self._handle = pynvml.nvmlDeviceGetHandleByIndex(self.index)
        except pynvml.NVMLError as error:
            reason = self._refused(missing(error, name), name)
            self._error = reason  # without a handle nothing can be asked, whatever the reason
            raise DeviceGoneError from None

    def _identity(self) -> dict[str, Any]:
        threshold = "nvmlDeviceGetTemperatureThreshold"
        return {
            "uuid": self._once("nvmlDeviceGetUUID"),
            "pci": self._once("nvmlDeviceGetPciInfo", convert=pci_address),
            "name": self._once("nvmlDeviceGetName"),
            "serial": self._once("nvmlDeviceGetSerial"),
            "vbios": self._once("nvmlDeviceGetVbiosVersion"),
            "minor": self._once("nvmlDeviceGetMinorNumber"),
            "slowdown_celsius": self._once(threshold, pynvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN),
            "gpu_max_celsius": self._once(threshold, pynvml.NVML_TEMPERATURE_THRESHOLD_GPU_MAX),
            "memory_max_celsius": self._once(threshold, pynvml.NVML_TEMPERATURE_THRESHOLD_MEM_MAX),
            "max_sm_clock_mhz": self._once("nvmlDeviceGetMaxClockInfo", pynvml.NVML_CLOCK_SM),
            "memory_bus_bits": self._once("nvmlDeviceGetMemoryBusWidth"),
            "pcie_width_max": self._once("nvmlDeviceGetMaxPcieLinkWidth"),
            "pcie_generation_max": self._once("nvmlDeviceGetMaxPcieLinkGeneration"),
        }

    def _state(self) -> dict[str, Any]:
        memory = self.ask("nvmlDeviceGetMemoryInfo", pynvml.nvmlMemory_v2)  # v1 counts the driver's own as used
        if isinstance(memory, Missing):
            memory = self.ask("nvmlDeviceGetMemoryInfo")
        ecc = self.ask("nvmlDeviceGetEccMode")
        return {
            "temperature_celsius": self.ask("nvmlDeviceGetTemperature", pynvml.NVML_TEMPERATURE_GPU),
            "temperature_margin_celsius": self.ask("nvmlDeviceGetMarginTemperature"),
            "power_milliwatts": self.ask("nvmlDeviceGetPowerUsage"),
            "power_limit_milliwatts": self.ask("nvmlDeviceGetEnforcedPowerLimit"),
            "sm_clock_mhz": self.ask("nvmlDeviceGetClockInfo", pynvml.NVML_CLOCK_SM),
            "memory_clock_mhz": self.ask("nvmlDeviceGetClockInfo", pynvml.NVML_CLOCK_MEM),
            "application_sm_clock_mhz": self.ask("nvmlDeviceGetApplicationsClock", pynvml.NVML_CLOCK_SM),
            "utilization_percent": self.ask("nvmlDeviceGetUtilizationRates", convert=lambda rates: rates.gpu),
            "memory_total_bytes": memory if isinstance(memory, Missing) else memory.total,
            "memory_used_bytes": memory if isinstance(memory, Missing) else memory.used,
            "ecc_enabled": ecc if isinstance(ecc, Missing) else bool(ecc[0]),
            "ecc_pending": ecc if isinstance(ecc, Missing) else bool(ecc[1]),
            "pcie_generation": self.ask("nvmlDeviceGetCurrPcieLinkGeneration"),
            "pcie_width": self.ask("nvmlDeviceGetCurrPcieLinkWidth"),
            "pcie_replays": self.ask("nvmlDeviceGetPcieReplayCounter"),
            "persistence_mode": self.ask("nvmlDeviceGetPersistenceMode", convert=bool),
            "compute_mode": self.ask("nvmlDeviceGetComputeMode"),
        }

    def _memory_health(self) -> dict[str, Any]:
        sram = pynvml.c_nvmlEccSramErrorStatus_v1_t()
        sram_answer = self.ask("nvmlDeviceGetSramEccErrorStatus", byref(sram))
        rows = self.ask("nvmlDeviceGetRemappedRows")
        rows = [rows] * 4 if isinstance(rows, Missing) else rows
        repair = self.ask("nvmlDeviceGetRepairStatus")
        histogram = self.ask("nvmlDeviceGetRowRemapperHistogram")
        pages = {
            "single_bit": pynvml.NVML_PAGE_RETIREMENT_CAUSE_MULTIPLE_SINGLE_BIT_ECC_ERRORS,
            "double_bit": pynvml.NVML_PAGE_RETIREMENT_CAUSE_DOUBLE_BIT_ECC_ERROR,
        }
        return {
            "ecc_errors": {name: self._ecc_count(*where) for name, *where in _ECC},
            "sram_threshold_exceeded": sram_answer
            if isinstance(sram_answer, Missing)
            else bool(sram.bThresholdExceeded),
            "remap_correctable_rows": rows[0],
            "remap_uncorrectable_rows": rows[1],
            "remap_pending": rows[2] if isinstance(rows[2], Missing) else bool(rows[2]),
            "remap_failed": rows[3] if isinstance(rows[3], Missing) else bool(rows[3]),
            "remap_histogram": {
                name: histogram if isinstance(histogram, Missing) else getattr(histogram, name)
                for name in ("max", "high", "partial", "low", "none")
            },
            "retired_pages": {
                name: self.ask("nvmlDeviceGetRetiredPages", cause, convert=len) for name, cause in pages.items()
            },
            "retirement_pending": self.ask("nvmlDeviceGetRetiredPagesPendingStatus", convert=bool),
            "repair_pending": {
                name: repair if isinstance(repair, Missing) else bool(repair[place])
                for place, name in enumerate(("channel", "tpc"))
            },
            # nvmlDeviceValidateInforom would read the flash itself, which is nothing for every round.
            "inforom_checksum": self.ask("nvmlDeviceGetInforomConfigurationChecksum"),
            "unrepairable_memory": self.ask("nvmlDeviceGetUnrepairableMemoryFlag_v1", convert=bool),
        }

    def _ecc_count(self, error_type: int, counter: int, location: int | None) -> Any:
        if location is None:
            return self.ask("nvmlDeviceGetTotalEccErrors", error_type, counter)
        return self.ask("nvmlDeviceGetMemoryErrorCounter", error_type, counter, location)

    def _throttling(self) -> dict[str, Any]:
        fields = self._fields(_FIELDS)
        return {
            "clocks_event_reasons": self.ask("nvmlDeviceGetCurrentClocksEventReasons"),
            "recovery_action": fields[pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION],
            "memory_celsius": fields[pynvml.NVML_FI_DEV_MEMORY_TEMP],
            "throttle_nanoseconds": {name: fields[field] for name, field in _THROTTLE_FIELDS.items()},
        }

    def _fields(self, fields: Iterable[int], link: int | None = None) -> dict[int, Any]:
        wanted = list(fields)
        answer = self.ask("nvmlDeviceGetFieldValues", wanted if link is None else [(field, link) for field in wanted])
        if isinstance(answer, Missing):
            return dict.fromkeys(wanted, answer)
        values: dict[int, Any] = {}
        for field, value in zip(wanted, answer, strict=True):
            if value.nvmlReturn == pynvml.NVML_SUCCESS:
                values[field] = getattr(value.value, _VALUE_FIELD[value.valueType])
            else:
                name = f"nvmlDeviceGetFieldValues({field})"
                error = pynvml.NVMLError(value.nvmlReturn)
                # A field id that the driver does not know is refused as an invalid argument.
                unknown = value.nvmlReturn == pynvml.NVML_ERROR_INVALID_ARGUMENT
                values[field] = NOT_SUPPORTED if unknown else self._refused(missing(error, name), name)
        return values

    def _links(self) -> dict[str, Any]:
        links = []
        for link in range(pynvml.NVML_NVLINK_MAX_LINKS):
            state = self.ask("nvmlDeviceGetNvLinkState", link)
            if isinstance(state, Missing) and state.reason is MissingReason.NOT_SUPPORTED:
                break
            if isinstance(state, Missing) and f"({pynvml.NVML_ERROR_INVALID_ARGUMENT})" in state.detail:
                self._failed.pop("nvmlDeviceGetNvLinkState", None)  # past the last link
                break
            links.append(self._link(link, state))
        return {"nvlinks": tuple(links) if links else NOT_SUPPORTED, "fabric": self._fabric()}

    def _link(self, link: int, state: Reading[int]) -> NvLink:
        remote = self._once("nvmlDeviceGetNvLinkRemotePciInfo", link, convert=pci_address)
        effective: Any = NOT_SUPPORTED
        symbol: Any = NOT_SUPPORTED
        counts: dict[str, Any] = {}
        if self._nvlink5 is not False:
            fields = self._fields([*_LINK5_COUNTERS.values(), _EFFECTIVE_BER, _SYMBOL_BER], link)
            counts = {name: fields[field] for name, field in _LINK5_COUNTERS.items()}
            effective, symbol = _bit_error_rate(fields[_EFFECTIVE_BER]), _bit_error_rate(fields[_SYMBOL_BER])
            if self._nvlink5 is None:
                self._nvlink5 = any(not isinstance(count, Missing) for count in counts.values())
        if self._nvlink5 is False:
            counts = {
                name: self.ask("nvmlDeviceGetNvLinkErrorCounter", link, counter)
                for name, counter in _LINK_COUNTERS.items()
            }
        errors = {name: count for name, count in counts.items() if not isinstance(count, Missing)}
        return NvLink(link, state, remote, errors, effective, symbol)

    def _fabric(self) -> Reading[Fabric]:
        info = pynvml.c_nvmlGpuFabricInfo_v3_t()
        answer = self.ask("nvmlDeviceGetGpuFabricInfoV", byref(info))
        if isinstance(answer, Missing) and answer.reason is MissingReason.NOT_SUPPORTED:
            info = pynvml.c_nvmlGpuFabricInfo_v2_t()  # drivers before R550 know no health summary
            answer = self.ask("nvmlDeviceGetGpuFabricInfoV", byref(info))
        if isinstance(answer, Missing):
            return answer
        if info.state == pynvml.NVML_GPU_FABRIC_STATE_NOT_SUPPORTED:
            return NOT_SUPPORTED
        return Fabric(
            state=info.state,
            status=info.status,
            clique=info.cliqueId,
            cluster=bytes(info.clusterUuid).hex(),
            health_mask=info.healthMask,
            health_summary=getattr(info, "healthSummary", None),
        )

    def _use(self) -> dict[str, Any]:
        mig = self.ask("nvmlDeviceGetMigMode")
        enabled = mig if isinstance(mig, Missing) else bool(mig[0])
        return {
            "compute_processes": self.ask("nvmlDeviceGetComputeRunningProcesses", convert=_processes),
            "graphics_processes": self.ask("nvmlDeviceGetGraphicsRunningProcesses", convert=_processes),
            "mig_enabled": enabled,
            "mig_devices": tuple(self._mig_devices()) if enabled is True else (),
        }

    def _mig_devices(self) -> Iterator[MigDevice]:
        most = self.ask("nvmlDeviceGetMaxMigDeviceCount")
        for index in range(0 if isinstance(most, Missing) else most):
            self._progress(f"nvmlDeviceGetMigDeviceHandleByIndex on GPU {self.index}")
            try:
                handle = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(self._handle, index)
                uuid = plain(pynvml.nvmlDeviceGetUUID(handle))
                instance, compute = (
                    pynvml.nvmlDeviceGetGpuInstanceId(handle),
                    pynvml.nvmlDeviceGetComputeInstanceId(handle),
                )
            except pynvml.NVMLError_NotFound:
                continue  # a slot with no MIG device
            except pynvml.NVMLError as error:
                self._refused(
                    missing(error, "nvmlDeviceGetMigDeviceHandleByIndex"), "nvmlDeviceGetMigDeviceHandleByIndex"
                )
                continue
            yield MigDevice(uuid, instance, compute)


_PLAIN_READINGS = [field.name for field in msgspec.structs.fields(GpuReadings) if field.default is UNREAD]


def pci_address(info: Any) -> str:
    """dddd:bb:dd.f of an nvmlPciInfo_t."""
    # The legacy bus id is cut to a 4-digit domain and the long one has 8 digits: the numbers are exact.
    return f"{info.domain:04x}:{info.bus:02x}:{info.device:02x}.0"


def _processes(processes: list[Any]) -> tuple[GpuProcess, ...]:
    return tuple(GpuProcess(process.pid, process.usedGpuMemory) for process in processes)


def _bit_error_rate(value: Any) -> Reading[float]:
    """Decodes mantissa (bits 8-11) and negative exponent (bits 0-7) of the BER fields 220 and 222."""
    if isinstance(value, Missing):
        return value
    return float((value >> 8 & 0xF) * 10.0 ** -(value & 0xFF))
