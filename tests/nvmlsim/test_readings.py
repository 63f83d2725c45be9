"""What goes into the state comes out of the calls, in every structure's own place."""

import ctypes
from collections.abc import Callable
from typing import Any

import pynvml
import pytest
from nvmlsim.simulator import Simulator

Field = Callable[..., tuple[int, int]]


def test_identity(node: Simulator, gpu: Any) -> None:
    """Names and numbers of a GPU are those of its state."""
    assert pynvml.nvmlDeviceGetName(gpu) == node.text("gpu0.name") == "NVIDIA H100 80GB HBM3"
    assert pynvml.nvmlDeviceGetUUID(gpu) == node.text("gpu0.uuid")
    assert pynvml.nvmlDeviceGetSerial(gpu) == node.text("gpu0.serial")
    assert pynvml.nvmlDeviceGetBoardPartNumber(gpu) == node.text("gpu0.part_number")
    assert pynvml.nvmlDeviceGetVbiosVersion(gpu) == node.text("gpu0.vbios")
    assert pynvml.nvmlDeviceGetInforomImageVersion(gpu) == node.text("gpu0.inforom_image")
    assert pynvml.nvmlDeviceGetArchitecture(gpu) == pynvml.NVML_DEVICE_ARCH_HOPPER
    assert pynvml.nvmlDeviceGetCudaComputeCapability(gpu) == (9, 0)
    assert pynvml.nvmlDeviceGetBrand(gpu) == pynvml.NVML_BRAND_NVIDIA
    assert pynvml.nvmlDeviceGetMinorNumber(gpu) == 0
    assert pynvml.nvmlSystemGetDriverVersion() == "550.90.07"
    assert pynvml.nvmlSystemGetNVMLVersion() == "12.550.90.07"
    assert pynvml.nvmlSystemGetCudaDriverVersion() == 12040
    assert pynvml.nvmlSystemGetDriverBranch().branch == "r550_00"
    pynvml.nvmlDeviceValidateInforom(gpu)


def test_pci_info(node: Simulator, gpu: Any) -> None:
    """The PCI address has its numbers and both spellings, in both structures."""
    node.set({"gpu0.pci.domain": 0x10001, "gpu0.pci.bus": 0xAB, "gpu0.pci.device": 3})
    info, extended = pynvml.nvmlDeviceGetPciInfo(gpu), pynvml.nvmlPciInfoExt_v1_t()
    extended.version = pynvml.nvmlPciInfoExt_v1
    pynvml.nvmlDeviceGetPciInfoExt(gpu, ctypes.byref(extended))
    assert (info.domain, info.bus, info.device) == (0x10001, 0xAB, 3)
    assert info.busId == extended.busId == "00010001:AB:03.0"
    assert info.busIdLegacy == "0001:AB:03.0"
    assert info.pciDeviceId == extended.pciDeviceId == 0x233010DE
    assert (extended.baseClass, extended.subClass) == (3, 2)


def test_temperatures(node: Simulator, gpu: Any, field: Field) -> None:
    """Margin and thresholds speak of the same temperature; limits as margins are signed."""
    node.set({"gpu0.temperature": 84, "gpu0.memory_temperature": 91})
    assert pynvml.nvmlDeviceGetTemperature(gpu, 0) == pynvml.nvmlDeviceGetTemperatureV(gpu, 0) == 84
    assert [pynvml.nvmlDeviceGetTemperatureThreshold(gpu, which) for which in range(4)] == [95, 89, 95, 87]
    assert pynvml.nvmlDeviceGetMarginTemperature(gpu) == 3
    assert field(gpu, pynvml.NVML_FI_DEV_MEMORY_TEMP) == (0, 91)
    assert [field(gpu, number) for number in (193, 194, 195, 196)] == [(0, -8), (0, -2), (0, 0), (0, 0)]
    node.set({"gpu0.temperature": 90})
    assert pynvml.nvmlDeviceGetMarginTemperature(gpu) == -3


