"""Every fault shows, and clearing it restores what was."""

import ctypes
import threading
from collections.abc import Callable
from typing import Any

import pynvml
import pytest
from nvmlsim.simulator import Simulator, SimulatorError

Read = Callable[[Any], Any]


def _field(number: int | tuple[int, int]) -> Read:
    """Read the 64 bits of a field."""
    return lambda handle: pynvml.nvmlDeviceGetFieldValues(handle, [number])[0].value.ullVal


def _fabric(member: str) -> Read:
    def read(handle: Any) -> Any:
        info = pynvml.c_nvmlGpuFabricInfo_v3_t()
        pynvml.nvmlDeviceGetGpuFabricInfoV(handle, ctypes.byref(info))
        return getattr(info, member)

    return read


def _sram_threshold(handle: Any) -> Any:
    status = pynvml.c_nvmlEccSramErrorStatus_v1_t()
    pynvml.nvmlDeviceGetSramEccErrorStatus(handle, ctypes.byref(status))
    return status.bThresholdExceeded, status.volatileUncSecDed


def _validates(handle: Any) -> bool:
    try:
        pynvml.nvmlDeviceValidateInforom(handle)
    except pynvml.NVMLError_CorruptedInforom:
        return False
    return True


def _links_up(handle: Any) -> int:
    return sum(pynvml.nvmlDeviceGetNvLinkState(handle, link) for link in range(18))


def _remapped(handle: Any) -> Any:
    return pynvml.nvmlDeviceGetRemappedRows(handle)


def _reasons(handle: Any) -> Any:
    return pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle)


def _pids(handle: Any) -> list[int]:
    return [process.pid for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)]


