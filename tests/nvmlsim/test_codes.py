"""Start and end, handles, and the codes for wrong use."""

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pynvml
import pytest
from nvmlsim.simulator import Simulator, library_of

Code = Callable[..., int]


def _init_code(env: dict[str, str]) -> int:
    """Code of nvmlInit in a fresh process."""
    program = (
        "import pynvml\ntry:\n    pynvml.nvmlInit()\n    print(0)\nexcept pynvml.NVMLError as e:\n    print(e.value)"
    )
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_a_process_sees_the_node_by_its_environment(tmp_path: Path) -> None:
    """The variables of `env` are all that an unmodified program needs."""
    simulator = Simulator(tmp_path, gpus=3)
    program = "import pynvml; pynvml.nvmlInit(); print(pynvml.nvmlDeviceGetCount())"
    done = subprocess.run(
        [sys.executable, "-c", program], env=simulator.env, capture_output=True, text=True, check=True
    )
    assert done.stdout == "3\n"


@pytest.mark.parametrize("content", [None, b"", b"no state" * 1000])
def test_without_a_state_the_driver_is_not_loaded(tmp_path: Path, content: bytes | None) -> None:
    """A missing, empty or foreign state file makes nvmlInit return DRIVER_NOT_LOADED."""
    env = Simulator(tmp_path, gpus=1).env
    env["NVMLSIM_STATE"] = str(tmp_path / "other")
    if content is not None:
        (tmp_path / "other").write_bytes(content)
    assert _init_code(env) == pynvml.NVML_ERROR_DRIVER_NOT_LOADED


def test_calls_need_init_and_it_is_counted(node: Simulator, code: Code) -> None:
    """Calls work until there were as many shutdowns as inits, then return UNINITIALIZED."""
    pynvml.nvmlInit()
    pynvml.nvmlShutdown()
    assert pynvml.nvmlDeviceGetCount() == 2
    pynvml.nvmlShutdown()
    assert code(pynvml.nvmlDeviceGetCount) == pynvml.NVML_ERROR_UNINITIALIZED
    assert code(pynvml.nvmlShutdown) == pynvml.NVML_ERROR_UNINITIALIZED
    pynvml.nvmlInit()


def test_every_name_of_a_gpu_leads_to_it(node: Simulator, code: Code) -> None:
    """UUID, serial number and PCI address in all spellings give the handle that the index gives."""
    handle = pynvml.nvmlDeviceGetHandleByIndex(1)
    pci = pynvml.nvmlDeviceGetPciInfo(handle)
    by_name = [
        pynvml.nvmlDeviceGetHandleByUUID(pynvml.nvmlDeviceGetUUID(handle)),
        pynvml.nvmlDeviceGetHandleByUUIDV(pynvml.nvmlDeviceGetUUID(handle).encode(), pynvml.NVML_UUID_TYPE_ASCII),
        pynvml.nvmlDeviceGetHandleBySerial(pynvml.nvmlDeviceGetSerial(handle)),
        *(
            pynvml.nvmlDeviceGetHandleByPciBusId(text)
            for text in (pci.busId, pci.busIdLegacy, pci.busId.lower(), pci.busIdLegacy[:-2])
        ),
    ]
    assert [pynvml.nvmlDeviceGetIndex(found) for found in by_name] == [1] * len(by_name)
    assert code(pynvml.nvmlDeviceGetHandleByUUID, "GPU-none") == pynvml.NVML_ERROR_NOT_FOUND
    assert code(pynvml.nvmlDeviceGetHandleBySerial, "0") == pynvml.NVML_ERROR_NOT_FOUND
    assert code(pynvml.nvmlDeviceGetHandleByPciBusId, "0000:7f:00.0") == pynvml.NVML_ERROR_NOT_FOUND
    assert code(pynvml.nvmlDeviceGetHandleByPciBusId, "nonsense") == pynvml.NVML_ERROR_INVALID_ARGUMENT


def test_bad_arguments(node: Simulator, gpu: Any, code: Code) -> None:
    """A bad index, handle, enumeration or null pointer is INVALID_ARGUMENT."""
    invalid = pynvml.NVML_ERROR_INVALID_ARGUMENT
    assert code(pynvml.nvmlDeviceGetHandleByIndex, 2) == invalid
    assert code(pynvml.nvmlDeviceGetTemperature, None, 0) == invalid
    assert code(pynvml.nvmlDeviceGetTemperature, pynvml.c_nvmlDevice_t(), 0) == invalid
    assert code(pynvml.nvmlDeviceGetTemperature, gpu, 7) == invalid
    assert code(pynvml.nvmlDeviceGetClockInfo, gpu, 4) == invalid
    assert code(pynvml.nvmlDeviceGetTotalEccErrors, gpu, 2, 0) == invalid
    assert code(pynvml.nvmlDeviceGetMemoryErrorCounter, gpu, 0, 0, 8) == invalid
    assert code(pynvml.nvmlDeviceGetNvLinkState, gpu, 36) == invalid
    assert code(pynvml.nvmlDeviceGetNvLinkState, gpu, 18) == pynvml.NVML_ERROR_NOT_SUPPORTED
    assert code(pynvml.nvmlDeviceGetFieldValues, gpu, []) == invalid
    assert pynvml.nvmlLib.nvmlDeviceGetPowerUsage(gpu, None) == invalid


