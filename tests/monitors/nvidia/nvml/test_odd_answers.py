"""Every NVML call that the probe makes, made to answer with anything: it costs that reading and nothing else."""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pynvml
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nvmlsim.simulator import Simulator
from testing.readings import node as node_of
from testing.readings import outcomes

from gpuhealth.model.finding import Finding, Outcome, Severity
from gpuhealth.model.missing import Missing, MissingReason
from gpuhealth.monitors.judge import Judge
from gpuhealth.monitors.nvidia.nvml import driver as nvml_driver
from gpuhealth.monitors.nvidia.nvml import value as nvml_value
from gpuhealth.monitors.nvidia.nvml.process import NvmlProbe
from gpuhealth.monitors.nvidia.readings import GpuReadings, NvmlReadings
from gpuhealth.monitors.nvidia.settings import Nvml
from gpuhealth.monitors.settings import Settings

# Of two models, so that the calls of NVLink 4 and of NVLink 5 are both made.
MODELS = ("h100-sxm", "b200")
LYING = 1
"""The GPU whose answers are odd; another is looked at as well."""


class Structure(ctypes.Structure):
    """A structure of another version: none of the members that are asked for."""

    _fields_ = [("unknown", ctypes.c_uint)]


class BindingError(Exception):
    """What a binding of another version may raise; its text cannot be had."""

    def __str__(self) -> str:
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")


ODD_VALUES: list[Any] = [
    None,
    0.5,
    float("nan"),
    float("inf"),
    -1,
    1 << 63,
    1 << 64,
    1 << 400,
    "",
    "text",
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
    lambda: OverflowError("int too large"),
    lambda: RecursionError("maximum recursion depth exceeded"),
    lambda: MemoryError(),
    lambda: OSError(5, "Input/output error"),
    BindingError,
]
CODES = [*range(1, 29), 77, 255, 998, 999, 1000, -1]  # all that there are, and others
LOST, RESET = pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED


