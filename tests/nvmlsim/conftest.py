"""Simulated nodes, seen through the real pynvml in this process."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pynvml
import pytest
from nvmlsim.simulator import Simulator
from testing.waiting import wait_for


class MakeNode(Protocol):
    """Make a node and start NVML on it."""

    def __call__(self, model: str = "h100-sxm", gpus: int = 2, **options: Any) -> Simulator:
        """Options are those of Simulator."""


@pytest.fixture
def make_node(tmp_path: Path) -> Iterator[MakeNode]:
    """Nodes to choose; NVML is shut down afterwards."""
    started = 0

    def make(model: str = "h100-sxm", gpus: int = 2, **options: Any) -> Simulator:
        nonlocal started
        simulator = Simulator(tmp_path, model, gpus, **options)
        simulator.load()
        pynvml.nvmlInit()
        started += 1
        return simulator

    yield make
    for _ in range(started):
        pynvml.nvmlShutdown()


@pytest.fixture
def node(make_node: MakeNode) -> Simulator:
    """An H100 node of two GPUs, NVML started."""
    return make_node()


@pytest.fixture
def gpu(node: Simulator) -> Any:
    """The handle of its first GPU."""
    return pynvml.nvmlDeviceGetHandleByIndex(0)


@pytest.fixture
def code() -> Callable[..., int]:
    """Call something and return its NVML code."""

    def call(function: Callable[..., object], *arguments: object) -> int:
        try:
            function(*arguments)
        except pynvml.NVMLError as error:
            return int(error.value)
        return int(pynvml.NVML_SUCCESS)

    return call


@pytest.fixture
def field() -> Callable[..., tuple[int, int]]:
    """Read one field: its return code, and its value by its type."""
    members = {1: "uiVal", 3: "ullVal", 5: "siVal"}

    def read(handle: Any, number: int | tuple[int, int]) -> tuple[int, int]:
        value = pynvml.nvmlDeviceGetFieldValues(handle, [number])[0]
        member = members[value.valueType] if value.nvmlReturn == 0 else "ullVal"
        return value.nvmlReturn, getattr(value.value, member)

    return read


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], bool]:
    """Wait for a state."""

    return lambda reached: wait_for("the state", reached, every=0.002)
