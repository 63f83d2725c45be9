"""GPU models: what each has, and what each answers NOT_SUPPORTED to."""

import ctypes
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pynvml
import pytest
from nvmlsim.simulator import COMMAND, Simulator, SimulatorError

MODELS = [
    *("a100-pcie-80gb", "a100-sxm4-80gb", "b200", "b300", "gb200", "gb300", "h100-sxm", "h20", "h200", "l40s"),
    *("rtx-pro-6000", "t4", "v100-sxm2-32gb"),
]

OLD = {"t4", "v100-sxm2-32gb"}
AMPERE = {"a100-pcie-80gb", "a100-sxm4-80gb"}
GRACE = {"gb200", "gb300"}
NVLINK5 = {"b200", "b300", *GRACE}
HOPPER_ON = {"h100-sxm", "h20", "h200", *NVLINK5}
PCIE = {"l40s", "rtx-pro-6000"}
NVLINK = {"v100-sxm2-32gb", "a100-sxm4-80gb", *HOPPER_ON}
NEWER = set(MODELS) - OLD


def _filled(call: str, struct: Any) -> Callable[[Any], Any]:
    """Read a structure that the caller has to make."""
    return lambda handle: getattr(pynvml, call)(handle, ctypes.byref(struct()))


def _field(number: int) -> Callable[[Any], Any]:
    """Read a field, its code as the exception that it is for calls."""

    def read(handle: Any) -> None:
        code = pynvml.nvmlDeviceGetFieldValues(handle, [number])[0].nvmlReturn
        if code:
            raise pynvml.NVMLError(code)

    return read


SUPPORTED_BY: dict[str, tuple[Callable[[Any], Any], set[str]]] = {
    "row remapping": (pynvml.nvmlDeviceGetRemappedRows, NEWER),
    "row remapping field": (_field(144), NEWER),
    "histogram": (pynvml.nvmlDeviceGetRowRemapperHistogram, NEWER),
    "retired pages": (lambda handle: pynvml.nvmlDeviceGetRetiredPages_v2(handle, 1), OLD),
    "retired pages field": (_field(30), OLD),
    "retirement pending": (pynvml.nvmlDeviceGetRetiredPagesPendingStatus, OLD),
    "SRAM location": (lambda handle: pynvml.nvmlDeviceGetMemoryErrorCounter(handle, 1, 0, 7), NEWER),
    "L2 location": (lambda handle: pynvml.nvmlDeviceGetMemoryErrorCounter(handle, 1, 0, 1), OLD),
    "SRAM status": (
        _filled("nvmlDeviceGetSramEccErrorStatus", pynvml.c_nvmlEccSramErrorStatus_v1_t),
        {*PCIE, *HOPPER_ON},
    ),
    "repair status": (pynvml.nvmlDeviceGetRepairStatus, NVLINK5),
    "unrepairable memory": (pynvml.nvmlDeviceGetUnrepairableMemoryFlag_v1, NVLINK5),
    "margin": (pynvml.nvmlDeviceGetMarginTemperature, {*PCIE, *HOPPER_ON}),
    "limit as margin": (_field(194), {*PCIE, *HOPPER_ON}),
    "memory temperature": (_field(82), set(MODELS) - {"t4", *PCIE}),
    "memory threshold": (
        lambda handle: pynvml.nvmlDeviceGetTemperatureThreshold(handle, 2),
        set(MODELS) - {"t4", *PCIE},
    ),
    "power cap time": (_field(74), set(MODELS)),
    "thermal slowdown time": (_field(270), NEWER),
    "average power": (_field(185), NEWER),
    "NVLink": (lambda handle: pynvml.nvmlDeviceGetNvLinkState(handle, 0), NVLINK),
    "NVLink count": (_field(91), NVLINK),
    "NVLink errors": (lambda handle: pynvml.nvmlDeviceGetNvLinkErrorCounter(handle, 0, 1), NVLINK - NVLINK5),
    "NVLink 5 counters": (_field(208), NVLINK5),
    "fabric": (_filled("nvmlDeviceGetGpuFabricInfoV", pynvml.c_nvmlGpuFabricInfo_v3_t), HOPPER_ON),
    "recovery action": (_field(230), NEWER),
    "MIG": (pynvml.nvmlDeviceGetMigMode, AMPERE | HOPPER_ON | {"rtx-pro-6000"}),
    "platform": (_filled("nvmlDeviceGetPlatformInfo", pynvml.c_nvmlPlatformInfo_v2_t), NVLINK5),
    "C2C": (_field(171), GRACE),
    "ECC": (pynvml.nvmlDeviceGetEccMode, set(MODELS)),
    "fan": (pynvml.nvmlDeviceGetFanSpeed, set()),
}


