"""Lies: a function of the library that answers something else than the truth."""

import ctypes
import math
import re
import subprocess
from pathlib import Path
from typing import Any

import pynvml
import pytest
from nvmlsim.simulator import COMMAND, Simulator, SimulatorError
from testing.nvml_lies import tell


def _field(handle: Any, number: int) -> Any:
    return pynvml.nvmlDeviceGetFieldValues(handle, [number])[0]


def _code(function: Any, *arguments: Any) -> int:
    with pytest.raises(pynvml.NVMLError) as raised:
        function(*arguments)
    return int(raised.value.value)


@pytest.mark.parametrize("code", [1, 8, 15, 31, 255, 998, 999, 1000, -1, -(1 << 31)])
def test_any_return_code(node: Simulator, gpu: Any, code: int) -> None:
    """A function answers any code, on the GPU that is named, until the lie ends."""
    node.lie("nvmlDeviceGetPowerUsage", gpu=0, code=code)
    assert _code(pynvml.nvmlDeviceGetPowerUsage, gpu) == code
    assert pynvml.nvmlDeviceGetPowerUsage(pynvml.nvmlDeviceGetHandleByIndex(1)) > 0
    node.truth("nvmlDeviceGetPowerUsage")
    assert pynvml.nvmlDeviceGetPowerUsage(gpu) > 0


@pytest.mark.parametrize("kind", [*range(11), 255])
def test_any_type_of_a_field_value(node: Simulator, gpu: Any, kind: int) -> None:
    """A field value has any type; the other values of the same call keep theirs."""
    node.lie("nvmlDeviceGetFieldValues", field=82, type=kind, value=7)
    assert _field(gpu, 82).valueType == kind
    assert _field(gpu, 82).value.dVal == (7.0 if kind == 0 else 3.5e-323)
    assert _field(gpu, 230).valueType == 1


@pytest.mark.parametrize("number", [math.nan, math.inf, 0.5, 1e300])
def test_a_double_in_a_field(node: Simulator, gpu: Any, number: float) -> None:
    """A field that is an integer elsewhere is a double."""
    node.lie("nvmlDeviceGetFieldValues", gpu=0, field=82, value=number)
    value = _field(gpu, 82)
    assert (value.nvmlReturn, value.valueType) == (0, 0)
    assert value.value.dVal == number or math.isnan(number)


def test_a_code_of_one_field(node: Simulator, gpu: Any) -> None:
    """A code with a field is that of the value, and not of the call."""
    node.lie("nvmlDeviceGetFieldValues", field=82, code=999)
    assert [_field(gpu, number).nvmlReturn for number in (82, 230)] == [999, 0]
    node.lie("nvmlDeviceGetFieldValues", code=17)
    assert _code(pynvml.nvmlDeviceGetFieldValues, gpu, [230]) == 17


@pytest.mark.parametrize("number", [0, -1, 1 << 31, (1 << 32) - 1, 1 << 63, (1 << 64) - 1])
def test_any_number(node: Simulator, gpu: Any, number: int) -> None:
    """Every number of an answer is the one given, cut to its size; of a structure also a single one."""
    node.lie("nvmlDeviceGetPowerUsage", value=number)
    node.lie("nvmlDeviceGetMemoryInfo", member=3, value=number)
    node.lie("nvmlDeviceGetRemappedRows", value=number)
    assert pynvml.nvmlDeviceGetPowerUsage(gpu) == number % (1 << 32)
    memory = pynvml.nvmlDeviceGetMemoryInfo(gpu, pynvml.nvmlMemory_v2)
    assert memory.used == number % (1 << 64)
    assert memory.total == 85520809984
    assert set(pynvml.nvmlDeviceGetRemappedRows(gpu)) == {number % (1 << 32)}


@pytest.mark.parametrize(
    ("text", "bytes_"),
    [
        ("@empty", b""),
        ("@long", b"x" * 96),
        ("@invalid", b"\xff\xfe\xed\xa0\x80"),
        ("@control", b"\x1b[2J\r\n\x07NVIDIA"),
        ("caf\u00e9", b"caf\xc3\xa9"),
    ],
)
def test_any_text(node: Simulator, gpu: Any, text: str, bytes_: bytes) -> None:
    """A text is empty, fills its buffer without a NUL, is no UTF-8, or has control characters."""
    node.lie("nvmlDeviceGetUUID", gpu=0, text=text)
    buffer = ctypes.create_string_buffer(96)
    assert pynvml._nvmlGetFunctionPointer("nvmlDeviceGetUUID")(gpu, buffer, ctypes.c_uint(96)) == 0
    assert buffer.value == bytes_