def test_power_and_energy(node: Simulator, gpu: Any, field: Field) -> None:
    """Power and its limits are in mW, energy in mJ, and only grows."""
    node.set({"gpu0.power.usage": 650_000, "gpu0.power.limit": 600_000, "gpu0.power.enforced_limit": 500_000})
    assert pynvml.nvmlDeviceGetPowerUsage(gpu) == 650_000
    assert pynvml.nvmlDeviceGetPowerManagementLimit(gpu) == 600_000
    assert pynvml.nvmlDeviceGetPowerManagementDefaultLimit(gpu) == 700_000
    assert pynvml.nvmlDeviceGetEnforcedPowerLimit(gpu) == 500_000
    assert pynvml.nvmlDeviceGetPowerManagementLimitConstraints(gpu) == [200_000, 700_000]
    assert [field(gpu, number)[1] for number in (185, 186, 187, 188, 189, 190, 192)] == [
        650_000, 650_000, 200_000, 700_000, 700_000, 500_000, 600_000,
    ]  # fmt: skip
    readings = [pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu), field(gpu, 83)[1], node.get("gpu0.energy")]
    node.inject("busy", gpu=0)
    readings.append(pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu))
    assert readings == sorted(readings)


def test_clocks_and_utilization(node: Simulator, gpu: Any) -> None:
    """Clocks by type and by kind, and utilization."""
    node.set({"gpu0.clocks.sm": 1111, "gpu0.utilization.gpu": 37, "gpu0.utilization.memory": 12})
    assert pynvml.nvmlDeviceGetClockInfo(gpu, pynvml.NVML_CLOCK_SM) == 1111
    assert pynvml.nvmlDeviceGetClock(gpu, pynvml.NVML_CLOCK_SM, pynvml.NVML_CLOCK_ID_CURRENT) == 1111
    assert pynvml.nvmlDeviceGetMaxClockInfo(gpu, pynvml.NVML_CLOCK_SM) == 1980
    assert pynvml.nvmlDeviceGetMaxClockInfo(gpu, pynvml.NVML_CLOCK_MEM) == 2619
    assert pynvml.nvmlDeviceGetApplicationsClock(gpu, pynvml.NVML_CLOCK_GRAPHICS) == 1980
    rates = pynvml.nvmlDeviceGetUtilizationRates(gpu)
    assert (rates.gpu, rates.memory) == (37, 12)


def test_memory(node: Simulator, gpu: Any) -> None:
    """Version 1 counts the driver's reserve as used, version 2 apart; both add up."""
    node.set({"gpu0.memory.used": 5 << 30})
    plain = pynvml.nvmlDeviceGetMemoryInfo(gpu)
    second = pynvml.nvmlDeviceGetMemoryInfo(gpu, pynvml.nvmlMemory_v2)
    reserved = node.get("gpu0.memory.reserved")
    assert (second.total, second.reserved, second.used) == (node.get("gpu0.memory.total"), reserved, 5 << 30)
    assert plain.used == second.used + reserved
    assert plain.free == second.free == second.total - second.used - reserved
    bar = pynvml.nvmlDeviceGetBAR1MemoryInfo(gpu)
    assert bar.bar1Total == bar.bar1Free + bar.bar1Used == 128 << 30


def test_ecc_counts(node: Simulator, gpu: Any, field: Field) -> None:
    """Each count has its place, by type, lifetime and location; totals are of DRAM and SRAM."""
    names = {
        (kind, lifetime, location): f"gpu0.ecc.{lifetime_name}.{kind_name}.{location_name}"
        for kind, kind_name in enumerate(("corrected", "uncorrected"))
        for lifetime, lifetime_name in enumerate(("volatile", "aggregate"))
        for location, location_name in ((2, "dram"), (7, "sram"))
    }
    expected = {place: 10 + number for number, place in enumerate(names)}
    node.set({names[place]: count for place, count in expected.items()})
    for (kind, lifetime, location), count in expected.items():
        assert pynvml.nvmlDeviceGetMemoryErrorCounter(gpu, kind, lifetime, location) == count
    for number, (kind, lifetime) in ((3, (0, 0)), (4, (1, 0)), (5, (0, 1)), (6, (1, 1))):
        total = expected[kind, lifetime, 2] + expected[kind, lifetime, 7]
        assert pynvml.nvmlDeviceGetTotalEccErrors(gpu, kind, lifetime) == total
        assert field(gpu, number) == (0, total)
        assert pynvml.nvmlDeviceGetDetailedEccErrors(gpu, kind, lifetime).deviceMemory == expected[kind, lifetime, 2]
    pynvml.nvmlDeviceClearEccErrorCounts(gpu, pynvml.NVML_VOLATILE_ECC)
    assert pynvml.nvmlDeviceGetTotalEccErrors(gpu, 1, 0) == 0
    assert pynvml.nvmlDeviceGetTotalEccErrors(gpu, 1, 1) > 0


