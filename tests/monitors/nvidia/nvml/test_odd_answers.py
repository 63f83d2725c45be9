"""What a binding of another version may do: raise anything, return anything. It costs that reading and nothing else."""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pynvml
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nvmlsim.simulator import Simulator
from testing.lying_node import GPUS, LYING, LyingNode, flat, lying_node

from gpuhealth.model.missing import Missing, MissingReason
from gpuhealth.monitors.nvidia.nvml import driver as nvml_driver
from gpuhealth.monitors.nvidia.nvml import value as nvml_value
from gpuhealth.monitors.nvidia.nvml.gpu import Gpu
from gpuhealth.monitors.nvidia.nvml.process import NvmlProbe
from gpuhealth.monitors.nvidia.readings import GpuReadings, NvmlReadings
from gpuhealth.monitors.nvidia.settings import Nvml


class Structure(ctypes.Structure):
    """A structure of another version: none of the members that are asked for."""

    _fields_ = (("unknown", ctypes.c_uint),)


class BindingError(Exception):
    """What a binding of another version may raise; its text cannot be had."""

    def __str__(self) -> str:
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")


ODD_VALUES: list[Any] = [
    None,
    0.5,
    float("nan"),
    -1,
    1 << 64,
    1 << 400,
    "",
    "caf\udce9",
    "line\nbreak \x1b[31m",
    "x" * 100_000,
    b"\xff\xfe",
    [],
    [None],
    (0.5, 0.5, 0.5, 0.5),
    {},
    Structure(),
    object(),
]
RAISED: list[Callable[[], Exception]] = [
    lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    lambda: AttributeError("module 'pynvml' has no attribute"),
    lambda: TypeError("an integer is required"),
    lambda: IndexError("tuple index out of range"),
    lambda: OverflowError("int too large"),
    lambda: RecursionError("maximum recursion depth exceeded"),
    lambda: MemoryError(),
    lambda: OSError(5, "Input/output error"),
    BindingError,
]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LyingNode]:
    """NVML in this process, on a node of two GPUs."""
    with lying_node(tmp_path_factory.mktemp("odd"), model="h100-sxm") as made:
        yield made


def _answers() -> list[tuple[str, Callable[[], Any]]]:
    values = [(f"value {number}", lambda value=value: value) for number, value in enumerate(ODD_VALUES)]
    return [*values, *((f"raised {number}", _raising(make())) for number, make in enumerate(RAISED))]


def _raising(error: Exception) -> Callable[[], Any]:
    def answer() -> Any:
        raise error

    return answer