def test_structures(node: Simulator, gpu: Any) -> None:
    """A structure of nothing but zeros, and one whose members lie elsewhere; nothing is written beyond its end."""
    node.lie("nvmlDeviceGetPciInfo", zero=1)
    assert pynvml.nvmlDeviceGetPciInfo(gpu).bus == 0
    node.truth()
    node.lie("nvmlDeviceGetRowRemapperHistogram", shift=1)
    assert pynvml.nvmlDeviceGetRowRemapperHistogram(gpu).high == 2560  # that of `max`
    node.lie("nvmlDeviceGetGpuFabricInfoV", value=-1)
    for kind in (pynvml.c_nvmlGpuFabricInfo_v2_t, pynvml.c_nvmlGpuFabricInfo_v3_t):
        buffer = ctypes.create_string_buffer(64)
        info = kind.from_buffer(buffer)
        info.version = kind().version
        pynvml.nvmlDeviceGetGpuFabricInfoV(gpu, ctypes.byref(info))
        assert info.state == info.healthMask == (1 << 32) - 1
        assert not any(buffer.raw[ctypes.sizeof(kind) :])


def test_where_it_holds(node: Simulator, gpu: Any) -> None:
    """A lie holds for one argument, for every version of a function, and for a handle by the GPU that it would open."""
    node.lie("nvmlDeviceGetTemperatureThreshold", argument=3, value=7)
    assert pynvml.nvmlDeviceGetTemperatureThreshold(gpu, 3) == 7
    assert pynvml.nvmlDeviceGetTemperatureThreshold(gpu, 1) != 7
    node.lie("nvmlDeviceGetHandleByIndex", gpu=1, code=8)
    assert _code(pynvml.nvmlDeviceGetHandleByIndex, 1) == 8
    assert pynvml.nvmlDeviceGetHandleByIndex(0)


def test_the_size_of_a_list(node: Simulator, gpu: Any) -> None:
    """The number of processes is a lie in both of the calls that ask for them."""
    node.inject("process", gpu=0, pid=4242)
    assert [each.pid for each in pynvml.nvmlDeviceGetComputeRunningProcesses(gpu)] == [4242]
    node.lie("nvmlDeviceGetComputeRunningProcesses", member=4, value=3)
    assert len(pynvml.nvmlDeviceGetComputeRunningProcesses(gpu)) == 3


def test_lies_end_with_the_faults(node: Simulator, gpu: Any) -> None:
    """Clearing everything, or the lies alone, brings back the truth."""
    node.lie("nvmlDeviceGetTemperature", value=7)
    assert node.run("lies") == "nvmlDeviceGetTemperature value=7"
    node.clear()
    assert node.run("lies") == ""
    assert pynvml.nvmlDeviceGetTemperature(gpu, 0) == 30


def test_a_start_that_fails(tmp_path: Path) -> None:
    """A lie about nvmlInit makes it fail, and leaves nothing started."""
    node = Simulator(tmp_path, gpus=1)
    node.load()
    node.lie("nvmlInit", code=-3)
    assert _code(pynvml.nvmlInit) == -3
    assert _code(pynvml.nvmlDeviceGetCount) == pynvml.NVML_ERROR_UNINITIALIZED


def test_what_was_asked_is_known(node: Simulator, gpu: Any) -> None:
    """The functions and field values that a program asked for are listed."""
    pynvml.nvmlDeviceGetFieldValues(gpu, [82])
    assert {"nvmlDeviceGetFieldValues", "field=82"} <= set(node.calls())


def test_lies_within_the_process(node: Simulator, gpu: Any) -> None:
    """A test adds lies and ends them without starting the command."""
    with tell("nvmlDeviceGetTemperature", gpu=0, value=7):
        assert pynvml.nvmlDeviceGetTemperature(gpu, 0) == 7
    assert pynvml.nvmlDeviceGetTemperature(gpu, 0) == 30
    with pytest.raises(ValueError, match="nvmlNothing"), tell("nvmlNothing", code=1):
        pass


@pytest.mark.parametrize(
    "words",
    [
        ["nvmlNothing", "code=1"],
        ["nvmlDeviceGetUUID"],
        ["nvmlDeviceGetUUID", "type=3"],
        ["nvmlDeviceGetTemperature", "text=hot"],
        ["nvmlDeviceGetTemperature", "value=hot"],
        ["nvmlDeviceGetTemperature", "gpu=2", "value=1"],
        ["nvmlDeviceGetTemperature", "colour=1"],
        [],
    ],
)
def test_what_is_no_lie(node: Simulator, words: list[str]) -> None:
    """A function, GPU or answer that there is not is refused in words."""
    with pytest.raises(SimulatorError, match="nvmlsim: "):
        node.run("lie", *words)


def test_help_lists_every_function() -> None:
    """The help names every way to lie and every function that has an answer."""
    text = subprocess.run([str(COMMAND), "lies"], capture_output=True, text=True, check=True).stdout
    assert re.findall(r"^  (\w+)=", text, re.MULTILINE) == [
        *("gpu", "field", "argument", "member", "code", "type", "value", "value", "text", "zero", "shift")
    ]
    assert "nvmlDeviceGetTemperature " in text


def test_too_many_lies(node: Simulator) -> None:
    """The table of lies is bounded."""
    for _ in range(256):
        node.lie("nvmlDeviceGetIndex", code=1)
    with pytest.raises(SimulatorError, match="more than 256"):
        node.lie("nvmlDeviceGetIndex", code=1)