# fault, arguments, model, what to read, what it is with the fault
SHOWN: list[tuple[str, dict[str, Any], str, Read, Any]] = [
    ("corrupted_inforom", {}, "h100-sxm", _validates, False),
    ("recovery_action", {"value": 4}, "h100-sxm", _field(230), 4),
    ("reset_required", {}, "h100-sxm", _field(230), 1),
    ("ecc_uncorrectable", {}, "h100-sxm", lambda h: pynvml.nvmlDeviceGetTotalEccErrors(h, 1, 0), 1),
    (
        "ecc_uncorrectable",
        {"location": "sram", "count": 3},
        "h100-sxm",
        lambda h: pynvml.nvmlDeviceGetMemoryErrorCounter(h, 1, 1, 7),
        3,
    ),
    ("ecc_corrected", {"count": 50}, "t4", lambda h: pynvml.nvmlDeviceGetTotalEccErrors(h, 0, 0), 50),
    ("sram_threshold", {}, "h100-sxm", _sram_threshold, (1, 4)),
    ("ecc_disabled", {}, "h100-sxm", pynvml.nvmlDeviceGetEccMode, [0, 0]),
    ("remap_pending", {}, "a100-sxm4-80gb", _remapped, (0, 1, 1, 0)),
    ("remap_failed", {}, "a100-sxm4-80gb", _remapped, (0, 0, 0, 1)),
    ("remap_reserve", {"banks": 2}, "h100-sxm", lambda h: pynvml.nvmlDeviceGetRowRemapperHistogram(h).none, 2),
    (
        "retired_pages",
        {"dbe": 2},
        "v100-sxm2-32gb",
        lambda h: [page["address"] for page in pynvml.nvmlDeviceGetRetiredPages_v2(h, 1)],
        [0x11000000, 0x11010000],
    ),
    ("retired_pages", {"sbe": 3, "dbe": 0}, "t4", lambda h: len(pynvml.nvmlDeviceGetRetiredPages(h, 0)), 3),
    ("retirement_pending", {}, "t4", pynvml.nvmlDeviceGetRetiredPagesPendingStatus, 1),
    ("repair_pending", {}, "b200", pynvml.nvmlDeviceGetRepairStatus, [1, 0]),
    ("repair_pending", {"kind": "tpc"}, "b200", pynvml.nvmlDeviceGetRepairStatus, [0, 1]),
    ("unrepairable", {}, "b200", pynvml.nvmlDeviceGetUnrepairableMemoryFlag_v1, 1),
    ("hw_slowdown", {}, "h100-sxm", _reasons, 0x8),
    ("hw_thermal", {}, "h100-sxm", _reasons, 0x48),
    ("sw_thermal", {}, "h100-sxm", _reasons, 0x20),
    ("power_brake", {}, "h100-sxm", _reasons, 0x88),
    ("power_cap", {}, "t4", pynvml.nvmlDeviceGetCurrentClocksThrottleReasons, 0x4),
    ("overheat", {}, "h100-sxm", pynvml.nvmlDeviceGetMarginTemperature, 0),
    ("overheat", {"margin": 3}, "t4", lambda h: pynvml.nvmlDeviceGetTemperature(h, 0), 82),
    ("memory_overheat", {}, "a100-sxm4-80gb", _field(82), 95),
    ("pcie_width", {}, "h100-sxm", pynvml.nvmlDeviceGetCurrPcieLinkWidth, 8),
    ("pcie_width", {"width": 1}, "h100-sxm", pynvml.nvmlDeviceGetCurrPcieLinkWidth, 1),
    ("pcie_generation", {}, "h100-sxm", pynvml.nvmlDeviceGetCurrPcieLinkGeneration, 4),
    ("pcie_idle", {}, "h100-sxm", pynvml.nvmlDeviceGetCurrPcieLinkGeneration, 1),
    ("pcie_replays", {"count": 9}, "t4", pynvml.nvmlDeviceGetPcieReplayCounter, 9),
    ("nvlink_down", {"link": 17}, "h100-sxm", _links_up, 17),
    ("nvlink_down", {"link": "all"}, "h100-sxm", _links_up, 0),
    ("nvlink_errors", {"link": 2, "count": 7}, "h100-sxm", _field((161, 2)), 7),
    ("nvlink_errors", {"link": 2, "count": 7}, "b200", _field((208, 2)), 7),
    ("nvlink_ber", {"mantissa": 3, "exponent": 9}, "b200", _field((220, 11)), 3 << 8 | 9),
    ("fabric_incomplete", {}, "h100-sxm", _fabric("state"), pynvml.NVML_GPU_FABRIC_STATE_IN_PROGRESS),
    ("fabric_unhealthy", {}, "h100-sxm", _fabric("healthSummary"), pynvml.NVML_GPU_FABRIC_HEALTH_SUMMARY_UNHEALTHY),
    ("fabric_unhealthy", {}, "h100-sxm", _fabric("healthMask"), 0x5199),
    ("persistence_off", {}, "h100-sxm", pynvml.nvmlDeviceGetPersistenceMode, 0),
    ("leaked_memory", {"mib": 100}, "h100-sxm", lambda h: pynvml.nvmlDeviceGetMemoryInfo(h, 0x2000028).used, 100 << 20),
    ("process", {"pid": 77}, "h100-sxm", _pids, [77]),
    ("busy", {}, "l40s", lambda h: (pynvml.nvmlDeviceGetUtilizationRates(h).gpu, _pids(h)), (100, [1])),
    ("busy", {}, "l40s", pynvml.nvmlDeviceGetCurrPcieLinkGeneration, 4),
    ("straggler", {}, "h100-sxm", lambda h: pynvml.nvmlDeviceGetClockInfo(h, 1), 990),
    ("mig", {"count": 3}, "a100-sxm4-80gb", pynvml.nvmlDeviceGetMigMode, [1, 1]),
]


@pytest.mark.parametrize(("fault", "arguments", "model", "read", "shown"), SHOWN)
def test_a_fault_shows_and_clears(
    make_node: Callable[..., Simulator], fault: str, arguments: dict[str, Any], model: str, read: Read, shown: Any
) -> None:
    """The fault shows on its GPU and on no other, and clearing it brings back the healthy reading."""
    node = make_node(model)
    faulty, other = (pynvml.nvmlDeviceGetHandleByIndex(index) for index in (0, 1))
    healthy = read(faulty)
    assert healthy != shown
    node.inject(fault, gpu=0, **arguments)
    assert read(faulty) == shown
    assert read(other) == healthy
    node.clear(fault, gpu=0)
    assert read(faulty) == healthy


def test_a_lost_gpu(node: Simulator, gpu: Any, code: Callable[..., int]) -> None:
    """Lost, a GPU is still counted and has an address, and everything else returns GPU_IS_LOST, a new handle too."""
    node.inject("lost", gpu=0)
    lost = pynvml.NVML_ERROR_GPU_IS_LOST
    assert pynvml.nvmlDeviceGetCount() == 2
    assert pynvml.nvmlDeviceGetIndex(gpu) == 0
    assert pynvml.nvmlDeviceGetPciInfo(gpu).bus == 0x1B
    assert code(pynvml.nvmlDeviceGetHandleByIndex, 0) == lost
    assert code(pynvml.nvmlDeviceGetHandleByUUID, node.text("gpu0.uuid")) == lost
    assert code(pynvml.nvmlDeviceGetTemperature, gpu, 0) == lost
    assert code(pynvml.nvmlDeviceGetName, gpu) == lost
    assert code(pynvml.nvmlDeviceGetFieldValues, gpu, [230]) == lost
    assert code(pynvml.nvmlDeviceGetHandleByIndex, 1) == pynvml.NVML_SUCCESS
    node.clear("lost")
    assert code(pynvml.nvmlDeviceGetTemperature, gpu, 0) == pynvml.NVML_SUCCESS