def test_sram_status(node: Simulator, gpu: Any) -> None:
    """Every member of the SRAM status comes from its own value."""
    members = {
        "volatileUncParity": "sram.volatile_parity",
        "volatileUncSecDed": "sram.volatile_secded",
        "aggregateUncParity": "sram.aggregate_parity",
        "aggregateUncSecDed": "sram.aggregate_secded",
        "volatileCor": "ecc.volatile.corrected.sram",
        "aggregateCor": "ecc.aggregate.corrected.sram",
        "aggregateUncBucketL2": "sram.bucket_l2",
        "aggregateUncBucketSm": "sram.bucket_sm",
        "aggregateUncBucketPcie": "sram.bucket_pcie",
        "aggregateUncBucketMcu": "sram.bucket_mcu",
        "aggregateUncBucketOther": "sram.bucket_other",
        "bThresholdExceeded": "sram.threshold_exceeded",
    }
    node.set({f"gpu0.{name}": number + 1 for number, name in enumerate(members.values())})
    status = pynvml.c_nvmlEccSramErrorStatus_v1_t()
    pynvml.nvmlDeviceGetSramEccErrorStatus(gpu, ctypes.byref(status))
    assert [getattr(status, member) for member in members] == list(range(1, 13))


def test_row_remapping(node: Simulator, gpu: Any, field: Field) -> None:
    """Version 1 sums active and inactive remaps; version 2 separates them."""
    node.set(
        {
            "gpu0.remap.corrected": 1,
            "gpu0.remap.corrected_inactive": 2,
            "gpu0.remap.uncorrected": 4,
            "gpu0.remap.uncorrected_inactive": 8,
            "gpu0.remap.pending": 1,
            "gpu0.remap.histogram.low": 3,
        }
    )
    assert pynvml.nvmlDeviceGetRemappedRows(gpu) == (3, 12, 1, 0)
    assert [field(gpu, number)[1] for number in (142, 143, 144, 145)] == [3, 12, 1, 0]
    info = pynvml.c_nvmlRemappedRowsInfo_v2_t()
    pynvml.nvmlDeviceGetRemappedRows_v2(gpu, ctypes.byref(info))
    assert (info.corrActiveRemaps, info.corrInactiveRemaps) == (1, 2)
    assert (info.uncActiveRemaps, info.uncInactiveRemaps) == (4, 8)
    assert (info.bPending, info.bfailureOccurred) == (1, 0)
    histogram = pynvml.nvmlDeviceGetRowRemapperHistogram(gpu)
    assert (histogram.max, histogram.high, histogram.partial, histogram.low, histogram.none) == (2560, 0, 0, 3, 0)


def test_pcie(node: Simulator, gpu: Any, field: Field) -> None:
    """Link, speed, throughput and the eleven error counters."""
    node.set({"gpu0.pcie.tx_kbps": 100, "gpu0.pcie.rx_kbps": 200, "gpu0.pcie.replays": 7})
    assert pynvml.nvmlDeviceGetCurrPcieLinkGeneration(gpu) == pynvml.nvmlDeviceGetMaxPcieLinkGeneration(gpu) == 5
    assert pynvml.nvmlDeviceGetGpuMaxPcieLinkGeneration(gpu) == 5
    assert pynvml.nvmlDeviceGetCurrPcieLinkWidth(gpu) == pynvml.nvmlDeviceGetMaxPcieLinkWidth(gpu) == 16
    assert pynvml.nvmlDeviceGetPcieSpeed(gpu) == 32000
    assert pynvml.nvmlDeviceGetPcieLinkMaxSpeed(gpu) == pynvml.NVML_PCIE_LINK_MAX_SPEED_32000MBPS
    assert [pynvml.nvmlDeviceGetPcieThroughput(gpu, counter) for counter in (0, 1)] == [100, 200]
    assert pynvml.nvmlDeviceGetPcieReplayCounter(gpu) == field(gpu, 94)[1] == 7
    names = [
        "correctable",
        "naks_received",
        "receiver_errors",
        "bad_tlp",
        "naks_sent",
        "bad_dllp",
        "non_fatal",
        "fatal",
    ]
    names += ["unsupported_requests", "lcrc_errors", "lane_errors"]
    node.set({f"gpu0.pcie.{name}": number for number, name in enumerate(names, start=173)})
    assert [field(gpu, number) for number in range(173, 184)] == [(0, number) for number in range(173, 184)]


