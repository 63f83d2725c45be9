"""All NVML readings of one GPU. Runs in the child process only: any of these calls may never return."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pynvml

from gpuhealth.model.missing import NOT_SUPPORTED, UNREAD, Missing, Reading
from gpuhealth.monitors.nvidia.nvml import abi, lists
from gpuhealth.monitors.nvidia.nvml import value as nvml_value
from gpuhealth.monitors.nvidia.nvml.calls import Calls, Convert, DeviceGoneError, Progress
from gpuhealth.monitors.nvidia.nvml.value import flag, pci_address, text, within
from gpuhealth.monitors.nvidia.readings import Fabric, GpuReadings, MigDevice, NvLink

_UUID, _PCI = "nvmlDeviceGetUUID", "nvmlDeviceGetPciInfo"
_most_mig_devices = within(0, 64, "a number of MIG devices")  # seven today


class Gpu:
    """One GPU as enumerated by NVML."""

    def __init__(self, index: int, progress: Progress, known: dict[tuple[Any, ...], Any] | None = None) -> None:
        self.index = index
        self.calls = Calls(index, progress, known)
        self._fields_of_link: dict[int, dict[int, Convert]] = {}
        self._nvlink5: bool | None = None  # None while neither kind of counter is certain

    @property
    def known(self) -> dict[tuple[Any, ...], Any]:
        """The fixed properties, by call."""
        return self.calls.known

    def read(self, others: dict[str, str] | None = None) -> GpuReadings:
        """All readings; for a lost GPU, its fixed properties.

        `others` has the uuids and addresses of other GPUs, each with a sentence that names its owner.
        """
        self.calls.begin_round()
        values: dict[str, Any] = {}
        try:
            values.update(self._identity(others or {}))  # those before a failure stay
            for part in (self._state, self._memory_health, self._throttling, self._links, self._use):
                values |= part()
        except DeviceGoneError:
            pass  # see the error; the other readings are missing for the same reason
        error = self.calls.error
        if error is not None:
            values = dict.fromkeys(_PLAIN_READINGS, error) | values
        if isinstance(values.get("uuid"), Missing):
            self.calls.close()  # its handle may be the wrong one
        return GpuReadings(
            index=self.index,
            error=error,
            calls=len(self.calls.called),
            failed_calls=self.calls.failed,
            **values,
        )

    def _identity(self, others: dict[str, str]) -> Iterator[tuple[str, Any]]:
        once, threshold = self.calls.once, "nvmlDeviceGetTemperatureThreshold"
        yield "uuid", self._own(_UUID, once(_UUID, convert=nvml_value.name), others)
        yield "pci", self._own(_PCI, once(_PCI, convert=pci_address), others)
        yield "name", once("nvmlDeviceGetName", convert=nvml_value.name)
        yield "serial", once("nvmlDeviceGetSerial", convert=text)
        yield "vbios", once("nvmlDeviceGetVbiosVersion", convert=text)
        yield "minor", once("nvmlDeviceGetMinorNumber", convert=nvml_value.small_number)
        yield "virtualization_mode", once("nvmlDeviceGetVirtualizationMode", convert=nvml_value.small_number)
        yield "addressing_mode", once("nvmlDeviceGetAddressingMode", convert=nvml_value.small_number, newer=True)
        yield "slowdown_celsius", once(threshold, abi.THRESHOLD_SLOWDOWN, convert=nvml_value.celsius)
        yield "gpu_max_celsius", once(threshold, abi.THRESHOLD_GPU_MAX, convert=nvml_value.celsius)
        yield "memory_max_celsius", once(threshold, abi.THRESHOLD_MEMORY_MAX, convert=nvml_value.celsius)
        yield "max_sm_clock_mhz", once("nvmlDeviceGetMaxClockInfo", abi.CLOCK_SM, convert=nvml_value.megahertz)
        yield "memory_bus_bits", once("nvmlDeviceGetMemoryBusWidth", convert=nvml_value.bus_bits, newer=True)
        yield "pcie_width_max", once("nvmlDeviceGetMaxPcieLinkWidth", convert=nvml_value.lanes)
        yield "pcie_generation_max", once("nvmlDeviceGetMaxPcieLinkGeneration", convert=nvml_value.generation)

    def _own(self, call: str, value: Reading[str], others: dict[str, str]) -> Reading[str]:
        """The value, unless it is another GPU's: two GPUs with one name would be one component."""
        if isinstance(value, Missing) or value not in others:
            return value
        return self.calls.refuse(call, f"{value} is {others[value]}")

    def _state(self) -> dict[str, Any]:
        ask, part, mode = self.calls.ask, self.calls.part, "nvmlDeviceGetEccMode"
        ecc = ask(mode, convert=_as_it_is)
        return {
            "temperature_celsius": ask("nvmlDeviceGetTemperature", abi.TEMPERATURE_GPU, convert=nvml_value.celsius),
            "temperature_margin_celsius": ask("nvmlDeviceGetMarginTemperature", convert=nvml_value.margin, newer=True),
            "power_milliwatts": ask("nvmlDeviceGetPowerUsage", convert=nvml_value.milliwatts),
            "power_limit_milliwatts": ask("nvmlDeviceGetEnforcedPowerLimit", convert=nvml_value.milliwatts),
            "sm_clock_mhz": ask("nvmlDeviceGetClockInfo", abi.CLOCK_SM, convert=nvml_value.megahertz),
            "memory_clock_mhz": ask("nvmlDeviceGetClockInfo", abi.CLOCK_MEMORY, convert=nvml_value.megahertz),
            "application_sm_clock_mhz": ask(
                "nvmlDeviceGetApplicationsClock", abi.CLOCK_SM, convert=nvml_value.megahertz
            ),
            "utilization_percent": ask("nvmlDeviceGetUtilizationRates", convert=_attribute("gpu", nvml_value.percent)),
            **self._memory_size(),
            "ecc_enabled": part(mode, ecc, _at(0, flag)),
            "ecc_pending": part(mode, ecc, _at(1, flag)),
            "pcie_generation": ask("nvmlDeviceGetCurrPcieLinkGeneration", convert=nvml_value.generation),
            "pcie_width": ask("nvmlDeviceGetCurrPcieLinkWidth", convert=nvml_value.lanes),
            "pcie_replays": ask("nvmlDeviceGetPcieReplayCounter", convert=self.calls.counter("replays")),
            "persistence_mode": ask("nvmlDeviceGetPersistenceMode", convert=flag),
            "compute_mode": ask("nvmlDeviceGetComputeMode", convert=nvml_value.small_number),
        }

    def _memory_size(self) -> dict[str, Any]:
        call, size = "nvmlDeviceGetMemoryInfo", nvml_value.size
        # Version 1 counts the driver's own as used.
        memory = self.calls.ask(call, abi.MEMORY_INFO_V2, convert=_as_it_is, newer=True)
        if isinstance(memory, Missing) and memory.is_unsupported:
            memory = self.calls.ask(call, convert=_as_it_is)
        total = self.calls.part(call, memory, _attribute("total", size))

        def used(memory: Any) -> int:
            number = size(memory.used)
            if isinstance(total, int) and number > total:
                raise nvml_value.refuse(number, f"a part of {total} bytes")
            return number

        return {"memory_total_bytes": total, "memory_used_bytes": self.calls.part(call, memory, used)}

    def _memory_health(self) -> dict[str, Any]:
        ask, part = self.calls.ask, self.calls.part
        remapped, spare, repairs = (
            "nvmlDeviceGetRemappedRows",
            "nvmlDeviceGetRowRemapperHistogram",
            "nvmlDeviceGetRepairStatus",
        )
        rows, histogram, repair = (ask(name, convert=_as_it_is, newer=True) for name in (remapped, spare, repairs))
        return {
            "ecc_errors": dict(self._ecc_counts()),
            "sram_threshold_exceeded": self.calls.ask_structure(
                "nvmlDeviceGetSramEccErrorStatus",
                "c_nvmlEccSramErrorStatus_v1_t",
                _attribute("bThresholdExceeded", flag),
            ),
            "remap_correctable_rows": part(remapped, rows, _at(0, nvml_value.rows)),
            "remap_uncorrectable_rows": part(remapped, rows, _at(1, nvml_value.rows)),
            "remap_pending": part(remapped, rows, _at(2, flag)),
            "remap_failed": part(remapped, rows, _at(3, flag)),
            "remap_histogram": {
                name: part(spare, histogram, _attribute(name, nvml_value.rows))
                for name in ("max", "high", "partial", "low", "none")
            },
            "retired_pages": {name: self._retired_pages(cause) for name, cause in abi.RETIREMENT_CAUSES.items()},
            "retirement_pending": ask("nvmlDeviceGetRetiredPagesPendingStatus", convert=flag),
            "repair_pending": {
                name: part(repairs, repair, _at(place, flag)) for place, name in enumerate(("channel", "tpc"))
            },
            # nvmlDeviceValidateInforom would read the flash itself, which is too expensive for every round.
            "inforom_checksum": ask("nvmlDeviceGetInforomConfigurationChecksum", convert=nvml_value.number_32),
            "unrepairable_memory": ask("nvmlDeviceGetUnrepairableMemoryFlag_v1", convert=flag, newer=True),
        }

    def _ecc_counts(self) -> Iterator[tuple[str, Any]]:
        for kind, counter in abi.ECC_COUNTERS.items():
            for severity, error_type in abi.ECC_SEVERITIES.items():
                for place, location in abi.ECC_PLACES.items():
                    name = f"{kind}_{severity}_{place}"
                    call = "nvmlDeviceGetTotalEccErrors" if location is None else "nvmlDeviceGetMemoryErrorCounter"
                    where = () if location is None else (location,)
                    convert = self.calls.counter("ecc", name)
                    yield name, self.calls.ask(call, error_type, counter, *where, convert=convert)

    def _retired_pages(self, cause: int) -> Any:
        return self.calls.make("nvmlDeviceGetRetiredPages", lambda handle: lists.retired_pages(handle, cause))

    def _throttling(self) -> dict[str, Any]:
        times = {
            field: self.calls.counter("throttle", name, convert=nvml_value.nanoseconds)
            for name, field in abi.FIELD_THROTTLE.items()
        }
        action, memory = abi.FIELD_RECOVERY_ACTION, abi.FIELD_MEMORY_TEMPERATURE
        fields = self.calls.fields({action: nvml_value.small_number, memory: nvml_value.celsius, **times})
        events, throttle = "nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"
        reasons = self.calls.ask(events, convert=nvml_value.clock_reasons, newer=True)
        if isinstance(reasons, Missing) and reasons.is_unsupported:  # a driver before R535
            reasons = self.calls.ask(throttle, convert=nvml_value.clock_reasons)
        return {
            "clocks_event_reasons": reasons,
            "recovery_action": fields[action],
            "memory_celsius": fields[memory],
            "throttle_nanoseconds": {name: fields[field] for name, field in abi.FIELD_THROTTLE.items()},
        }

    def _links(self) -> dict[str, Any]:
        call = "nvmlDeviceGetNvLinkState"
        # Either the link is past the last, or the handle is wrong.
        past_the_last = abi.INVALID_ARGUMENT if _UUID not in self.calls.failed else None
        states: list[Reading[int]] = []
        for link in range(abi.NVLINKS):
            states.append(self.calls.ask(call, link, convert=nvml_value.link_state, absent=past_the_last))
            if all(_is_absent(state) for state in states[-2:]) and link:  # one alone may be wrong
                break
        while states and _is_absent(states[-1]):
            states.pop()
        for link, state in enumerate(states):
            if _is_absent(state):
                states[link] = self.calls.refuse(call, f"link {link} is not supported, but a later one is")
        links = tuple(self._link(link, state) for link, state in enumerate(states))
        return {"nvlinks": links or NOT_SUPPORTED, "fabric": self._fabric()}

    def _link(self, link: int, state: Reading[int]) -> NvLink:
        call = "nvmlDeviceGetNvLinkRemotePciInfo"
        remote = self.calls.once(call, link, convert=nvml_value.remote_pci_address)
        errors, rates = self._link_errors(link)
        return NvLink(link, state, remote, errors, *rates)

    def _link_errors(self, link: int) -> tuple[dict[str, int], list[Any]]:
        """The counters of a link, and its two bit error rates, which only NVLink 5 has."""
        rates: list[Any] = [NOT_SUPPORTED, NOT_SUPPORTED]
        newer: dict[str, int] = {}
        older: dict[str, int] = {}
        if self._nvlink5 is not False:
            fields = self.calls.fields(self._link_fields(link), link)
            newer = _read({name: fields[field] for name, field in abi.NVLINK5_ERRORS.items()})
            rates = [fields[abi.FIELD_EFFECTIVE_BER], fields[abi.FIELD_SYMBOL_BER]]
        are_newer = 2 * len(newer) > len(abi.NVLINK5_ERRORS)
        if self._nvlink5 is not True or not are_newer:
            older = _read({name: self._link_counter(link, name, each) for name, each in abi.NVLINK_ERRORS.items()})
        are_older = 2 * len(older) > len(abi.NVLINK_ERRORS)
        self._nvlink5 = are_newer if are_newer is not are_older else None
        return newer | older, rates

    def _link_fields(self, link: int) -> dict[int, Convert]:
        if link not in self._fields_of_link:
            rates = dict.fromkeys((abi.FIELD_EFFECTIVE_BER, abi.FIELD_SYMBOL_BER), nvml_value.bit_error_rate)
            self._fields_of_link[link] = rates | {
                field: self.calls.counter("nvlink", link, name, convert=nvml_value.link_errors)
                for name, field in abi.NVLINK5_ERRORS.items()
            }
        return self._fields_of_link[link]

    def _link_counter(self, link: int, name: str, counter: int) -> Any:
        convert = self.calls.counter("nvlink", link, name, convert=nvml_value.link_errors)
        return self.calls.ask("nvmlDeviceGetNvLinkErrorCounter", link, counter, convert=convert)

    def _fabric(self) -> Reading[Fabric]:
        fabric: Reading[Fabric] = NOT_SUPPORTED
        for structure in ("c_nvmlGpuFabricInfo_v3_t", "c_nvmlGpuFabricInfo_v2_t"):  # the first from R550 on
            fabric = self.calls.ask_structure("nvmlDeviceGetGpuFabricInfoV", structure, _fabric)
            if not isinstance(fabric, Missing) or not fabric.is_unsupported:
                break
        return fabric

    def _use(self) -> dict[str, Any]:
        enabled = self.calls.ask("nvmlDeviceGetMigMode", convert=_at(0, flag), newer=True)
        return {
            "compute_processes": self._processes("nvmlDeviceGetComputeRunningProcesses"),
            "graphics_processes": self._processes("nvmlDeviceGetGraphicsRunningProcesses"),
            "mig_enabled": enabled,
            "mig_devices": tuple(self._mig_devices()) if enabled is True else (),
        }

    def _processes(self, call: str) -> Any:
        return self.calls.make(call, lambda handle: lists.running_processes(call, handle))

    def _mig_devices(self) -> Iterator[MigDevice]:
        most = self.calls.ask("nvmlDeviceGetMaxMigDeviceCount", convert=_most_mig_devices)
        call, empty = "nvmlDeviceGetMigDeviceHandleByIndex", abi.NOT_FOUND
        for index in range(0 if isinstance(most, Missing) else most):
            device = self.calls.ask(call, index, convert=_as_it_is, absent=empty)
            if isinstance(device, Missing):
                continue
            uuid = self._of_mig_device(_UUID, device, nvml_value.name)
            instances = [
                self._of_mig_device(function, device, nvml_value.small_number)
                for function in ("nvmlDeviceGetGpuInstanceId", "nvmlDeviceGetComputeInstanceId")
            ]
            if not any(isinstance(value, Missing) for value in (uuid, *instances)):
                yield MigDevice(uuid, *instances)

    def _of_mig_device(self, call: str, device: Any, convert: Convert) -> Any:
        return self.calls.make(call, lambda _: convert(getattr(pynvml, call)(device)))