@pytest.fixture(scope="module", params=MODELS)
def driver(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[nvml_driver.Driver]:
    """NVML in this process, on a node of two GPUs."""
    before = os.environ.get("NVMLSIM_STATE")
    Simulator(tmp_path_factory.mktemp("lies"), request.param, gpus=2).load()
    assert nvml_driver.start(lambda _: None) is None
    yield nvml_driver.Driver(lambda _: None)
    nvml_driver.stop(lambda _: None)
    os.environ.pop("NVMLSIM_STATE") if before is None else os.environ.update(NVMLSIM_STATE=before)


def _calls(driver: nvml_driver.Driver) -> list[str]:
    """The functions that a first round makes about a GPU."""
    fresh = nvml_driver.Driver(lambda _: None)
    fresh.read(LYING, 2)
    return sorted(fresh._gpus[LYING]._called)


def _read(index: int) -> GpuReadings:
    """A first round of one GPU, as it arrives on the other side of the pipe."""
    gpu = nvml_driver.Driver(lambda _: None).read(index, 2)
    return msgspec.json.decode(msgspec.json.encode(gpu), type=GpuReadings)


def _lying(call: str, answer: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The call answers so when it is made about the lying GPU, and as ever about the other."""
    real = getattr(pynvml, call)
    handle = pynvml.nvmlDeviceGetHandleByIndex(LYING)

    def lie(device: Any, *arguments: Any) -> Any:
        same = device == LYING if call == "nvmlDeviceGetHandleByIndex" else _address(device) == _address(handle)
        return answer() if same else real(device, *arguments)

    monkeypatch.setattr(pynvml, call, lie)


def _address(handle: Any) -> int | None:
    return ctypes.cast(handle, ctypes.c_void_p).value


def _raising(error: Exception) -> Callable[[], Any]:
    def answer() -> Any:
        raise error

    return answer


def _answers() -> list[tuple[str, Callable[[], Any]]]:
    values = [(f"value {number}", lambda value=value: value) for number, value in enumerate(ODD_VALUES)]
    raised = [(f"raised {number}", _raising(make())) for number, make in enumerate(RAISED)]
    codes = [(f"code {code}", _raising(pynvml.NVMLError(code))) for code in CODES if code not in (LOST, RESET)]
    return [*values, *raised, *codes]


def test_a_lie_costs_the_readings_of_its_call_alone(
    driver: nvml_driver.Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever one call answers about one GPU: all GPUs are read, what changes is missing or of its type, and no
    check asks for a quarantine or a reboot, unless the GPU cannot be opened at all."""
    honest = [_read(index) for index in range(2)]
    calls = _calls(driver)
    assert len(calls) > 40
    for call in calls:
        for name, answer in _answers():
            with monkeypatch.context() as patch:
                _lying(call, answer, patch)
                gpu = _read(LYING)
            changed = {
                field for field in GpuReadings.__struct_fields__ if getattr(gpu, field) != getattr(honest[1], field)
            }
            if call == "nvmlDeviceGetHandleByIndex":
                assert gpu.error is None or gpu.error.reason is not MissingReason.NOT_SUPPORTED, (call, name)
                continue
            assert gpu.error is None, (call, name)
            # One call gives at most so many fields; the two of bookkeeping and the NVLinks are counted apart.
            assert len(changed - {"calls", "failed_calls", "nvlinks", "fabric", "mig_devices"}) <= 6, (
                call,
                name,
                changed,
            )
            _assert_no_quarantine(honest[0], gpu, (call, name))


def _assert_no_quarantine(other: GpuReadings, gpu: GpuReadings, what: object) -> None:
    judge, found = Judge(Settings(), time=node_of().time), list[Outcome]()
    for round_number in range(3):
        nvml = NvmlReadings(answered=True, count=2, gpus=(other, gpu))
        found = outcomes(judge, node_of(other, gpu, at=10.0 * round_number, nvml=nvml, pci=(), device_nodes=()))
    faults = [each for each in found if isinstance(each, Finding) and each.severity is Severity.CRITICAL]
    assert faults == [] or {each.code for each in faults} <= LEGITIMATE, (what, faults)


LEGITIMATE = {"inforom.corrupted", "gpu.recovery_action", "thermal.gpu", "thermal.memory", "gpu_memory.unrepairable",
              "gpu_memory.remap_failed", "ecc.uncorrectable", "ecc.sram_threshold", "fabric.incomplete", "nvlink.down",
              "gpu_memory.retired_pages"}  # fmt: skip
"""Checks that may fire on a plausible value: a well-typed answer cannot be recognized as wrong."""


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND, 2, 26, 999])
def test_a_gpu_that_cannot_be_opened_is_never_clean(
    driver: nvml_driver.Driver, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """A handle that is refused with any code, also "not supported", leaves everything about the GPU unchecked."""
    _lying("nvmlDeviceGetHandleByIndex", _raising(pynvml.NVMLError(code)), monkeypatch)
    gpu = _read(LYING)
    assert gpu.error
    assert gpu.error.reason in (MissingReason.ERROR, MissingReason.DRIVER_ERROR)
    found = outcomes(Judge(Settings(), time=node_of().time), node_of(gpu))
    of_gpu = [each for each in found if each.component == gpu.component]
    clean = {each.code for each in of_gpu if type(each).__name__ == "Clean"}
    assert clean <= {"agent.monitor_failed", "agent.unexpected_reading", "nvml.error"}


@pytest.mark.parametrize("answer", [(1 << 32) - 1, 257, -1, None, 0.5, "8", float("nan")])
def test_an_absurd_count_is_no_count(driver: nvml_driver.Driver, monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    """A number of GPUs that no node has, or that is no number, is missing: nobody loops over it."""
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: answer)
    count = driver.count()
    assert isinstance(count, Missing)
    assert count.reason is MissingReason.ERROR


def test_a_call_that_the_binding_lacks_is_not_supported(
    driver: nvml_driver.Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older nvidia-ml-py without a function leaves that reading out and says which function it is."""
    monkeypatch.delattr(pynvml, "nvmlDeviceGetUnrepairableMemoryFlag_v1")
    gpu = _read(LYING)
    assert isinstance(gpu.unrepairable_memory, Missing)
    assert gpu.unrepairable_memory.reason is MissingReason.NOT_SUPPORTED
    assert gpu.failed_calls == {}


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
            assert 0 <= number <= 15
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