def test_nvlinks(node: Simulator, gpu: Any, field: Field) -> None:
    """Links by call and by field, with the switch at their other end and five error counters each."""
    node.set({"gpu0.link4.state": 0, "gpu0.link5.errors.recovery": 6, "gpu0.link5.errors.crc_flit": 9})
    states = [pynvml.nvmlDeviceGetNvLinkState(gpu, link) for link in range(18)]
    assert states == [field(gpu, (165, link))[1] for link in range(18)] == [1] * 4 + [0] + [1] * 13
    assert pynvml.nvmlDeviceGetNvLinkVersion(gpu, 0) == pynvml.NVML_NVLINK_VERSION_4_0 == field(gpu, (166, 0))[1]
    assert field(gpu, 91) == (0, 18)
    assert [field(gpu, (164, link))[1] for link in (3, 4)] == [26562, 0]
    assert pynvml.nvmlDeviceGetNvLinkRemoteDeviceType(gpu, 0) == pynvml.NVML_NVLINK_DEVICE_TYPE_SWITCH
    assert pynvml.nvmlDeviceGetNvLinkRemotePciInfo(gpu, 1).pciDeviceId >> 16 == 0x22A3
    assert [pynvml.nvmlDeviceGetNvLinkErrorCounter(gpu, 5, counter) for counter in range(5)] == [0, 6, 9, 0, 0]
    assert field(gpu, (162, 5)) == field(gpu, (162, 0xFFFFFFFF)) == field(gpu, 59) == field(gpu, 58) == (0, 6)
    assert field(gpu, (162, 18))[0] == pynvml.NVML_ERROR_INVALID_ARGUMENT
    pynvml.nvmlDeviceResetNvLinkErrorCounters(gpu, 5)
    assert pynvml.nvmlDeviceGetNvLinkErrorCounter(gpu, 5, 2) == 0


def test_nvlink5_counters(make_node: Any, field: Field) -> None:
    """Blackwell counts packets, recoveries and bit errors in fields by link."""
    node = make_node("b200")
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    node.set(
        {
            "gpu0.link3.counters.xmit_packets": 1,
            "gpu0.link3.counters.xmit_discards": 2,
            "gpu0.link3.counters.symbol_ber": 5 << 8 | 7,
            "gpu0.link3.counters.fec0": 3,
            "gpu0.link3.counters.fec15": 4,
        }
    )
    numbers = (201, 212, 222, 235, 250)
    assert [field(handle, (number, 3)) for number in numbers] == [(0, 1), (0, 2), (0, 5 << 8 | 7), (0, 3), (0, 4)]
    assert [field(handle, (number, 2))[1] for number in numbers] == [0] * 5
    assert field(handle, (161, 3))[0] == pynvml.NVML_ERROR_NOT_SUPPORTED