def test_reset_required(node: Simulator, gpu: Any, code: Callable[..., int]) -> None:
    """Readings return RESET_REQUIRED; what is burnt in, and the recovery action, can still be read."""
    node.inject("reset_required", gpu=0)
    assert code(pynvml.nvmlDeviceGetTemperature, gpu, 0) == pynvml.NVML_ERROR_RESET_REQUIRED
    assert pynvml.nvmlDeviceGetName(gpu) == node.text("gpu0.name")
    action, energy = pynvml.nvmlDeviceGetFieldValues(gpu, [230, 83])
    assert (action.nvmlReturn, action.value.uiVal) == (0, pynvml.NVML_GPU_RECOVERY_ACTION_GPU_RESET)
    assert energy.nvmlReturn == pynvml.NVML_ERROR_RESET_REQUIRED


def test_a_dropped_gpu(node: Simulator, code: Callable[..., int]) -> None:
    """Dropped, a GPU is not counted, the others move up, and its old handle leads nowhere."""
    handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in (0, 1)]
    node.inject("drop", gpu=0)
    assert pynvml.nvmlDeviceGetCount() == 1
    assert pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(0)) == node.text("gpu1.uuid")
    assert pynvml.nvmlDeviceGetIndex(handles[1]) == 0
    assert code(pynvml.nvmlDeviceGetTemperature, handles[0], 0) == pynvml.NVML_ERROR_GPU_IS_LOST
    node.clear()
    assert pynvml.nvmlDeviceGetCount() == 2


@pytest.mark.parametrize(
    ("fault", "number"), [("power_cap", 74), ("sw_thermal", 269), ("hw_thermal", 270), ("power_brake", 271)]
)
def test_throttle_time_advances(node: Simulator, gpu: Any, until: Callable[..., None], fault: str, number: int) -> None:
    """A reason's time stands still without its bit, grows with it, and never goes back."""
    time = _field(number)
    assert time(gpu) == 0
    node.inject(fault, gpu=0)
    first = time(gpu)
    until(lambda: bool(time(gpu) > first + 1_000_000))
    node.clear(fault)
    stopped = time(gpu)
    assert stopped > first
    assert time(gpu) == stopped
    node.clear()
    assert time(gpu) == stopped


def test_advancing_values_never_go_back(node: Simulator, gpu: Any) -> None:
    """Whatever is injected, cleared and set meanwhile, energy and throttle time only grow."""
    finished = threading.Event()
    readings: list[tuple[int, int]] = []

    def read() -> None:
        while not finished.is_set():
            readings.append((_field(270)(gpu), pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu)))

    reader = threading.Thread(target=read)
    reader.start()
    for watts in range(100, 130):
        node.inject("hw_thermal", gpu=0)
        node.set({"gpu0.power.usage": watts * 1000})
        node.clear("hw_thermal") if watts % 2 else node.clear()
    finished.set()
    reader.join()
    for series in zip(*readings, strict=True):
        assert list(series) == sorted(series)


def test_violation_status(node: Simulator, gpu: Any, until: Callable[..., None]) -> None:
    """The violation time of the thermal policy is that of both thermal reasons; its clock is in microseconds."""
    thermal = pynvml.NVML_PERF_POLICY_THERMAL
    assert pynvml.nvmlDeviceGetViolationStatus(gpu, thermal).violationTime == 0
    node.inject("sw_thermal", gpu=0)
    until(lambda: bool(pynvml.nvmlDeviceGetViolationStatus(gpu, thermal).violationTime > 0))
    assert pynvml.nvmlDeviceGetViolationStatus(gpu, pynvml.NVML_PERF_POLICY_POWER).violationTime == 0


def test_faults_on_one_value(node: Simulator, gpu: Any) -> None:
    """Clearing one of two faults leaves what the other made of the same value."""
    node.inject("hw_thermal", gpu=0)
    node.inject("sw_thermal", gpu=0)
    node.clear("hw_thermal", gpu=0)
    assert _reasons(gpu) == pynvml.nvmlClocksEventReasonSwThermalSlowdown
    node.inject("busy", gpu=0)
    node.inject("process", gpu=0, pid=50)
    node.clear("busy", gpu=0)
    assert _pids(gpu) == [50]
    assert _reasons(gpu) == pynvml.nvmlClocksEventReasonSwThermalSlowdown