def test_short_buffers(gpu: Any) -> None:
    """A text that does not fit is INSUFFICIENT_SIZE; one that just fits is whole."""
    name = pynvml.nvmlDeviceGetName(gpu)
    short, exact = (ctypes.create_string_buffer(len(name) + extra) for extra in (0, 1))
    assert pynvml.nvmlLib.nvmlDeviceGetName(gpu, short, len(short)) == pynvml.NVML_ERROR_INSUFFICIENT_SIZE
    assert pynvml.nvmlLib.nvmlDeviceGetName(gpu, exact, len(exact)) == pynvml.NVML_SUCCESS
    assert exact.value.decode() == name


def test_short_arrays(node: Simulator, gpu: Any) -> None:
    """More processes than the array takes: INSUFFICIENT_SIZE, and the number that is wanted."""
    for pid in (10, 11, 12):
        node.inject("process", gpu=0, pid=pid)
    array = (pynvml.c_nvmlProcessInfo_v3_t * 2)()
    count = ctypes.c_uint(2)
    call = pynvml.nvmlLib.nvmlDeviceGetComputeRunningProcesses_v3
    assert call(gpu, ctypes.byref(count), array) == pynvml.NVML_ERROR_INSUFFICIENT_SIZE
    assert count.value == 3
    assert [process.pid for process in pynvml.nvmlDeviceGetComputeRunningProcesses(gpu)] == [10, 11, 12]


@pytest.mark.parametrize(
    ("call", "struct"),
    [
        ("nvmlDeviceGetSramEccErrorStatus", pynvml.c_nvmlEccSramErrorStatus_v1_t),
        ("nvmlDeviceGetGpuFabricInfoV", pynvml.c_nvmlGpuFabricInfo_v3_t),
        ("nvmlDeviceGetPlatformInfo", pynvml.c_nvmlPlatformInfo_v2_t),
        ("nvmlDeviceGetRepairStatus", pynvml.c_nvmlRepairStatus_t),
        ("nvmlDeviceGetUnrepairableMemoryFlag_v1", pynvml.c_nvmlUnrepairableMemory_v1_t),
        ("nvmlDeviceGetMarginTemperature", pynvml.c_nvmlMarginTemperature_v1_t),
        ("nvmlDeviceGetMemoryInfo_v2", pynvml.c_nvmlMemory_v2_t),
        ("nvmlDeviceGetTemperatureV", pynvml.c_nvmlTemperature_v1_t),
        ("nvmlDeviceGetPciInfoExt", pynvml.nvmlPciInfoExt_v1_t),
    ],
)
def test_wrong_versions(gpu: Any, call: str, struct: Any) -> None:
    """A version word that nobody knows is ARGUMENT_VERSION_MISMATCH."""
    asked = struct()
    asked.version = 0x7F000001
    mismatch = pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH
    assert getattr(pynvml.nvmlLib, call)(gpu, ctypes.byref(asked)) == mismatch


def test_error_strings(node: Simulator) -> None:
    """Every code has a text."""
    assert pynvml.nvmlErrorString(15) == "GPU is lost"
    assert pynvml.nvmlErrorString(12345) == "Unknown Error"


def test_device_nodes_are_held_while_initialized(node: Simulator, tmp_path: Path) -> None:
    """Who looks at /proc/self/fd finds the device nodes open between init and shutdown, and not after."""

    def held() -> set[str]:
        targets = [link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
        return {target.name for target in targets if target.parent == node.root / "dev"}

    assert held() == {"nvidiactl", "nvidia0", "nvidia1"}
    pynvml.nvmlShutdown()
    assert held() == set()
    pynvml.nvmlInit()


@pytest.mark.parametrize(("module", "code"), [("550.54.15", 0), ("570.86.15", 18), ("", 9)])
def test_a_library_of_one_version(node: Simulator, module: str, code: int) -> None:
    """Such a library refuses a kernel module of another version, and says when none is loaded."""
    node.set({"node.driver_version": module})
    program = "import ctypes, sys; print(ctypes.CDLL(sys.argv[1]).nvmlInit_v2())"
    command = [sys.executable, "-c", program, str(library_of("550.54.15"))]
    done = subprocess.run(command, env={**os.environ, **node.env}, capture_output=True, text=True, check=True)
    assert int(done.stdout) == code
    assert (node.root / "sys/module/nvidia").exists() is (module != "")