def test_fabric(node: Simulator, gpu: Any) -> None:
    """The fabric's state is in all four versions of the structure."""
    node.set({"gpu0.fabric.clique": 3, "gpu0.fabric.health_mask": 0x1234, "gpu0.fabric.health_summary": 3})
    first, second = pynvml.c_nvmlGpuFabricInfo_t(), pynvml.c_nvmlGpuFabricInfo_v2_t()
    third, fourth = pynvml.c_nvmlGpuFabricInfo_v3_t(), pynvml.c_nvmlGpuFabricInfo_v4_t()
    pynvml.nvmlDeviceGetGpuFabricInfo(gpu, ctypes.byref(first))
    pynvml.nvmlDeviceGetGpuFabricInfoV(gpu, ctypes.byref(second))
    pynvml.nvmlDeviceGetGpuFabricInfoV(gpu, ctypes.byref(third))
    pynvml.nvmlDeviceGetGpuFabricInfo_v4(gpu, ctypes.byref(fourth))
    uuid = bytes.fromhex(node.text("node.cluster_uuid").replace("-", ""))
    assert all(bytes(info.clusterUuid) == uuid for info in (first, second, third, fourth))
    assert first.state == second.state == third.state == fourth.state == pynvml.NVML_GPU_FABRIC_STATE_COMPLETED
    assert first.cliqueId == second.cliqueId == third.cliqueId == fourth.cliques[0].id == 3
    assert second.healthMask == third.healthMask == fourth.healthMask == 0x1234
    assert third.healthSummary == fourth.healthSummary == 3
    assert fourth.numCliques == 1


def test_blackwell_repairs(make_node: Any, field: Field) -> None:
    """Repair status, the flag of unrepairable memory, bank remaps and platform are Blackwell's."""
    node = make_node("b200")
    handle = pynvml.nvmlDeviceGetHandleByIndex(1)
    node.set({"gpu1.repair.tpc_pending": 1, "gpu1.unrepairable_memory": 1, "gpu1.bank_remap.active": 2})
    assert pynvml.nvmlDeviceGetRepairStatus(handle) == [0, 1]
    assert pynvml.nvmlDeviceGetUnrepairableMemoryFlag_v1(handle) == 1
    banks = pynvml.c_nvmlEccBankRemapperStatus_v1_t()
    pynvml.nvmlDeviceGetBankRemapperStatus_v1(handle, ctypes.byref(banks))
    assert (banks.activeRemappings, banks.bPending, banks.histogram.maxSpareGroupCount) == (2, 0, 4096)
    assert field(handle, pynvml.NVML_FI_DEV_ACTIVE_BANK_REMAPPINGS) == (0, 2)
    platform = pynvml.c_nvmlPlatformInfo_v2_t()
    pynvml.nvmlDeviceGetPlatformInfo(handle, ctypes.byref(platform))
    assert platform.chassisSerialNumber == node.text("node.chassis_serial")
    assert bytes(platform)[36:41] == bytes([2, 0, 1, 1, 2])


def test_modes(node: Simulator, gpu: Any) -> None:
    """Persistence and compute mode, and setting the former."""
    assert pynvml.nvmlDeviceGetPersistenceMode(gpu) == 1
    pynvml.nvmlDeviceSetPersistenceMode(gpu, 0)
    assert node.get("gpu0.persistence_mode") == pynvml.nvmlDeviceGetPersistenceMode(gpu) == 0
    assert pynvml.nvmlDeviceGetComputeMode(gpu) == pynvml.NVML_COMPUTEMODE_DEFAULT
    assert pynvml.nvmlDeviceGetC2cModeInfoV(gpu).isC2cEnabled == 0


def test_topology(make_node: Any) -> None:
    """GPUs of one half of the node are nearer to each other; NVLink makes them peers while a link is up."""
    node = make_node(gpus=4)
    handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(4)]
    levels = [pynvml.nvmlDeviceGetTopologyCommonAncestor(handles[0], other) for other in handles]
    assert levels == [
        pynvml.NVML_TOPOLOGY_INTERNAL,
        pynvml.NVML_TOPOLOGY_NODE,
        pynvml.NVML_TOPOLOGY_SYSTEM,
        pynvml.NVML_TOPOLOGY_SYSTEM,
    ]
    near = pynvml.nvmlDeviceGetTopologyNearestGpus(handles[0], pynvml.NVML_TOPOLOGY_NODE)
    assert [pynvml.nvmlDeviceGetIndex(handle) for handle in near] == [1]
    nvlink = pynvml.NVML_P2P_CAPS_INDEX_NVLINK
    assert pynvml.nvmlDeviceGetP2PStatus(handles[0], handles[3], nvlink) == pynvml.NVML_P2P_STATUS_OK
    node.inject("nvlink_down", gpu=3)
    assert pynvml.nvmlDeviceGetP2PStatus(handles[0], handles[3], nvlink) == pynvml.NVML_P2P_STATUS_NOT_SUPPORTED