def _lying(call: str, answer: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The binding's function answers so when it is called about the lying GPU, and as ever about the other."""
    real = getattr(pynvml, call)
    handle = pynvml.nvmlDeviceGetHandleByIndex(LYING)

    def lie(device: Any, *arguments: Any) -> Any:
        same = device == LYING if call == "nvmlDeviceGetHandleByIndex" else _address(device) == _address(handle)
        return answer() if same else real(device, *arguments)

    monkeypatch.setattr(pynvml, call, lie)


def _address(handle: Any) -> int | None:
    return ctypes.cast(handle, ctypes.c_void_p).value


def _functions(node: LyingNode) -> list[str]:
    """The functions of the binding through which a GPU is read."""
    with node.started() as driver:
        driver.read(LYING, GPUS)
        return sorted(name for name in driver.calls_of(LYING) if hasattr(pynvml, name))


def test_an_odd_answer_costs_the_readings_of_its_function(node: LyingNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a function of the binding returns or raises: both GPUs are read, and what changes is missing or legal,
    among the readings that a refused call costs."""
    functions = _functions(node)
    assert len(functions) > 35
    honest = flat(node.honest.gpus[LYING])
    for call in functions:
        with monkeypatch.context() as patch:
            _lying(call, _raising(pynvml.NVMLError(999)), patch)
            reach = {name for name, value in flat(node.read().gpus[LYING]).items() if value != honest.get(name)}
        for name, answer in _answers():
            with monkeypatch.context() as patch:
                _lying(call, answer, patch)
                told = node.read()
            assert told.gpus[0] == node.honest.gpus[0], (call, name)
            if call == "nvmlDeviceGetHandleByIndex":
                _assert_never_unsupported(told.gpus[LYING])
                continue
            assert told.gpus[LYING].error is None, (call, name)
            changed = {key for key, value in flat(told.gpus[LYING]).items() if value != honest.get(key)}
            assert changed <= reach | {key for key in changed if key.startswith("nvlinks")}, (call, name, changed)


def _assert_never_unsupported(gpu: GpuReadings) -> None:
    """Not supported would mean that there is nothing to check."""
    readings = [gpu.uuid, gpu.temperature_celsius, gpu.recovery_action]
    assert all(isinstance(each, Missing) and not each.is_unsupported for each in readings)


class FieldValue(ctypes.Structure):
    """The part of nvmlFieldValue_t that is read."""

    _fields_ = [("nvmlReturn", ctypes.c_int), ("valueType", ctypes.c_uint), ("value", pynvml.c_nvmlValue_t)]


@given(st.integers(-(1 << 31), (1 << 31) - 1), st.integers(0, (1 << 32) - 1), st.binary(min_size=8, max_size=8))
def test_any_field_value_is_a_number_or_refused(code: int, kind: int, raw: bytes) -> None:
    """Any return code, value type and bits: a whole number, a rate of 0 to 1, or an exception that becomes Missing."""
    value = FieldValue(code, kind)
    ctypes.memmove(ctypes.addressof(value.value), raw, 8)
    for convert in (nvml_value.whole, nvml_value.bit_error_rate):
        try:
            number = convert(nvml_value.field(value))
        except (nvml_value.UnexpectedAnswerError, pynvml.NVMLError):
            continue
        assert code == 0
        if convert is nvml_value.bit_error_rate:
            assert 0 <= number <= 1
        else:
            assert isinstance(number, int)
        assert msgspec.json.decode(msgspec.json.encode(number)) == number


def test_bit_error_rates_of_both_kinds() -> None:
    """A BER as mantissa and exponent and one as a double are the same rate."""
    assert nvml_value.bit_error_rate(5 << 8 | 6) == pytest.approx(5e-6)
    assert nvml_value.bit_error_rate(5e-6) == 5e-6


def test_a_double_costs_one_reading_in_the_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the child process: a double as memory temperature, a name that is not UTF-8 and a library that prints
    leave eight GPUs and every other reading."""
    simulator = Simulator(tmp_path)
    for name, value in simulator.env.items():
        monkeypatch.setenv(name, value)
    simulator.lie("nvmlDeviceGetFieldValues", gpu=3, field=pynvml.NVML_FI_DEV_MEMORY_TEMP, value=0.5)
    simulator.lie("nvmlDeviceGetFieldValues", gpu=4, field=pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, type=7)
    simulator.set({"gpu5.name": "caf\udce9"})
    simulator.inject("prints")

    async def read() -> NvmlReadings:
        probe = NvmlProbe(Nvml(warn_after=60.0, critical_after=120.0))
        try:
            return await probe.read(60.0)
        finally:
            probe.close()

    readings = asyncio.run(read())
    assert readings.answered
    assert [gpu.index for gpu in readings.gpus] == list(range(8))
    odd = {gpu.index: dict(gpu.failed_calls) for gpu in readings.gpus if gpu.failed_calls}
    assert odd.keys() == {3, 4, 5}
    assert [list(calls) for calls in odd.values()] == [
        ["nvmlDeviceGetFieldValues(82)"],
        ["nvmlDeviceGetFieldValues(230)"],
        ["nvmlDeviceGetName"],
    ]
    assert "0.5 is not a whole number" in str(odd[3]["nvmlDeviceGetFieldValues(82)"])
    assert all(gpu.temperature_celsius == 30 for gpu in readings.gpus)


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND, 25])
def test_nvml_that_is_not_supported_is_never_clean(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """An nvmlInit that answers "not supported" is an error: it does not mean that there is nothing to check."""

    def refused() -> None:
        raise pynvml.NVMLError(code)

    monkeypatch.setattr(pynvml, "nvmlInit", refused)
    problem = nvml_driver.start(lambda _: None)
    assert problem is not None
    assert problem.reason is MissingReason.ERROR
    assert "nvmlInit_v2" in problem.detail


@pytest.mark.parametrize("handle", [None, 0, "", {}, []], ids=["None", "0", "text", "dict", "list"])
def test_an_empty_handle_that_is_no_pointer(monkeypatch: pytest.MonkeyPatch, handle: object) -> None:
    """A binding that returns no pointer is no fault of the GPU; a pointer that is NULL is."""
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda _: handle)
    error = Gpu(0, lambda _: None).read().error
    assert error is not None
    assert error.reason is MissingReason.ERROR
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda _: pynvml.c_nvmlDevice_t())
    error = Gpu(0, lambda _: None).read().error
    assert error is not None
    assert error.reason is MissingReason.DRIVER_ERROR


@pytest.mark.parametrize(
    ("counts", "reason"), [((8, 8), MissingReason.DRIVER_ERROR), ((8, 7), MissingReason.ERROR)], ids=["same", "fewer"]
)
def test_gpus_that_leave_in_the_middle_of_a_round(
    monkeypatch: pytest.MonkeyPatch, counts: tuple[int, int], reason: MissingReason
) -> None:
    """A GPU that cannot be opened is at fault, except where fewer GPUs are counted than at the start of the round."""
    left = iter(counts)

    def refused(_: int) -> Any:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: next(left))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", refused)
    driver = nvml_driver.Driver(lambda _: None)
    count = driver.count()
    assert count == 8
    error = driver.read(7, count).error
    assert error is not None
    assert error.reason is reason