def test_the_models() -> None:
    """These models come with the simulator."""
    done = subprocess.run([str(COMMAND), "models"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == MODELS


@pytest.mark.parametrize("model", MODELS)
def test_what_is_supported(make_node: Callable[..., Simulator], code: Callable[..., int], model: str) -> None:
    """A model answers what its hardware has, and NOT_SUPPORTED to the rest."""
    make_node(model)
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    for what, (read, models) in SUPPORTED_BY.items():
        expected = pynvml.NVML_SUCCESS if model in models else pynvml.NVML_ERROR_NOT_SUPPORTED
        assert code(read, handle) == expected, what


@pytest.mark.parametrize("model", MODELS)
def test_a_new_node_is_healthy(make_node: Callable[..., Simulator], model: str) -> None:
    """As made, a GPU is idle, cool, at full PCIe width, with all of its links up and without an error."""
    make_node(model, 8)
    for index in range(pynvml.nvmlDeviceGetCount()):
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        assert pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle) == pynvml.nvmlClocksEventReasonGpuIdle
        assert pynvml.nvmlDeviceGetTemperature(handle, 0) < pynvml.nvmlDeviceGetTemperatureThreshold(handle, 3) - 40
        assert pynvml.nvmlDeviceGetCurrPcieLinkWidth(handle) == pynvml.nvmlDeviceGetMaxPcieLinkWidth(handle) == 16
        assert pynvml.nvmlDeviceGetPowerUsage(handle) < pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 4
        assert pynvml.nvmlDeviceGetEccMode(handle) == [1, 1]
        assert pynvml.nvmlDeviceGetTotalEccErrors(handle, 1, 1) == 0
        count = pynvml.nvmlDeviceGetFieldValues(handle, [pynvml.NVML_FI_DEV_NVLINK_LINK_COUNT])[0]
        links = count.value.uiVal if count.nvmlReturn == 0 else 0
        assert all(pynvml.nvmlDeviceGetNvLinkState(handle, link) == 1 for link in range(links))


def test_gpus_differ_and_a_seed_repeats(tmp_path: Path) -> None:
    """UUIDs, serials and buses are all different, the same with the same seed and others with another."""

    def names(seed: int) -> list[str]:
        simulator = Simulator(tmp_path, gpus=8, seed=seed)
        return [simulator.text(f"gpu*.{name}").replace("=", " ") for name in ("uuid", "serial", "pci.bus")]

    first = names(5)
    for lines in first:
        values = [line.split()[1] for line in lines.splitlines()]
        assert len(set(values)) == 8
    assert names(5) == first
    assert names(6)[:2] != first[:2]


def test_an_old_driver_knows_less(make_node: Callable[..., Simulator], code: Callable[..., int]) -> None:
    """An H100 under R535 has no recovery action, SRAM status or throttle times."""
    make_node(driver="535.161.08")
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    assert pynvml.nvmlSystemGetCudaDriverVersion() == 12020
    for what in ("recovery action", "SRAM status", "thermal slowdown time"):
        assert code(SUPPORTED_BY[what][0], handle) == pynvml.NVML_ERROR_NOT_SUPPORTED
    assert code(pynvml.nvmlDeviceGetMarginTemperature, handle) == pynvml.NVML_SUCCESS


def test_a_model_is_a_file(make_node: Callable[..., Simulator], tmp_path: Path) -> None:
    """A model of one's own is a file of values, and a line that makes no sense is named."""
    own = tmp_path / "own.model"
    own.write_text("# mine\nname = NVIDIA Own\nbuses = a0\nmemory.total = 1024\nnvlink.links = 2\nlink*.version = 9\n")
    make_node(str(own), 1)
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    assert pynvml.nvmlDeviceGetName(handle) == "NVIDIA Own"
    assert [pynvml.nvmlDeviceGetNvLinkVersion(handle, link) for link in (0, 1)] == [9, 9]
    own.write_text("name = NVIDIA Own\nmemory.size = 1\n")
    with pytest.raises(SimulatorError, match=r"own\.model:2: .*memory\.size"):
        Simulator(tmp_path, str(own), 1)


@pytest.mark.parametrize(("model", "gpus", "mig"), [("h100", 8, 0), ("h100-sxm", 17, 0), ("t4", 1, 1)])
def test_nodes_that_can_not_be(tmp_path: Path, model: str, gpus: int, mig: int) -> None:
    """An unknown model, too many GPUs, and MIG on a GPU without it are refused."""
    with pytest.raises(SimulatorError):
        Simulator(tmp_path, model, gpus, mig=mig)