def test_mig(node: Simulator, gpu: Any, code: Callable[..., int]) -> None:
    """MIG devices have handles, UUIDs, ids and memory of their own, and no sensors."""
    assert pynvml.nvmlDeviceGetMigMode(gpu) == [0, 0]
    assert pynvml.nvmlDeviceGetMaxMigDeviceCount(gpu) == 7
    assert code(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, gpu, 0) == pynvml.NVML_ERROR_NOT_FOUND
    node.inject("mig", gpu=0, count=2)
    assert pynvml.nvmlDeviceGetMigMode(gpu) == [1, 1]
    devices = [pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, index) for index in (0, 1)]
    assert code(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, gpu, 2) == pynvml.NVML_ERROR_NOT_FOUND
    assert code(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, gpu, 7) == pynvml.NVML_ERROR_INVALID_ARGUMENT
    uuids = [pynvml.nvmlDeviceGetUUID(device) for device in devices]
    assert len(set(uuids)) == 2
    assert all(uuid.startswith("MIG-") for uuid in uuids)
    found = pynvml.nvmlDeviceGetHandleByUUID(uuids[1])
    assert pynvml.nvmlDeviceIsMigDeviceHandle(found).value == 1
    assert [pynvml.nvmlDeviceGetGpuInstanceId(device) for device in devices] == [7, 8]
    assert pynvml.nvmlDeviceGetComputeInstanceId(found) == 0
    assert pynvml.nvmlDeviceGetName(found) == "NVIDIA H100 80GB HBM3 MIG 1g.10gb"
    assert pynvml.nvmlDeviceGetMemoryInfo(found).total == node.get("gpu0.memory.total") // 8
    assert pynvml.nvmlDeviceGetAttributes(found).gpuInstanceSliceCount == 1
    parent = pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(found)
    assert pynvml.nvmlDeviceGetIndex(parent) == 0
    assert code(pynvml.nvmlDeviceGetTemperature, found, 0) == pynvml.NVML_ERROR_NOT_SUPPORTED
    assert code(pynvml.nvmlDeviceGetRemappedRows, gpu) == pynvml.NVML_ERROR_NOT_SUPPORTED
    assert code(pynvml.nvmlDeviceGetUtilizationRates, gpu) == pynvml.NVML_ERROR_NOT_SUPPORTED
    node.clear("mig")
    assert code(pynvml.nvmlDeviceGetUUID, found) == pynvml.NVML_ERROR_INVALID_ARGUMENT


def test_every_field_answers(gpu: Any) -> None:
    """Each of the field numbers gives a value or a reason, never a wrong type."""
    for number in range(1, pynvml.NVML_FI_MAX):
        value = pynvml.nvmlDeviceGetFieldValues(gpu, [number])[0]
        assert value.nvmlReturn in (pynvml.NVML_SUCCESS, pynvml.NVML_ERROR_NOT_SUPPORTED), number
        assert value.nvmlReturn or value.valueType in (1, 3, 5), number
        assert value.timestamp > 0
    assert pynvml.nvmlDeviceGetFieldValues(gpu, [pynvml.NVML_FI_MAX])[0].nvmlReturn == 2


@pytest.mark.parametrize("name", ["ComputeRunningProcesses", "GraphicsRunningProcesses", "MPSComputeRunningProcesses"])
def test_processes_by_kind(node: Simulator, gpu: Any, name: str) -> None:
    """A process is listed by its kind, in the versions that pynvml knows, with its memory."""
    kind = ["ComputeRunningProcesses", "GraphicsRunningProcesses", "MPSComputeRunningProcesses"].index(name)
    for version in ("_v2", "_v3", ""):
        assert getattr(pynvml, f"nvmlDeviceGet{name}{version}")(gpu) == []
    node.inject("process", gpu=0, pid=42, mib=3, graphics=kind)
    for version in ("_v2", "_v3", ""):
        [process] = getattr(pynvml, f"nvmlDeviceGet{name}{version}")(gpu)
        assert (process.pid, process.usedGpuMemory) == (42, 3 << 20)
        assert process.gpuInstanceId == process.computeInstanceId == 0xFFFFFFFF