def test_faults_add_up(node: Simulator, gpu: Any) -> None:
    """Injected again, a counting fault counts on, and one clear takes all of it back."""
    for expected in (1, 2, 3):
        node.inject("ecc_uncorrectable", gpu=0)
        assert pynvml.nvmlDeviceGetTotalEccErrors(gpu, 1, 0) == expected
    node.clear("ecc_uncorrectable")
    assert pynvml.nvmlDeviceGetTotalEccErrors(gpu, 1, 0) == 0


def test_values_set_by_hand_survive_a_clear(node: Simulator, gpu: Any) -> None:
    """Clearing a fault touches only what the fault did; clearing everything restores everything."""
    node.inject("busy", gpu=0)
    node.set({"gpu0.utilization.memory": 7, "gpu0.pcie.replays": 12})
    node.clear("busy", gpu=0)
    assert pynvml.nvmlDeviceGetPcieReplayCounter(gpu) == 12
    node.clear()
    assert pynvml.nvmlDeviceGetPcieReplayCounter(gpu) == 0


def test_errors_by_call(node: Simulator, gpu: Any, code: Callable[..., int]) -> None:
    """Any call can be made to return any code, as often as wanted, on one GPU or on all."""
    other = pynvml.nvmlDeviceGetHandleByIndex(1)
    node.inject("error", gpu=0, call="nvmlDeviceGetTemperature", code=999, count=2)
    codes = [code(pynvml.nvmlDeviceGetTemperature, handle, 0) for handle in (gpu, other, gpu, gpu)]
    assert codes == [999, 0, 999, 0]
    node.inject("error", call="nvmlDeviceGetCount", code=20)
    assert code(pynvml.nvmlDeviceGetCount) == pynvml.NVML_ERROR_MEMORY
    assert code(pynvml.nvmlDeviceGetPowerUsage, gpu) == pynvml.NVML_SUCCESS
    node.clear("error")
    assert code(pynvml.nvmlDeviceGetCount) == pynvml.NVML_SUCCESS
    node.inject("error", gpu=1, code=3)
    assert code(pynvml.nvmlDeviceGetHandleByIndex, 1) == pynvml.NVML_ERROR_NOT_SUPPORTED
    assert code(pynvml.nvmlDeviceGetHandleByIndex, 0) == pynvml.NVML_SUCCESS


@pytest.mark.parametrize(
    ("fault", "arguments", "expected"), [("init_failure", {}, 9), ("init_failure", {"code": 17}, 17),
                                         ("driver_mismatch", {}, 18)]
)  # fmt: skip
def test_init_failures(
    node: Simulator, code: Callable[..., int], fault: str, arguments: dict[str, int], expected: int
) -> None:
    """nvmlInit fails with the code, while those that are in go on."""
    node.inject(fault, **arguments)
    assert code(pynvml.nvmlInit) == expected
    assert pynvml.nvmlDeviceGetCount() == 2
    node.clear(fault)
    assert code(pynvml.nvmlInit) == pynvml.NVML_SUCCESS
    pynvml.nvmlShutdown()


def test_active_faults_are_listed(node: Simulator) -> None:
    """The state knows which faults are active, on which GPU, with which arguments."""
    node.inject("overheat", gpu=[0, 1], margin=2)
    node.inject("slow", ms=1)
    assert node.faults() == ["overheat gpu=0 margin=2", "overheat gpu=1 margin=2", "slow ms=1"]
    node.clear("overheat", gpu=0)
    assert node.faults() == ["overheat gpu=1 margin=2", "slow ms=1"]
    node.clear()
    assert node.faults() == []


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["nonsense"],
        ["lost", "lost"],
        ["lost", "gpu=2"],
        ["lost", "gpu=x"],
        ["driver_mismatch", "gpu=0"],
        ["overheat", "degrees=3"],
        ["overheat", "margin=warm"],
        ["nvlink_down", "link=some"],
        ["ecc_corrected", "location=moon"],
        ["aer", "kind=Bad"],
        ["error", "call=nvmlDeviceGetTemperatur"],
    ],
)
def test_what_makes_no_sense_is_refused(node: Simulator, words: list[str]) -> None:
    """An unknown fault, GPU or argument is an error, and changes nothing."""
    with pytest.raises(SimulatorError):
        node.run("inject", *words)
    assert node.faults() == []