_PLAIN_READINGS = [field.name for field in msgspec.structs.fields(GpuReadings) if field.default is UNREAD]


def _as_it_is(answer: Any) -> Any:
    return answer


def _attribute(name: str, convert: Convert) -> Convert:
    return lambda answer: convert(getattr(answer, name))


def _at(place: int, convert: Convert) -> Convert:
    return lambda answer: convert(answer[place])


def _is_absent(reading: Reading[int]) -> bool:
    return isinstance(reading, Missing) and reading.is_unsupported


def _read(counts: dict[str, Reading[int]]) -> dict[str, int]:
    return {name: count for name, count in counts.items() if not isinstance(count, Missing)}


def _fabric(info: Any) -> Reading[Fabric]:
    state = within(0, 3, "the state of a fabric")(info.state)
    if state == abi.FABRIC_NOT_SUPPORTED:
        return NOT_SUPPORTED
    summary = within(0, 3, "a summary of a fabric's health")
    return Fabric(
        state=state,
        status=nvml_value.return_code(info.status),
        clique=nvml_value.number_32(info.cliqueId),
        cluster=bytes(info.clusterUuid).hex(),
        health_mask=nvml_value.health_mask(info.healthMask),
        health_summary=summary(info.healthSummary) if hasattr(info, "healthSummary") else None,
    )
